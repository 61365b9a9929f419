package gateway

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"iter"
	"math/rand/v2"
	"mime"
	"mime/multipart"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/klauspost/compress/zstd"
	"github.com/tidwall/gjson"

	"github.com/ollamamax/ollamamax/internal/cluster"
	"github.com/ollamamax/ollamamax/internal/gateway/record"
	"github.com/ollamamax/ollamamax/internal/gateway/resume"
)

// maxDecompressed is how much of a compressed body is looked at; Ollama takes no more itself.
const maxDecompressed = 20 << 20

// refusal is an answer that needs no node.
type refusal struct {
	status  int
	message string
	// inner marks what the handlers of /api refuse, which Ollama's /v1 routes write in another way
	// than their own refusals.
	inner bool
	// elsewhere tells that only this node cannot.
	elsewhere bool
	// retryAfter is when it may be worth to ask again; 0: a second.
	retryAfter time.Duration
}

func (e *refusal) Error() string { return e.message }

func badRequest(message string) error {
	return &refusal{status: http.StatusBadRequest, message: message}
}

// request is a client's request whose body was read whole, with what was taken from it.
type request struct {
	cluster.Request // what a choice of nodes needs to know
	route           *route
	body            []byte
	stream          bool    // the client wants the answer piece by piece
	unload          bool    // the client asks the engine to let go of the model after this
	prompt          bool    // there is something to answer
	upload          *upload // the body is not here but streams on from the client; nil for others

	notObject             bool // JSON, but not an object: the engine says what it thinks of it
	hasMessages, hasInput bool // what Ollama's /v1 routes ask for before they look at the model

	text     []byte   // the body decompressed; the body itself if it was not compressed
	modelAt  int      // where in text the model's name stands
	modelLen int      // how long it is there, with its quotes; 0: nowhere
	exact    bool     // what may be lost with a node can only be had by the same request again
	parts    []string // of the body that the model reads, in the order in which it reads them
	tools    bool     // the model may call tools
	format   bool     // the answer is bound to a grammar
	usage    bool     // the client wants counts in its stream (stream_options.include_usage)
	plain    bool     // the body was compressed and is no longer
	folded   bool     // streams from the engine, and goes to the client whole
	derived  bool     // a request of our own to an engine, in the course of a client's
	made     string   // the model that an engine is asked to create
	local    bool     // another node's gateway asks, and looks after the answer itself

	only *cluster.Node // the one node that may be asked; nil: it is chosen
}

// named returns the request for another model than the one that the client wrote.
func (req *request) named(model string) *request {
	other := *req
	other.Model, other.Canonical = model, cluster.CanonicalModel(model)
	if req.modelLen > 0 {
		other.body = slices.Concat(req.text[:req.modelAt], quote(model), req.text[req.modelAt+req.modelLen:])
		other.text, other.plain = other.body, true
	}
	return &other
}

// foldable is the least number of tokens for which an answer that the client wants whole streams from
// its engine: a shorter one is simply made again when its node breaks.
const foldable = 32

// prepare changes the body where an answer could not go on otherwise: it is given a seed if it must
// be repeatable, and asked for as a stream if it is to be folded.
func (g *Gateway) prepare(req *request) {
	form, generates := record.FormOf(req.Path)
	if !generates || g.cfg.Resume.Attempts == 0 || req.notObject {
		return
	}
	again := !req.stream && (req.MaxTokens > 0 && req.MaxTokens <= foldable || !req.prompt && !req.hasInput || !g.folds(req.Model, form))
	if again { // nothing of it will have been said
		return
	}
	if g.cfg.Resume.Seed && g.needsSeed(req) {
		req.replace(resume.WithSeed(req.Path, req.text, int(rand.Int32())))
	}
	if req.stream {
		return
	}
	if text, ok := resume.AsStream(req.Path, req.text); ok {
		req.replace(text)
		req.folded, req.stream, req.usage = true, true, true
	}
}

// needsSeed tells whether one of the nodes that may answer could not repeat it.
func (g *Gateway) needsSeed(req *request) bool {
	facts := resume.Facts{Kind: cluster.Ollama} // also of a model that nobody holds
	if req.exact && resume.NeedsSeed(req.Path, req.text, facts) {
		return true
	}
	for r := range g.mayAnswer(req.Model) {
		before := facts
		if e := r.Node.Engine; e != nil {
			facts = resume.Facts{Kind: e.Kind, Thinks: r.Model.Thinks}
		}
		if facts != before && resume.NeedsSeed(req.Path, req.text, facts) {
			return true
		}
	}
	return false
}

