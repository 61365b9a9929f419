package load

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// server answers every request on in-memory connections with what serve writes.
type server struct {
	dialled atomic.Int64
	serve   func(n int64, w io.Writer) error // n counts requests from 1; an error closes the connection
	asked   atomic.Int64
	running sync.WaitGroup
}

// test runs f with a server and its pool, in a bubble, and waits until the server's side has ended too.
func (s *server) test(t *testing.T, f func(*testing.T, *Pool)) {
	synctest.Test(t, func(t *testing.T) {
		p := s.pool()
		f(t, p)
		p.Close()
		s.running.Wait()
	})
}

// pool returns a pool whose clock is the bubble's.
func (s *server) pool() *Pool {
	p := NewPool(Target{Request: NewRequest("fake", "/", []byte("{}"))})
	p.sleep = func(at time.Time) { time.Sleep(time.Until(at)) }
	p.dial = func(context.Context) (*Conn, error) {
		s.dialled.Add(1)
		client, server := net.Pipe()
		s.running.Go(func() {
			defer server.Close()
			for br := bufio.NewReader(server); ; {
				r, err := http.ReadRequest(br)
				if err != nil {
					return
				}
				if _, err := io.Copy(io.Discard, r.Body); err != nil || s.serve(s.asked.Add(1), server) != nil {
					return
				}
			}
		})
		return NewConn(client), nil
	}
	return p
}

const whole = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

// after answers whole when d has passed.
func after(d time.Duration) func(int64, io.Writer) error {
	return func(_ int64, w io.Writer) error {
		time.Sleep(d)
		_, err := io.WriteString(w, whole)
		return err
	}
}

func TestAClosedLoopCountsWhatEndsInItsWindow(t *testing.T) {
	s := &server{serve: after(10 * time.Millisecond)}
	s.test(t, func(t *testing.T, p *Pool) {
		var marks []time.Time
		ph := Phases{Warm: 95 * time.Millisecond, Window: time.Second, Mark: func(bool) { marks = append(marks, time.Now()) }}
		for range 2 {
			r := p.Closed(t.Context(), 4, ph)
			if err := r.Err(); err != nil {
				t.Fatal(err)
			}
			if r.Done != 400 || r.PerSecond() != 400 || len(r.First) != 400 {
				t.Errorf("%d answers, %v a second, %d times; want 400", r.Done, r.PerSecond(), len(r.First))
			}
			if got := Quantile(r.First, 1); got != float64(10*time.Millisecond) {
				t.Errorf("the slowest first byte took %v", time.Duration(got))
			}
		}
		if n := s.dialled.Load(); n != 4 {
			t.Errorf("%d connections for 4 clients", n)
		}
		if len(marks) != 4 || marks[1].Sub(marks[0]) != time.Second {
			t.Errorf("windows marked at %v", marks)
		}
	})
}

func TestAClosedLoopCutsOffWhatTakesTooLong(t *testing.T) {
	s := &server{serve: after(time.Hour)}
	s.test(t, func(t *testing.T, p *Pool) {
		began := time.Now()
		r := p.Closed(t.Context(), 3, Phases{Window: time.Second})
		if took := time.Since(began); took != time.Second+grace {
			t.Errorf("it took %v", took)
		}
		if r.Done != 0 || r.Failed != 0 || r.Err() == nil {
			t.Errorf("%+v, error %v", r, r.Err())
		}
		if len(p.idle) != 0 {
			t.Error("a connection with half an answer is used again")
		}
	})
}

func TestFailuresAreCountedAndTheFirstIsTold(t *testing.T) {
	s := &server{serve: func(n int64, w io.Writer) error {
		if n%2 == 0 {
			return errors.New("gone")
		}
		return after(10*time.Millisecond)(n, w)
	}}
	s.test(t, func(t *testing.T, p *Pool) {
		r := p.Closed(t.Context(), 1, Phases{Window: time.Second})
		if r.Done < 40 || r.Failed < 40 || !errors.Is(r.Err(), io.EOF) {
			t.Errorf("%d done, %d failed, error %v", r.Done, r.Failed, r.Err())
		}
	})
}

