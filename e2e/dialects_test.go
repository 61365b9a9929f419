package e2e

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// recorder stands between a node and its engine and keeps the bytes of every answer, by request id.
type recorder struct {
	*httptest.Server
	mu      sync.Mutex
	answers map[string]*bytes.Buffer
}

func newRecorder(t *testing.T, engine string) *recorder {
	t.Helper()
	target, err := url.Parse(engine)
	if err != nil {
		t.Fatal(err)
	}
	rec := &recorder{answers: map[string]*bytes.Buffer{}}
	proxy := httputil.NewSingleHostReverseProxy(target)
	proxy.FlushInterval = -1
	proxy.Transport = &http.Transport{DisableKeepAlives: true, DisableCompression: true} // a llama-server hangs up after each stream
	proxy.ModifyResponse = func(resp *http.Response) error {
		id := resp.Request.Header.Get("X-Request-Id")
		resp.Body = &tee{resp.Body, rec, id}
		return nil
	}
	rec.Server = httptest.NewServer(proxy)
	t.Cleanup(rec.Close)
	return rec
}

type tee struct {
	io.ReadCloser
	rec *recorder
	id  string
}

func (t *tee) Read(p []byte) (int, error) {
	n, err := t.ReadCloser.Read(p)
	t.rec.mu.Lock()
	defer t.rec.mu.Unlock()
	if t.rec.answers[t.id] == nil {
		t.rec.answers[t.id] = &bytes.Buffer{}
	}
	t.rec.answers[t.id].Write(p[:n])
	return n, err
}

func (rec *recorder) answer(id string) string {
	rec.mu.Lock()
	defer rec.mu.Unlock()
	if b := rec.answers[id]; b != nil {
		return b.String()
	}
	return ""
}

// masks are what differs when Ollama is asked the same thing twice: ids, times, durations.
var masks = []*regexp.Regexp{
	regexp.MustCompile(`"(created_at|modified_at|expires_at)":"[^"]*"`),
	regexp.MustCompile(`"(created|completed_at|total_duration|load_duration|prompt_eval_duration|eval_duration|created_at)":\d+`),
	regexp.MustCompile(`(chatcmpl-|cmpl-|resp_|msg_|req_|rs_|item_)[0-9a-zA-Z_]+`),
}

func masked(s string) string {
	for _, m := range masks {
		s = m.ReplaceAllString(s, "…")
	}
	return s
}

// inference is a request of every kind that an engine answers.
var inference = []struct{ name, path, body string }{
	{"generate", "/api/generate", `{"model":"noise","prompt":"The sea","options":{"temperature":0,"num_predict":24}%s}`},
	{"generate raw", "/api/generate", `{"model":"noise","prompt":"The sea","raw":true,"options":{"temperature":0,"num_predict":24}%s}`},
	{"chat", "/api/chat", `{"model":"noise","messages":[{"role":"user","content":"Hello"}],"options":{"temperature":0,"num_predict":24}%s}`},
	{"openai chat", "/v1/chat/completions", `{"model":"noise","messages":[{"role":"user","content":"Hello"}],"temperature":0,"seed":1,"max_tokens":24%s}`},
	{"openai completion", "/v1/completions", `{"model":"noise","prompt":"The sea","temperature":0,"seed":1,"max_tokens":24%s}`},
	{"openai responses", "/v1/responses", `{"model":"noise","input":"Hello","temperature":0,"max_output_tokens":24%s}`},
	{"anthropic messages", "/v1/messages", `{"model":"noise","messages":[{"role":"user","content":"Hello"}],"temperature":0,"max_tokens":24%s}`},
	{"embed", "/api/embed", `{"model":"embed","input":["one","two"]%s}`},
	{"embeddings", "/api/embeddings", `{"model":"embed","prompt":"one"%s}`},
	{"openai embeddings", "/v1/embeddings", `{"model":"embed","input":"one"%s}`},
	{"show", "/api/show", `{"model":"noise"%s}`},
	{"unknown option", "/api/generate", `{"model":"noise","prompt":"x","options":{"temperature":0,"num_predict":4},"a new field":{"of":"tomorrow"}%s}`},
	{"wrong type", "/api/generate", `{"model":"noise","prompt":7%s}`},
}