// mayAnswer are the replicas of a model, or of those for which it is an alias.
func (g *Gateway) mayAnswer(model string) iter.Seq[cluster.Replica] {
	return func(yield func(cluster.Replica) bool) {
		view := g.deps.View()
		chain := g.deps.Resolve(model)
		for _, r := range view.Replicas(model) {
			if len(chain) == 0 && !yield(r) {
				return
			}
		}
		for _, name := range chain {
			for _, r := range view.Replicas(name) {
				if !yield(r) {
					return
				}
			}
		}
	}
}

// folds tells whether all nodes that may answer stream what record.Fold makes their own body of.
func (g *Gateway) folds(model string, form record.Form) bool {
	if form == record.Generate || form == record.Chat {
		return true
	}
	for r := range g.mayAnswer(model) {
		switch e := r.Node.Engine; {
		case e == nil || e.Kind == cluster.Ollama:
		case form == record.Messages || form == record.Responses,
			e.Kind == cluster.OpenAI && !resume.Continues(r.Model.V1): // nobody knows how it streams
			return false
		}
	}
	return true
}

// replace gives the request another body, with the same keys in the same order.
func (req *request) replace(text []byte) {
	req.body, req.text, req.plain = text, text, true
	model := false
	gjson.ParseBytes(text).ForEach(func(key, value gjson.Result) bool {
		switch strings.ToLower(key.Str) {
		case "model":
			req.modelAt, model = value.Index, true
		case "name":
			if !model {
				req.modelAt = value.Index
			}
		}
		return true
	})
}

// quote returns a string as JSON.
func quote(s string) []byte {
	b, err := json.Marshal(s)
	if err != nil {
		panic(err) // a string always marshals
	}
	return b
}

// readBody reads the body whole, within what one and all may have; each piece has its time to come, as long as
// the exchange lasts.
func (g *Gateway) readBody(x *exchange) ([]byte, error) {
	r, max := x.r, g.cfg.MaxBodyBytes
	if r.ContentLength > max {
		return nil, tooLarge(max)
	}
	if r.ContentLength == 0 {
		return nil, nil
	}
	impatient := newImpatientReader(x, g.cfg.Timeouts.Read)
	impatient.bodies = &g.bodies
	defer x.progress.reading.Store(nil)
	var buf bytes.Buffer
	if r.ContentLength > 0 {
		buf.Grow(int(min(r.ContentLength, 1<<20)) + bytes.MinRead) // a claimed length is not yet memory
	}
	if _, err := buf.ReadFrom(io.LimitReader(impatient, max+1)); err != nil {
		if over := ended(x.ctx); over != nil && !errors.Is(over, context.Canceled) { // else the client is gone
			return nil, over
		}
		if errors.As(err, new(*refusal)) {
			return nil, err
		}
		return nil, badRequest("read request body: " + err.Error())
	}
	if int64(buf.Len()) > max {
		return nil, tooLarge(max)
	}
	return buf.Bytes(), nil
}

// bodies counts what the bodies of all requests hold of memory, but for the beginning of each: most are no
// longer, and what is long must not keep them out.
type bodies struct {
	max  int64
	held atomic.Int64
}

// freeBody is how much of a body is not counted.
const freeBody = 64 << 10

// hold counts the body of an exchange of which so much has come, until it is let go.
func (b *bodies) hold(x *exchange, received int64) error {
	more := received - freeBody - x.held
	if more <= 0 {
		return nil
	}
	if b.held.Add(more) > b.max {
		b.held.Add(-more)
		return &refusal{status: http.StatusServiceUnavailable, elsewhere: true,
			message: "the bodies of other requests take all the memory that there is for them: ask again later, or raise gateway.body_budget_bytes on this node"}
	}
	x.held += more
	return nil
}

func (b *bodies) letGo(x *exchange) {
	if x.held > 0 {
		b.held.Add(-x.held)
	}
}

func tooLarge(max int64) error {
	return &refusal{status: http.StatusRequestEntityTooLarge, message: fmt.Sprintf("request body is larger than %d bytes: send less, or raise gateway.max_body_bytes on this node", max)}
}

// impatientReader gives every piece of an exchange's body its own time to arrive, all of it together a least
// rate, and none after the exchange's end.
type impatientReader struct {
	x        *exchange
	control  *http.ResponseController
	bodies   *bodies // nil: nothing of it is kept
	timeout  time.Duration
	armed    time.Time // the server has given the first piece its time
	received int64
	waited   time.Duration // for the client
}

// leastRate is how many bytes of a body come a second at least, beyond the time of one piece: else a byte from
// time to time would keep a connection busy for ever.
const leastRate = 1 << 10

func newImpatientReader(x *exchange, timeout time.Duration) *impatientReader {
	control := http.NewResponseController(x.w)
	x.progress.reading.Store(control) // Cancel ends a Read that waits
	return &impatientReader{x: x, control: control, timeout: timeout}
}

