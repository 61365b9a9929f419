package gateway

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/tidwall/gjson"

	"github.com/ollamamax/ollamamax/internal/cluster"
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
}

func (e *refusal) Error() string { return e.message }

func badRequest(message string) error {
	return &refusal{status: http.StatusBadRequest, message: message}
}

// request is a client's request whose body was read whole, with what was taken from it.
type request struct {
	cluster.Request
	route  *route
	body   []byte
	stream bool    // the client wants the answer piece by piece
	unload bool    // the client asks the engine to let go of the model after this
	prompt bool    // there is something to answer
	upload *upload // the body is not here but streams on from the client; nil for others

	notObject             bool // JSON, but not an object: the engine says what it thinks of it
	hasMessages, hasInput bool // what Ollama's /v1 routes ask for before they look at the model
}

// readBody reads the body whole, within max bytes; each piece has the time timeout to come.
func readBody(w http.ResponseWriter, r *http.Request, max int64, timeout time.Duration) ([]byte, error) {
	if r.ContentLength > max {
		return nil, tooLarge(max)
	}
	if r.ContentLength == 0 {
		return nil, nil
	}
	control := http.NewResponseController(w)
	reader := &impatientReader{r: io.LimitReader(r.Body, max+1), control: control, timeout: timeout}
	var buf bytes.Buffer
	if r.ContentLength > 0 {
		buf.Grow(int(min(r.ContentLength, 1<<20)) + bytes.MinRead) // a claimed length is not yet memory
	}
	if _, err := buf.ReadFrom(reader); err != nil {
		return nil, badRequest("read request body: " + err.Error())
	}
	if int64(buf.Len()) > max {
		return nil, tooLarge(max)
	}
	return buf.Bytes(), nil
}

func tooLarge(max int64) error {
	return &refusal{status: http.StatusRequestEntityTooLarge, message: fmt.Sprintf("request body is larger than %d bytes: send less, or raise gateway.max_body_bytes on this node", max)}
}

// impatientReader gives every piece of a body its own time to arrive.
type impatientReader struct {
	r       io.Reader
	control *http.ResponseController
	timeout time.Duration
}

func (i *impatientReader) Read(p []byte) (int, error) {
	_ = i.control.SetReadDeadline(time.Now().Add(i.timeout)) // servers that cannot set deadlines have none
	n, err := i.r.Read(p)
	if err != nil {
		_ = i.control.SetReadDeadline(time.Time{}) // the answer may take longer
	}
	return n, err
}

// parse takes from a body what routing needs. Bodies that no engine would take are refused here,
// in Ollama's words, before any node is bothered.
func parse(rt *route, r *http.Request, body []byte) (*request, error) {
	req := &request{
		Request: cluster.Request{Path: r.URL.Path, PromptBytes: len(body)},
		route:   rt, body: body, stream: rt.streams,
	}
	if rt.multipart {
		model, err := multipartModel(r.Header.Get("Content-Type"), body)
		if err != nil {
			return nil, badRequest("failed to parse multipart form: " + err.Error())
		}
		req.Model = model
	} else {
		text, err := decompressed(r, body)
		if err != nil {
			return nil, err
		}
		if len(text) > 0 || !rt.bodyless {
			if err := req.peek(text); err != nil {
				return nil, err
			}
		}
	}
	if req.Model == "" && rt.missing != nil && !req.notObject {
		if refused := rt.missing(req); refused != nil {
			return nil, refused
		}
	}
	return req, nil
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
	if !json.Valid(text) { // which bounds the depth of nesting, as gjson's own check does not
		decoder := json.NewDecoder(bytes.NewReader(text))
		var first json.RawMessage
		if err := decoder.Decode(&first); err != nil {
			return req.notJSON(err)
		}
		text = first
	}
	var name string
	value := gjson.ParseBytes(text)
	req.notObject = !value.IsObject()
	value.ForEach(func(key, value gjson.Result) bool {
		switch strings.ToLower(key.Str) {
		case "model":
			req.Model = value.String()
		case "name":
			name = value.String()
		case "source":
			if req.route.path == "/api/copy" {
				req.Model = value.String()
			}
		case "stream":
			if value.IsBool() {
				req.stream = value.Bool()
			}
		case "keep_alive":
			d, err := time.ParseDuration(value.Str)
			req.unload = value.Raw == "0" || value.Str == "0" || err == nil && d == 0
		case "options":
			req.NumCtx = int(value.Get("num_ctx").Int())
		case "prompt":
			req.prompt = req.prompt || value.String() != ""
		case "messages":
			req.hasMessages = value.IsArray() && value.Get("#").Int() > 0
			req.prompt = req.prompt || req.hasMessages
		case "input":
			req.hasInput = value.Type != gjson.Null && !(value.IsArray() && value.Get("#").Int() == 0)
		}
		return true
	})
	if req.Model == "" {
		req.Model = name
	}
	return nil
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
		src: &impatientReader{r: x.r.Body, control: http.NewResponseController(x.w), timeout: g.cfg.Timeouts.Read},
	}}
}