func TestAnOpenLoopKeepsItsRateAndCountsFromTheTimeToSend(t *testing.T) {
	s := &server{serve: after(30 * time.Millisecond)}
	s.test(t, func(t *testing.T, p *Pool) {
		p.sleep = func(at time.Time) { time.Sleep(time.Until(at.Add(time.Millisecond))) } // a late sender
		r := p.Rate(t.Context(), 100, Phases{Warm: 100 * time.Millisecond, Window: time.Second})
		if err := r.Err(); err != nil {
			t.Fatal(err)
		}
		if r.Done != 100 || len(r.First) != 100 {
			t.Errorf("%d answers, %d times; want 100", r.Done, len(r.First))
		}
		if got := Quantile(r.First, 0.5); got != float64(31*time.Millisecond) {
			t.Errorf("median %v", time.Duration(got))
		}
	})
}

func TestAnOpenLoopTellsOfAnswersThatNeverCame(t *testing.T) {
	s := &server{serve: after(time.Hour)}
	s.test(t, func(t *testing.T, p *Pool) {
		r := p.Rate(t.Context(), 100, Phases{Window: time.Second})
		if r.Done != 0 || len(r.First) != 100 || Quantile(r.First, 1) < float64(time.Second) || r.Failed != 0 {
			t.Errorf("%d done, %d times, %d failed", r.Done, len(r.First), r.Failed)
		}
	})
}

func TestAnOpenLoopCountsBrokenConnections(t *testing.T) {
	s := &server{serve: func(int64, io.Writer) error { return errors.New("gone") }}
	s.test(t, func(t *testing.T, p *Pool) {
		r := p.Rate(t.Context(), 100, Phases{Window: time.Second})
		if r.Failed != 100 || !errors.Is(r.Failure, io.EOF) {
			t.Errorf("%d failed, the first %v", r.Failed, r.Failure)
		}
	})
}

// tokens streams a line a second, n in all.
func tokens(n int) func(int64, io.Writer) error {
	return func(_ int64, w io.Writer) error {
		_, err := io.WriteString(w, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
		for i := 0; i < n && err == nil; i++ {
			_, err = io.WriteString(w, "2\r\nx\n\r\n")
			time.Sleep(time.Second)
		}
		if err == nil {
			_, err = io.WriteString(w, "0\r\n\r\n")
		}
		return err
	}
}

func TestHeldStreamsAreOpenAtOnce(t *testing.T) {
	s := &server{serve: tokens(3600)}
	s.test(t, func(t *testing.T, p *Pool) {
		h, err := p.Hold(t.Context(), 20, time.Second, time.Second)
		if err != nil {
			t.Fatal(err)
		}
		before := h.Lines()
		time.Sleep(10 * time.Second)
		if got := h.Lines() - before; got != 200 {
			t.Errorf("%d lines in 10 s of 20 streams, want 200", got)
		}
		if err := h.Err(); err != nil {
			t.Error(err)
		}
		h.Close()
	})
}

func TestStreamsThatEndOrNeverBeginAreErrors(t *testing.T) {
	for name, serve := range map[string]func(int64, io.Writer) error{
		"ends": tokens(1), "never begins": after(time.Hour), "breaks": func(int64, io.Writer) error { return errors.New("gone") },
	} {
		t.Run(name, func(t *testing.T) {
			s := &server{serve: serve}
			s.test(t, func(t *testing.T, p *Pool) {
				h, err := p.Hold(t.Context(), 2, time.Second, 5*time.Second)
				if err == nil {
					time.Sleep(5 * time.Second)
					err = h.Err()
					h.Close()
				}
				if err == nil {
					t.Error("no error")
				}
			})
		})
	}
}