func (i *impatientReader) Read(p []byte) (int, error) {
	over, limited := i.x.ctx.Deadline()
	now := time.Now()
	switch {
	case i.armed.IsZero():
		i.armed = now
		if limited {
			i.arm(now, over)
		}
	case now.Sub(i.armed) > i.timeout/8:
		i.armed = now
		i.arm(now, over)
	}
	if err := ended(i.x.ctx); err != nil { // looked for once it is armed: whoever ends it later sets its deadline
		return 0, i.giveUp(err)
	}
	n, err := i.x.r.Body.Read(p)
	i.received += int64(n)
	i.waited += time.Since(now)
	if i.bodies != nil {
		if full := i.bodies.hold(i.x, i.received); full != nil {
			return n, i.giveUp(full)
		}
	}
	if err == io.EOF {
		_ = i.control.SetReadDeadline(time.Time{}) // the answer may take longer
	}
	return n, err
}

// giveUp has the server not wait for the rest before it answers.
func (i *impatientReader) giveUp(err error) error {
	_ = i.control.SetReadDeadline(time.Now())
	return err
}

// arm gives the next pieces their time, up to the time at which all is over, if there is one.
func (i *impatientReader) arm(now, over time.Time) {
	earned := time.Duration(min(i.received/leastRate, 1<<30)) * time.Second
	at := now.Add(min(i.timeout, i.timeout+earned-i.waited))
	if !over.IsZero() && over.Before(at) {
		at = over
	}
	_ = i.control.SetReadDeadline(at) // servers that cannot set deadlines have none
}

// parse takes from a body what routing needs. Bodies that no engine would take are refused here,
// in Ollama's words, before any node is bothered.
func (req *request) parse(r *http.Request, body []byte) error {
	rt := req.route
	req.body, req.stream, req.PromptBytes = body, rt.streams, len(body)
	if rt.multipart {
		model, err := multipartModel(r.Header.Get("Content-Type"), body)
		if err != nil {
			return badRequest("failed to parse multipart form: " + err.Error())
		}
		req.Model, req.PromptBytes = model, 0 // a recording is no text
	} else {
		var err error
		if req.text, err = decompressed(r, body); err != nil {
			return err
		}
		if len(req.text) > 0 || !rt.bodyless {
			if err := req.peek(req.text); err != nil {
				return err
			}
		}
	}
	req.Canonical = cluster.CanonicalModel(req.Model)
	if req.Model == "" && rt.missing != nil && !req.notObject {
		return rt.missing(req)
	}
	return nil
}

// decompressed returns the text of a body: /v1 clients may send it zstd-compressed.
func decompressed(r *http.Request, body []byte) ([]byte, error) {
	if r.Header.Get("Content-Encoding") != "zstd" || !strings.HasPrefix(r.URL.Path, "/v1/") {
		return body, nil
	}
	d, err := zstd.NewReader(bytes.NewReader(body), zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(8<<20))
	if err != nil {
		return nil, badRequest("failed to decompress request body")
	}
	defer d.Close()
	text, err := io.ReadAll(io.LimitReader(d, maxDecompressed+1))
	if err != nil || len(text) > maxDecompressed {
		return nil, badRequest("failed to decompress request body")
	}
	return text, nil
}

// peek reads the few fields that matter in one pass. Like Ollama's decoder it takes the last of
// equal keys, in whatever case they are written, and looks at the first JSON value only.
func (req *request) peek(text []byte) error {
	if !valid(text) {
		decoder := json.NewDecoder(bytes.NewReader(text))
		var first json.RawMessage
		if err := decoder.Decode(&first); err != nil {
			return req.notJSON(err)
		}
		text, req.text = first, first
	}
	var name string
	model := false // under its own key
	var parts [5]string
	value := gjson.Parse(alias(text)) // which is not written to again
	req.notObject = !value.IsObject()
	value.ForEach(func(key, value gjson.Result) bool {
		switch strings.ToLower(key.Str) {
		case "model":
			req.Model = value.String()
			req.modelAt, req.modelLen, model = value.Index, len(value.Raw), true
		case "name":
			name = value.String()
			if !model {
				req.modelAt, req.modelLen = value.Index, len(value.Raw)
			}
		case "source":
			if req.route.path == "/api/copy" {
				req.Model = value.String()
			}
		case "stream":
			if value.IsBool() {
				req.stream = value.Bool()
			}
		case "stream_options":
			req.usage = value.Get("include_usage").Bool()
		case "keep_alive":
			d, err := time.ParseDuration(value.Str)
			req.unload = value.Raw == "0" || value.Str == "0" || err == nil && d == 0
		case "options":
			req.options(value)
		case "max_tokens", "max_completion_tokens", "max_output_tokens":
			req.MaxTokens = tokens(value)
		case "images":
			req.exact = true
		case "format", "response_format":
			req.exact, req.format = true, value.String() != ""
		case "text":
			req.format = req.format || value.Get("format").Exists()
		case "tools":
			req.exact, req.tools = true, value.Get("#").Int() > 0
			parts[0] = value.Raw
		case "system", "instructions":
			parts[1] = value.Raw
		case "prompt":
			req.prompt = req.prompt || value.String() != ""
			parts[2] = value.Raw
		case "messages":
			req.hasMessages = value.IsArray() && value.Get("#").Int() > 0
			req.prompt = req.prompt || req.hasMessages
			parts[3] = value.Raw
		case "input":
			req.hasInput = value.Type != gjson.Null && !(value.IsArray() && value.Get("#").Int() == 0)
			parts[4] = value.Raw
		}
		return true
	})
	if req.Model == "" {
		req.Model = name
	}
	if req.Infers {
		req.PromptBytes = 0
		for _, part := range parts {
			if part != "" {
				req.parts = append(req.parts, part)
				images := imageBytes(part)
				req.PromptBytes += len(part) - images
				req.ImageBytes += images
				req.exact = req.exact || images > 0
			}
		}
	}
	return nil
}

