package enginetest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"
)

const (
	typeJSON     = "application/json; charset=utf-8" // as Ollama's own handlers
	typeBareJSON = "application/json"                // as its /v1 writers
	typeNDJSON   = "application/x-ndjson"
	typeSSE      = "text/event-stream"
)

// decode reads the whole body into v; if it cannot, it has answered. An empty body is Ollama's
// "missing request body" on /api and "EOF" on /v1.
func (s *Server) decode(w http.ResponseWriter, r *http.Request, v any, errs failer) bool {
	buf, _ := s.buffers.Get().(*[]byte)
	if buf == nil {
		buf = new([]byte)
	}
	defer s.buffers.Put(buf)
	b := bytes.NewBuffer((*buf)[:0])
	_, err := b.ReadFrom(r.Body)
	*buf = b.Bytes()[:0]
	if err == nil && json.Unmarshal(b.Bytes(), v) != nil {
		err = json.NewDecoder(b).Decode(v) // slower; Ollama's, so it ignores what follows the value
	}
	switch {
	case err == nil:
		return true
	case errors.Is(err, io.EOF) && strings.HasPrefix(r.URL.Path, "/api/"):
		errs.fail(w, http.StatusBadRequest, "missing request body")
	default:
		errs.fail(w, http.StatusBadRequest, err.Error())
	}
	return false
}

// writeJSON answers as gin does. The client may be gone: there is nobody else to tell.
func writeJSON(w http.ResponseWriter, status int, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // all our answers marshal
	}
	writeBytes(w, status, typeJSON, b)
}

func writeBytes(w http.ResponseWriter, status int, contentType string, b []byte) {
	h := w.Header()
	h["Content-Type"] = []string{contentType}
	h["Content-Length"] = []string{strconv.Itoa(len(b))}
	w.WriteHeader(status)
	_, _ = w.Write(b)
}

func plain(w http.ResponseWriter, status int, text string) {
	writeBytes(w, status, "text/plain", []byte(text))
}

// keepAlive is Ollama's duration: a number of seconds or Go's notation, for ever if negative.
type keepAlive struct{ time.Duration }

func (d *keepAlive) UnmarshalJSON(b []byte) error {
	var v any
	if err := json.Unmarshal(b, &v); err != nil {
		return err
	}
	switch t := v.(type) {
	case float64:
		d.Duration = time.Duration(t * float64(time.Second))
	case string:
		var err error
		if d.Duration, err = time.ParseDuration(t); err != nil {
			return err
		}
	default:
		//lint:ignore ST1005 Ollama's text
		return fmt.Errorf("Unsupported type: '%T'", v)
	}
	if d.Duration < 0 {
		d.Duration = math.MaxInt64
	}
	return nil
}

// duration returns nil for a request that said nothing.
func (d *keepAlive) duration() *time.Duration {
	if d == nil {
		return nil
	}
	return &d.Duration
}

// texts is a string or a list of them.
type texts []string

func (t *texts) UnmarshalJSON(b []byte) error {
	var one string
	if json.Unmarshal(b, &one) == nil {
		if one != "" {
			*t = texts{one}
		}
		return nil
	}
	return json.Unmarshal(b, (*[]string)(t))
}

// sequences drops empty stop sequences.
func (t texts) sequences() []string {
	var out []string
	for _, s := range t {
		if s != "" {
			out = append(out, s)
		}
	}
	return out
}

func appendInt(b []byte, key string, n int64) []byte {
	return strconv.AppendInt(append(b, key...), n, 10)
}

// allowedCaller checks Host and Origin as Ollama does when it listens on loopback.
func allowedCaller(r *http.Request) bool {
	host := r.Host
	if u, err := url.Parse("//" + host); err == nil {
		host = u.Hostname()
	}
	if !localName(strings.ToLower(host)) {
		return false
	}
	origin := r.Header.Get("Origin")
	if origin == "" || origin == "http://"+r.Host || origin == "https://"+r.Host {
		return true
	}
	u, err := url.Parse(origin)
	if err != nil {
		return false
	}
	switch u.Scheme {
	case "http", "https":
		return u.Hostname() == "localhost" || u.Hostname() == "127.0.0.1" || u.Hostname() == "0.0.0.0"
	case "app", "file", "tauri", "vscode-webview", "vscode-file":
		return true
	}
	return false
}

func localName(host string) bool {
	if ip, err := netip.ParseAddr(host); err == nil {
		return ip.IsLoopback() || ip.IsPrivate() || ip.IsUnspecified()
	}
	return host == "" || host == "localhost" || strings.HasSuffix(host, ".localhost") ||
		strings.HasSuffix(host, ".local") || strings.HasSuffix(host, ".internal")
}
