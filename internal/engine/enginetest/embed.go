package enginetest

import (
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"strings"
	"time"
)

// EmbeddingLength is the number of dimensions of every embedding.
const EmbeddingLength = 64

//lint:ignore ST1005 llama-server's text
var errNoEmbeddings = errors.New("This server does not support embeddings. Start it with `--embeddings`")

type embedRequest struct {
	Model          string        `json:"model"`
	Input          any           `json:"input"`
	Prompt         string        `json:"prompt"`
	Truncate       *bool         `json:"truncate"`
	Dimensions     int           `json:"dimensions"`
	EncodingFormat string        `json:"encoding_format"`
	KeepAlive      *keepAlive    `json:"keep_alive"`
	Options        ollamaOptions `json:"options"`
}

// inputs returns the texts to embed; ok is false for anything but a string and a list of them.
func (r *embedRequest) inputs() (in []string, ok bool) {
	switch v := r.Input.(type) {
	case nil:
		return nil, true
	case string:
		if v == "" {
			return nil, true
		}
		return []string{v}, true
	case []any:
		for _, e := range v {
			s, ok := e.(string)
			if !ok {
				return nil, false
			}
			in = append(in, s)
		}
		return in, true
	}
	return nil, false
}

func (s *Server) apiEmbed(w http.ResponseWriter, r *http.Request) {
	errs := ollamaErrors{}
	var req embedRequest
	if !s.decode(w, r, &req, errs) {
		return
	}
	in, ok := req.inputs()
	if !ok {
		errs.fail(w, http.StatusBadRequest, "invalid input type")
		return
	}
	s.embed(w, r, &req, in, errs, typeJSON, func(vectors [][]float32, res *result) any {
		return struct {
			Model      string      `json:"model"`
			Embeddings [][]float32 `json:"embeddings"`
			Total      int64       `json:"total_duration,omitempty"`
			Load       int64       `json:"load_duration,omitempty"`
			Count      int         `json:"prompt_eval_count,omitempty"`
		}{req.Model, vectors, int64(res.total), int64(res.load), res.promptTokens}
	})
}

func (s *Server) apiEmbeddings(w http.ResponseWriter, r *http.Request) {
	errs := ollamaErrors{}
	var req embedRequest
	if !s.decode(w, r, &req, errs) {
		return
	}
	if req.Model == "" {
		errs.fail(w, http.StatusBadRequest, errNoName.Error())
		return
	}
	var in []string
	if req.Prompt != "" {
		in = []string{req.Prompt}
	}
	s.embed(w, r, &req, in, errs, typeJSON, func(vectors [][]float32, _ *result) any {
		v := []float32{}
		if len(vectors) > 0 {
			v = vectors[0]
		}
		return map[string][]float32{"embedding": v}
	})
}

func (s *Server) v1Embeddings(w http.ResponseWriter, r *http.Request) {
	errs := openaiErrors{}
	var req embedRequest
	if !s.decode(w, r, &req, errs) {
		return
	}
	format := strings.ToLower(req.EncodingFormat)
	if format != "" && format != "float" && format != "base64" {
		errs.fail(w, http.StatusBadRequest, fmt.Sprintf("Invalid value for 'encoding_format' = %s. Supported values: ['float', 'base64'].", req.EncodingFormat))
		return
	}
	if req.Input == "" {
		req.Input = []any{""}
	}
	in, ok := req.inputs()
	if !ok || len(in) == 0 {
		errs.fail(w, http.StatusBadRequest, "invalid input")
		return
	}
	s.embed(w, r, &req, in, errs, typeBareJSON, func(vectors [][]float32, res *result) any {
		type datum struct {
			Object    string `json:"object"`
			Embedding any    `json:"embedding"`
			Index     int    `json:"index"`
		}
		data := make([]datum, len(vectors))
		for i, v := range vectors {
			data[i] = datum{"embedding", v, i}
			if format == "base64" {
				data[i].Embedding = base64Floats(v)
			}
		}
		return map[string]any{
			"object": "list", "data": data, "model": req.Model,
			"usage": map[string]int{"prompt_tokens": res.promptTokens, "total_tokens": res.promptTokens},
		}
	})
}

// embed answers with the vectors of in, as shape wants them. It takes a slot, as Ollama does.
func (s *Server) embed(w http.ResponseWriter, r *http.Request, req *embedRequest, in []string, errs failer, contentType string, shape func([][]float32, *result) any) {
	m, err := s.catalog.find(req.Model)
	switch {
	case errors.Is(err, errBadName):
		errs.fail(w, http.StatusBadRequest, err.Error())
		return
	case errors.Is(err, errNoName):
		errs.fail(w, http.StatusNotFound, "model '' not found")
		return
	case err != nil:
		errs.fail(w, http.StatusNotFound, fmt.Sprintf("model %q not found, try pulling it first", req.Model))
		return
	}
	a := s.newAnswer(w, r, errs)
	defer a.close()
	s.finish(a, func() error {
		c := &call{
			model: m.Model, context: int(req.Options.NumCtx), keepAlive: req.KeepAlive.duration(),
			strictLen: req.Truncate != nil && !*req.Truncate,
		}
		vectors, res, err := s.vectors(a, c, in, req.Dimensions)
		if errors.Is(err, errNoEmbeddings) {
			errs.fail(w, http.StatusNotImplemented, err.Error())
			return nil
		}
		if err != nil {
			return err
		}
		b, err := json.Marshal(shape(vectors, res))
		if err != nil {
			panic(err) // the vectors are finite
		}
		if contentType == typeBareJSON {
			b = append(b, '\n')
		}
		return a.body(contentType, append((*a.buf)[:0], b...))
	}())
}