// valid tells whether a text is JSON that is nested no deeper than encoding/json allows. Where there
// are not even so many brackets, a faster check does.
func valid(text []byte) bool {
	if bytes.Count(text, []byte("["))+bytes.Count(text, []byte("{")) > mostNested {
		return json.Valid(text)
	}
	return gjson.ValidBytes(text)
}

const mostNested = 10_000

// alias is a text as a string, without a copy.
func alias(text []byte) string { return unsafe.String(unsafe.SliceData(text), len(text)) }

// options takes what matters of Ollama's options: how long the answer may be, and what makes an
// engine load its model anew.
func (req *request) options(value gjson.Result) {
	value.ForEach(func(key, value gjson.Result) bool {
		switch key.Str {
		case "num_predict":
			req.MaxTokens = tokens(value)
		case "num_ctx":
			req.NumCtx = tokens(value)
		case "num_batch", "num_gpu", "main_gpu", "use_mmap", "num_thread", "draft_num_predict":
			// In whatever order they stand.
			h := fnv.New64a()
			_, _ = io.WriteString(h, key.Str+"="+value.Raw) // never fails
			req.Runner += h.Sum64()
		}
		return true
	})
}

// tokens reads a number of tokens; what is none, or asks for no limit, is 0.
func tokens(value gjson.Result) int { return int(max(0, min(value.Int(), 1<<30))) }

// imageBytes is how much of a part of a body is pictures, which are no text.
func imageBytes(part string) (n int) {
	if !strings.Contains(part, "image") {
		return 0
	}
	for _, path := range [...]string{"#.images", "#.content.#.image_url", "#.content.#.source"} {
		n += len(gjson.Get(part, path).Raw)
	}
	return n
}

func (req *request) notJSON(err error) error {
	if errors.Is(err, io.EOF) && dialectOf(req.Path) == ollama {
		return badRequest("missing request body")
	}
	return badRequest(err.Error())
}

// multipartModel returns the form's field "model".
func multipartModel(contentType string, body []byte) (string, error) {
	_, params, err := mime.ParseMediaType(contentType)
	if err != nil || params["boundary"] == "" {
		return "", http.ErrNotMultipart
	}
	form := multipart.NewReader(bytes.NewReader(body), params["boundary"])
	for {
		part, err := form.NextPart()
		if errors.Is(err, io.EOF) {
			return "", nil
		}
		if err != nil {
			return "", err
		}
		if part.FormName() == "model" {
			value, err := io.ReadAll(io.LimitReader(part, 1<<10))
			return string(value), err
		}
	}
}

// upload is a body that streams from the client to an engine. Nothing of it can be read twice.
type upload struct {
	mu   sync.Mutex
	src  io.Reader
	read bool // an attempt has begun to read it
}

// begun tells whether an attempt has read of the body, after which no other can.
func (u *upload) begun() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.read
}

// attempt returns the body for one attempt, which may close it and still leave it to the next.
func (u *upload) attempt() io.ReadCloser { return &uploadAttempt{of: u} }

type uploadAttempt struct {
	of     *upload
	closed bool // guarded by of.mu
}

func (a *uploadAttempt) Read(p []byte) (int, error) {
	a.of.mu.Lock()
	defer a.of.mu.Unlock()
	if a.closed {
		return 0, http.ErrBodyReadAfterClose
	}
	a.of.read = true
	return a.of.src.Read(p)
}

func (a *uploadAttempt) Close() error {
	a.of.mu.Lock()
	defer a.of.mu.Unlock()
	a.closed = true
	return nil
}

// streamed returns a request whose body goes to the engine as it comes.
func (g *Gateway) streamed(x *exchange) *request {
	return &request{Request: cluster.Request{Path: x.r.URL.Path}, route: x.route, upload: &upload{
		src: newImpatientReader(x, g.cfg.Timeouts.Read),
	}}
}