func TestAnswersAreTheBytesOfTheirEngine(t *testing.T) {
	t.Parallel()
	engine := startOllama(t, "noise", "embed")
	rec := newRecorder(t, engine)
	near := &member{name: "node", dataDir: filepath.Join(t.TempDir(), "near"), args: []string{"--engine-url", rec.URL}}
	far := &member{name: "far", dataDir: filepath.Join(t.TempDir(), "far"), args: []string{"--engine-url", "http://" + freeAddr(t)}}
	near.start(t)
	near.up(t)
	far.start(t, "--join", newToken(t, near))
	far.up(t)
	t.Run("its own node", func(t *testing.T) { compareAnswers(t, rec, engine, near.url) })
	t.Run("another node", func(t *testing.T) { compareAnswers(t, rec, engine, far.url) })

	// The control: the comparison sees one changed byte of the prompt.
	_, a := ask(t, "POST", near.url+"/api/generate", `{"model":"noise","prompt":"The sea","stream":false,"options":{"temperature":0,"num_predict":24}}`)
	_, b := ask(t, "POST", engine+"/api/generate", `{"model":"noise","prompt":"The sez","stream":false,"options":{"temperature":0,"num_predict":24}}`)
	if masked(a) == masked(b) {
		t.Error("the comparison cannot tell two prompts apart")
	}
}

// compareAnswers sends every kind of request through a node, and wants the bytes that the engine
// sent, and the answer that the engine gives when it is asked directly.
func compareAnswers(t *testing.T, rec *recorder, engine, node string) {
	for _, tc := range inference {
		for _, stream := range []string{"", `,"stream":true`, `,"stream":false`} {
			t.Run(strings.TrimSuffix(tc.name+" "+strings.TrimPrefix(stream, ","), " "), func(t *testing.T) {
				body := fmt.Sprintf(tc.body, stream)
				id := fmt.Sprintf("%s-%d", strings.ReplaceAll(t.Name(), "/", "-"), len(body))
				id = regexp.MustCompile(`[^a-zA-Z0-9-]`).ReplaceAllString(id, "")
				status, header, got := askHeader(t, "POST", node+tc.path, body, "X-Request-Id", id, "Content-Type", "application/json")
				if sent := rec.answer(id); got != sent || sent == "" {
					t.Errorf("the client received other bytes than the engine sent:\n%s", cmp.Diff(sent, got))
				}
				if header.Get("X-Ollamamax-Node") != "node" || header.Get("X-Request-Id") != id {
					t.Errorf("header %v: want the node's name and the client's request id", header)
				}
				directStatus, directHeader, direct := askHeader(t, "POST", engine+tc.path, body, "Content-Type", "application/json")
				if status != directStatus || header.Get("Content-Type") != directHeader.Get("Content-Type") {
					t.Errorf("status %d %q, directly %d %q", status, header.Get("Content-Type"), directStatus, directHeader.Get("Content-Type"))
				}
				if diff := cmp.Diff(masked(direct), masked(got)); diff != "" {
					t.Errorf("another answer than directly (-direct +through the node):\n%s", diff)
				}
			})
		}
	}
}

// audio is a transcription's form; the model's name stands behind the file.
func audio(model string) (contentType, body string) {
	return "multipart/form-data; boundary=x", "--x\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.wav\"\r\n\r\nRIFF....WAVEfmt \r\n" +
		"--x\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\n" + model + "\r\n--x--\r\n"
}