// vectors embeds in, one text after the other, in one slot.
func (s *Server) vectors(a *answer, c *call, in []string, dimensions int) ([][]float32, *result, error) {
	begin := time.Now()
	res := new(result)
	sl, err := s.slots.take(a.ctx, c.model.Digest, strings.Join(in, "\n"))
	if err != nil {
		return nil, nil, err
	}
	defer s.slots.give(sl)
	if err := a.gate(); err != nil {
		return nil, nil, err
	}
	l, err := s.load(a, c)
	if err != nil {
		return nil, nil, err
	}
	defer s.catalog.release(l, s.keepAlive(c.keepAlive))
	res.load = time.Since(begin)
	if !c.model.Embedding && len(in) > 0 {
		return nil, nil, errNoEmbeddings
	}
	limit := s.contextLength(c)
	out := make([][]float32, 0, len(in))
	for _, text := range in {
		n := Tokens(text)
		if n > limit {
			if c.strictLen {
				return nil, nil, errTooLong
			}
			text, n = lastTokens(text, limit), limit
		}
		if _, err := s.prefill(a, sl, c.model.Digest, text, n); err != nil {
			return nil, nil, err
		}
		res.promptTokens += n
		out = append(out, vector(newTextHash(s.cfg.Seed, c.model.Digest).write(text), dimensions))
	}
	if err := a.sleep(s.cfg.FirstToken, true); err != nil {
		return nil, nil, err
	}
	res.total = time.Since(begin)
	return out, res, nil
}

func base64Floats(v []float32) string {
	var b []byte
	for _, f := range v {
		b = binary.LittleEndian.AppendUint32(b, math.Float32bits(f))
	}
	return base64.StdEncoding.EncodeToString(b)
}

// vector returns the unit vector that belongs to a text, cut to dimensions if that is less.
func vector(h textHash, dimensions int) []float32 {
	if dimensions <= 0 || dimensions > EmbeddingLength {
		dimensions = EmbeddingLength
	}
	v := make([]float32, dimensions)
	var sum float64
	for i := range v {
		h = h.write("\x01")
		v[i] = h.unit()
		sum += float64(v[i]) * float64(v[i])
	}
	norm := float32(1 / max(math.Sqrt(sum), 1e-12))
	for i := range v {
		v[i] *= norm
	}
	return v
}

// v1Transcriptions takes audio as multipart and answers with words made of all its bytes.
func (s *Server) v1Transcriptions(w http.ResponseWriter, r *http.Request) {
	errs := openaiErrors{}
	if err := r.ParseMultipartForm(25 << 20); err != nil {
		errs.fail(w, http.StatusBadRequest, "failed to parse multipart form: "+err.Error())
		return
	}
	model := r.FormValue("model")
	if model == "" {
		errs.fail(w, http.StatusBadRequest, errNoName.Error())
		return
	}
	file, header, err := r.FormFile("file")
	if err != nil {
		errs.fail(w, http.StatusBadRequest, "file is required: "+err.Error())
		return
	}
	defer file.Close()
	audio := make([]byte, header.Size)
	if _, err := io.ReadFull(file, audio); err != nil || len(audio) == 0 {
		errs.fail(w, http.StatusBadRequest, "audio file is empty")
		return
	}
	m, ok := s.chatModel(w, errs, model)
	if !ok {
		return
	}
	c := &call{model: m.Model, asked: model, limit: -1, images: []string{base64.StdEncoding.EncodeToString(audio)}}
	if !s.capable(w, errs, c, "chat", think{}, nil) {
		return
	}
	c.text, _ = s.template(c).render([]message{{Role: "system", Content: "Transcribe the audio exactly as spoken." + r.FormValue("prompt")}}, nil)
	s.generate(w, r, c, transcription{text: r.FormValue("response_format") == "text"})
}

// transcription is the dialect of /v1/audio/transcriptions, which is never streamed.
type transcription struct {
	openaiErrors
	text bool
}

func (t transcription) contentTypes() (stream, whole string) {
	if t.text {
		return "", "text/plain"
	}
	return "", typeBareJSON
}

func (t transcription) piece(b []byte, _, _ string) []byte { return b }

func (t transcription) thought(b []byte, _, _ string) []byte { return b }

func (t transcription) called(b []byte, _ *toolCall) []byte { return b }

func (t transcription) end(b []byte, _ *result) []byte { return b }

func (t transcription) whole(b []byte, s said, _ *result) []byte {
	text := strings.TrimSpace(s.content)
	if t.text {
		return append(b, text...)
	}
	return append(append(append(b, `{"text":"`...), quoted(text)...), "\"}\n"...)
}
