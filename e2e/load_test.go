package e2e

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// load is an open loop of requests: they are sent at their times, whatever becomes of the others, but for
// those that come when more are on their way than a machine that keeps pace has in four seconds.
type load struct {
	rate    int // requests a second
	targets []string
	model   string
	tokens  int

	stop    chan struct{}
	running sync.WaitGroup
	sent    atomic.Int64
	skipped int
	on      atomic.Int64 // their way

	mu      sync.Mutex
	lost    []string // no byte of an answer reached the client, or an error did
	cut     []string // broke off after its first byte
	whole   int
	slowest time.Duration
}

// begin starts the load. Every other request streams.
func (l *load) begin() {
	l.stop = make(chan struct{})
	l.running.Go(func() {
		ticker := time.NewTicker(time.Second / time.Duration(l.rate))
		defer ticker.Stop()
		for i := 0; ; i++ {
			select {
			case <-l.stop:
				return
			case <-ticker.C:
				if l.on.Load() > int64(4*l.rate) {
					l.skipped++
					continue
				}
				l.sent.Add(1)
				l.on.Add(1)
				l.running.Go(func() { l.one(i); l.on.Add(-1) })
			}
		}
	})
}

// end stops the load, waits for the answers and reports.
func (l *load) end(t *testing.T) {
	t.Helper()
	close(l.stop)
	l.running.Wait()
	t.Logf("%d requests at %d/s (%d left out): %d whole, %d cut after their first byte, %d lost; slowest %v",
		l.sent.Load(), l.rate, l.skipped, l.whole, len(l.cut), len(l.lost), l.slowest.Round(time.Millisecond))
	for i, why := range l.lost {
		if i < 5 {
			t.Errorf("lost: %s", why)
		}
	}
	if l.whole < int(l.sent.Load())*9/10 {
		t.Errorf("only %d of %d requests were answered whole", l.whole, l.sent.Load())
	}
}

func (l *load) one(i int) {
	stream := i%2 == 0
	body := fmt.Sprintf(`{"model":%q,"prompt":"request %d","stream":%v,"options":{"num_predict":%d,"temperature":0}}`, l.model, i, stream, l.tokens)
	began := time.Now()
	got, err := complete(l.targets[i%len(l.targets)]+"/api/generate", body)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.slowest = max(l.slowest, time.Since(began))
	switch {
	case err == nil:
		l.whole++
	case got == 0:
		l.lost = append(l.lost, fmt.Sprintf("request %d: %v", i, err))
	default:
		l.cut = append(l.cut, err.Error())
	}
}

var errCut = errors.New("the answer ended without its last record")

// complete sends a generate request and reads its answer to the end; got is the bytes of a good
// answer that came.
func complete(url, body string) (got int, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, url, strings.NewReader(body))
	if err != nil {
		return 0, err
	}
	resp, err := loadClient.Do(r)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	switch {
	case resp.StatusCode != http.StatusOK:
		return 0, fmt.Errorf("status %d: %s", resp.StatusCode, text)
	case err != nil:
		return len(text), err
	case !bytes.Contains(text, []byte(`"done":true`)):
		return len(text), errCut
	}
	return len(text), nil
}

var loadClient = &http.Client{Transport: &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: 1024}}

// figures skips a test that measures, unless it runs without the race detector, and quietly.
func figures(t *testing.T) {
	t.Helper()
	if raceFlag != nil {
		t.Skip("measures: `make figures` runs it, without the race detector, after the other tests")
	}
}

func TestFiguresOfStreamsThroughARemoteNode(t *testing.T) {
	figures(t)
	c := form(t, fakeMember(t, "a"), fakeMember(t, "b", "m"))
	const streams, clients, tokens = 18_000, 64, 64
	var next, bad atomic.Int64
	var running sync.WaitGroup
	var mu sync.Mutex
	var problems []string
	began := time.Now()
	for range clients {
		running.Go(func() {
			for i := next.Add(1); i <= streams; i = next.Add(1) {
				if err := countStream(c[0].url, int(i), tokens); err != nil {
					bad.Add(1)
					mu.Lock()
					problems = append(problems, err.Error())
					mu.Unlock()
				}
			}
		})
	}
	running.Wait()
	took := time.Since(began)
	t.Logf("%d streams of %d tokens, %d clients, through a remote node: %d not whole, %.0f streams a second",
		streams, tokens, clients, bad.Load(), streams/took.Seconds())
	if bad.Load() > 0 {
		t.Errorf("%d of %d, such as %s", bad.Load(), streams, problems[0])
	}
}

// countStream reads a stream and wants every token as a record of its own, and the last record.
func countStream(url string, i, tokens int) error {
	body := fmt.Sprintf(`{"model":"m","prompt":"stream %d","options":{"num_predict":%d}}`, i, tokens)
	resp, err := loadClient.Post(url+"/api/generate", "application/json", strings.NewReader(body))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	records, last := 0, ""
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		last = lines.Text()
		records++
	}
	if lines.Err() != nil {
		return lines.Err()
	}
	if records != tokens+1 || !strings.Contains(last, `"done":true`) {
		return fmt.Errorf("stream %d has %d records, the last %s", i, records, last)
	}
	return nil
}
