package enginetest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// FaultKind names what goes wrong.
type FaultKind string

const (
	// FaultNone is the absence of a fault.
	FaultNone FaultKind = "none"
	// FaultError500 answers 500 in the request's dialect. In mid-stream it is what Ollama does when
	// its runner dies: an {"error"} line on /api, an empty chunk and a clean end on
	// /v1/chat/completions and /v1/completions, just a clean end on /v1/messages and /v1/responses.
	FaultError500 FaultKind = "error500"
	// FaultRefuse closes the connection with a reset before the request is read. Without a Path it
	// applies to every route. A listener from Server.Listener refuses the connection itself.
	FaultRefuse FaultKind = "refuse"
	// FaultReset resets the connection.
	FaultReset FaultKind = "reset"
	// FaultTruncate ends the answer cleanly without its terminal record.
	FaultTruncate FaultKind = "truncate"
	// FaultFreeze sends nothing more until the fault is cleared or replaced or the client goes
	// away. The slot stays taken.
	FaultFreeze FaultKind = "freeze"
	// FaultSlow multiplies all delays by Factor and adds Delay to each piece.
	FaultSlow FaultKind = "slow"
	// FaultGarbage sends bytes that are no record, then ends the answer cleanly.
	FaultGarbage FaultKind = "garbage"
	// FaultEndless sends a line without an end, as fast as the client takes it, until the client goes
	// away or has had 64 MiB.
	FaultEndless FaultKind = "endless"
	// FaultTwice sends the terminal record of an answer twice, then one more piece; an answer that is
	// not streamed is sent twice. It has no After.
	FaultTwice FaultKind = "twice"
	// FaultBusy refuses with 503 before anything else happens, and with Retry-After if Delay is
	// at least a second. It has no After.
	FaultBusy FaultKind = "busy"
)

// Fault is something that a server does wrong from now on, streams under way included.
type Fault struct {
	// Kind of the fault; empty is FaultNone.
	Kind FaultKind `json:"kind"`
	// After is how many pieces (of thinking or content, or calls; progress records for pull, push
	// and create) of an answer go out before the fault; 0 is before the status line. An answer that
	// is not streamed breaks in the middle of its body for every After above 0.
	After int `json:"after,omitempty"`
	// Factor of FaultSlow; values below 1 mean 1.
	Factor float64 `json:"factor,omitempty"`
	// Delay of FaultSlow, added to each piece, and of FaultBusy, for Retry-After; in JSON nanoseconds.
	Delay time.Duration `json:"delay,omitempty"`
	// Count is how many requests it hits, 0 for all until it is cleared.
	Count int `json:"count,omitempty"`
	// Path limits it to paths with this prefix. Empty means the inference routes only, so that
	// /api/version and /api/tags still answer, as they do when Ollama's runner hangs.
	Path string `json:"path,omitempty"`
}

// activeFault is a fault that is switched on.
type activeFault struct {
	Fault
	left atomic.Int64  // requests that it may still hit, if Count > 0
	off  chan struct{} // closed when it is replaced
}

// SetFault switches f on in place of the one before; the zero Fault clears it. What was frozen
// goes on.
func (s *Server) SetFault(f Fault) {
	var next *activeFault
	if f.Kind != "" && f.Kind != FaultNone {
		next = &activeFault{Fault: f, off: make(chan struct{})}
		next.left.Store(int64(f.Count))
	}
	if old := s.fault.Swap(next); old != nil {
		close(old.off)
	}
}

// Fault returns the fault that is switched on, or one of kind FaultNone.
func (s *Server) Fault() Fault {
	if f := s.fault.Load(); f != nil {
		return f.Fault
	}
	return Fault{Kind: FaultNone}
}

// take says whether the fault hits one more request.
func (f *activeFault) take() bool { return f.Count == 0 || f.left.Add(-1) >= 0 }

// inAnswer says whether the fault breaks an answer after After pieces.
func (f *activeFault) inAnswer() bool { return f.Kind != FaultSlow && f.Kind != FaultTwice }