func TestAudioIsAnsweredAsOllamaAnswersIt(t *testing.T) {
	t.Parallel()
	engine := startOllama(t, "noise")
	_, node := startReadyNode(t, "--engine-url", engine)
	for _, model := range []string{"noise", "nope"} {
		contentType, body := audio(model)
		code, text := ask(t, "POST", node+"/v1/audio/transcriptions", body, "Content-Type", contentType)
		directCode, direct := ask(t, "POST", engine+"/v1/audio/transcriptions", body, "Content-Type", contentType)
		if code != directCode || masked(text) != masked(direct) {
			t.Errorf("%s: %d %s, directly %d %s", model, code, text, directCode, direct)
		}
		t.Logf("%s: %d %.200s", model, code, text)
	}
}

func TestBadInputIsAnsweredAsOllamaAnswersIt(t *testing.T) {
	t.Parallel()
	engine := startOllama(t, "noise")
	rec := newRecorder(t, engine)
	_, node := startReadyNode(t, "--engine-url", rec.URL)

	paths := []string{"/api/generate", "/api/chat", "/api/embed", "/api/embeddings", "/api/show", "/api/pull", "/api/push", "/api/create", "/api/copy",
		"/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses", "/v1/messages"}
	bodies := []string{``, `{}`, `{bad`, `[]`, `"text"`, `{"model":""}`, `{"model":"nope"`, `{"model":7}`,
		`{"messages":[{"role":"user","content":"x"}],"input":"x","max_tokens":3,"prompt":"x"}`,
		`{"model":"nope","messages":[{"role":"user","content":"x"}],"input":"x","max_tokens":3,"prompt":"x","source":"nope","destination":"b"}`,
		strings.Repeat("[", 1<<20), // deeper than any stack
		`{"MODEL":"noise","name":"other","messages":[{"role":"user","content":"x"}],"input":"x","max_tokens":3,"max_output_tokens":3,"prompt":"x","stream":false,"options":{"num_predict":3,"temperature":0},"temperature":0}`,
	}
	for _, path := range paths {
		for _, body := range bodies {
			if path == "/api/show" && strings.Contains(body, `"options"`) {
				continue // Ollama shows two parameters in any order
			}
			if path == "/api/pull" && strings.Contains(body, `no`) {
				continue // would ask a registry
			}
			t.Run(path+" "+body[:min(len(body), 30)], func(t *testing.T) {
				status, header, got := askHeader(t, "POST", node+path, body)
				directStatus, directHeader, direct := askHeader(t, "POST", engine+path, body)
				if status != directStatus || masked(got) != masked(direct) || header.Get("Content-Type") != directHeader.Get("Content-Type") {
					t.Errorf("%.200q:\n     got %d %s %q\ndirectly %d %s %q", body, status, header.Get("Content-Type"), got, directStatus, directHeader.Get("Content-Type"), direct)
				}
			})
		}
	}
	for _, tc := range []struct{ method, path string }{
		{"GET", "/api/chat"}, {"POST", "/api/tags"}, {"DELETE", "/api/chat"}, {"PUT", "/api/delete"}, {"HEAD", "/api/ps"},
		{"GET", "/nowhere"}, {"GET", "/api/nowhere"}, {"GET", "/v1/models/nope"}, {"HEAD", "/"}, {"GET", "/"}, {"HEAD", "/api/version"},
		{"GET", "/api/version"}, {"HEAD", "/api/tags"}, {"GET", "/api/status"}, {"GET", "/api/tags"}, {"GET", "/v1/models"}, {"GET", "/v1/models/noise"},
		{"POST", "/api/me"}, {"POST", "/api/signout"}, {"DELETE", "/api/user/keys/abc"},
		{"HEAD", "/api/blobs/sha256:" + strings.Repeat("0", 64)}, {"POST", "/api/blobs/nonsense"},
	} {
		t.Run(tc.method+" "+tc.path, func(t *testing.T) {
			status, got := ask(t, tc.method, node+tc.path, "")
			directStatus, direct := ask(t, tc.method, engine+tc.path, "")
			if status != directStatus || strings.TrimSpace(masked(got)) != strings.TrimSpace(masked(direct)) {
				t.Errorf("got %d %q, directly %d %q", status, got, directStatus, direct)
			}
		})
	}
}
