package control

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"github.com/ollamamax/ollamamax/internal/api"
)

// patience is how long a client may take to accept a record of a stream, or a piece of another answer.
const patience = time.Minute

// download has the cluster want a model, and tells of its way if the client asks for that.
func (c *Control) download(w http.ResponseWriter, r *http.Request) {
	var wish api.Download
	r.Body = http.MaxBytesReader(w, r.Body, maxBody)
	name, err := modelOf(r)
	if err == nil {
		err = decode(r, &wish)
	}
	if err == nil {
		wish.Nodes, err = c.ids(wish.Nodes)
	}
	if err != nil {
		c.failWith(w, err)
		return
	}
	if !wish.Stream {
		if err := c.deps.Pull(r.Context(), name, wish, nil); err != nil {
			c.failWith(w, err)
			return
		}
		m, _ := c.find(name)
		reply(w, http.StatusAccepted, m)
		return
	}
	s := &stream{w: w, control: http.NewResponseController(w)}
	err = c.deps.Pull(r.Context(), name, wish, s.write)
	switch {
	case err == nil:
		s.begin()
	case !s.begun:
		c.failWith(w, err)
		return
	default:
		_, e := explain(err)
		if last, err := json.Marshal(c.body(e)); err == nil { // our own types always marshal
			_ = s.write(last) // a client that is gone has no use for it
		}
	}
	_ = s.control.SetWriteDeadline(time.Time{}) // the connection is kept
}

// stream is an answer of records, a line each. Until the first one it may still become another answer.
type stream struct {
	w       http.ResponseWriter
	control *http.ResponseController
	begun   bool
}

func (s *stream) begin() {
	if !s.begun {
		s.begun = true
		s.w.Header().Set("Content-Type", "application/x-ndjson")
		s.w.WriteHeader(http.StatusOK)
	}
}

// write sends a record at once.
func (s *stream) write(record []byte) error {
	s.begin()
	_ = s.control.SetWriteDeadline(time.Now().Add(patience)) // a connection that cannot have one has none
	line := append(bytes.TrimRight(bytes.Clone(record), "\n"), '\n')
	if _, err := s.w.Write(line); err != nil {
		return fmt.Errorf("tell client of progress: %w", err)
	}
	if err := s.control.Flush(); err != nil {
		return fmt.Errorf("tell client of progress: %w", err)
	}
	return nil
}