// applies says whether the fault concerns a request, which is for an inference route or not.
func (f *activeFault) applies(path string, inference bool) bool {
	if f.Path != "" {
		return strings.HasPrefix(path, f.Path)
	}
	return inference
}

// busy refuses a request if FaultBusy says so.
func (s *Server) busy(w http.ResponseWriter, r *http.Request, inference bool) bool {
	f := s.fault.Load()
	if f == nil || f.Kind != FaultBusy || !f.applies(r.URL.Path, inference) || !f.take() {
		return false
	}
	s.count.faulted.Add(1)
	if seconds := int(f.Delay / time.Second); seconds > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(seconds))
	}
	s.errorsFor(r.URL.Path).fail(w, http.StatusServiceUnavailable, errQueueFull.Error())
	return true
}

// errorsFor returns the dialect of a path.
func (s *Server) errorsFor(path string) failer {
	switch {
	case s.cfg.Kind == KindLlamaServer:
		return llamaErrors{}
	case path == "/v1/messages":
		return anthropicErrors{}
	case strings.HasPrefix(path, "/v1/"):
		return openaiErrors{}
	}
	return ollamaErrors{}
}

// serveFault is POST /_fault (a Fault), GET and DELETE.
func (s *Server) serveFault(w http.ResponseWriter, r *http.Request) {
	switch r.Method {
	case http.MethodPost, http.MethodPut:
		var f Fault
		if err := json.NewDecoder(r.Body).Decode(&f); err != nil {
			writeJSON(w, http.StatusBadRequest, map[string]string{"error": err.Error()})
			return
		}
		if !f.Kind.valid() {
			writeJSON(w, http.StatusBadRequest, map[string]string{"error": fmt.Sprintf("unknown kind %q", f.Kind)})
			return
		}
		s.SetFault(f)
	case http.MethodDelete:
		s.SetFault(Fault{})
	}
	writeJSON(w, http.StatusOK, s.Fault())
}

func (k FaultKind) valid() bool {
	switch k {
	case "", FaultNone, FaultError500, FaultRefuse, FaultReset, FaultTruncate, FaultFreeze, FaultSlow, FaultGarbage,
		FaultEndless, FaultTwice, FaultBusy:
		return true
	}
	return false
}

// UnmarshalJSON takes Delay also as Go writes durations ("50ms"), and refuses unknown keys.
func (f *Fault) UnmarshalJSON(b []byte) error {
	type bare Fault
	v := struct {
		*bare
		Delay any `json:"delay"`
	}{bare: (*bare)(f)}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&v); err != nil {
		return err
	}
	switch d := v.Delay.(type) {
	case float64:
		f.Delay = time.Duration(d)
	case string:
		var err error
		if f.Delay, err = time.ParseDuration(d); err != nil {
			return err
		}
	}
	return nil
}

// Listener wraps l for a server's process form: while FaultRefuse without a Path is on, new
// connections are reset as soon as they are accepted. Serve /_fault on another listener then.
func (s *Server) Listener(l net.Listener) net.Listener { return refusing{l, s} }

type refusing struct {
	net.Listener
	s *Server
}

func (l refusing) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if f := l.s.fault.Load(); f == nil || f.Kind != FaultRefuse || f.Path != "" || !f.take() {
			return c, nil
		}
		reset(c)
	}
}

// abort resets the request's connection; what was written before goes out first.
func abort(w http.ResponseWriter) {
	rc := http.NewResponseController(w)
	c, _, err := rc.Hijack()
	if err != nil {
		panic(http.ErrAbortHandler) // not a connection of our own: net/http ends it as hard as it can
	}
	reset(c)
}

func reset(c net.Conn) {
	if l, ok := c.(interface{ SetLinger(int) error }); ok {
		_ = l.SetLinger(0) // fails only on a closed connection, which we want anyway
	}
	_ = c.Close()
}
