package e2e

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// sayNothing opens n connections that send what is given, and no more, from an address of their own,
// so that the ports of other tests' connections stay free. It returns how many the node has ended.
func sayNothing(t *testing.T, node string, n int, text string) (ended func() int) {
	t.Helper()
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if limit.Cur = limit.Max; syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit) != nil || limit.Cur < uint64(n)+2000 {
		t.Fatalf("%d connections need more open files than %d: raise ulimit -n", n, limit.Cur)
	}
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}, Timeout: 20 * time.Second}
	conns := make([]net.Conn, n)
	var dialing sync.WaitGroup
	for worker := range 32 {
		dialing.Go(func() {
			for i := worker; i < n; i += 32 {
				conn, err := dialer.DialContext(t.Context(), "tcp", strings.TrimPrefix(node, "http://"))
				if err != nil {
					t.Errorf("connection %d: %v", i, err)
					return
				}
				conns[i] = conn
				_, _ = io.WriteString(conn, text) // it may be ended already
			}
		})
	}
	dialing.Wait()
	t.Cleanup(func() {
		for _, conn := range conns {
			if conn != nil {
				conn.Close()
			}
		}
	})
	over := make([]bool, n)
	return func() (count int) {
		for i, conn := range conns {
			if conn != nil && !over[i] {
				over[i] = hasEnded(t, conn.(*net.TCPConn))
			}
			if over[i] {
				count++
			}
		}
		return count
	}
}

// hasEnded tells, without waiting, whether the other side has ended a connection.
func hasEnded(t *testing.T, conn *net.TCPConn) (ended bool) {
	t.Helper()
	raw, err := conn.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	piece := make([]byte, 1024)
	err = raw.Read(func(fd uintptr) bool {
		for {
			n, _, err := syscall.Recvfrom(int(fd), piece, syscall.MSG_DONTWAIT)
			if n <= 0 || err != nil {
				ended = !errors.Is(err, syscall.EAGAIN)
				return true
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return ended
}

func TestTenThousandConnectionsThatSendNothingKeepNobodyOut(t *testing.T) {
	const many = 10_000
	pace := time.Duration(1 + 3*len(raceFlag)) // with the race detector all takes longer
	header := pace * 10 * time.Second          // the default
	m := fakeMember(t, "a", "m")
	m.args = append(m.args, "--config", configured(t, fmt.Sprintf("gateway: {timeouts: {header: %v}}\n", header)))
	form(t, m)
	ask(t, "POST", m.url+"/api/generate", `{"model":"m","prompt":"warm","stream":false}`)
	before, memory := goroutines(t, m.url), resident(t, m.program)
	began := time.Now()
	nothing, little := sayNothing(t, m.url, many/2, ""), sayNothing(t, m.url, many/2, "POST /api/generate HTTP/1.1\r\nHost: loc")
	opened := time.Since(began)
	if opened > header {
		t.Fatalf("opening them took %v: they are not open at once", opened)
	}
	var slowest time.Duration
	var highest int64
	var most float64
	eventually(t, header+20*time.Second, "all of them are closed", func() bool {
		asked := time.Now()
		body := `{"model":"m","prompt":"hello","stream":false,"options":{"num_predict":8}}`
		fresh := dial(t, m.url, post("/api/generate", len(body), body)) // not one that was open before
		if status, text, err := answerOn(fresh, 20*time.Second); err != nil || status != http.StatusOK {
			t.Fatalf("a real client: %d %s %v", status, text, err)
		}
		fresh.Close()
		slowest = max(slowest, time.Since(asked))
		highest = max(highest, resident(t, m.program)-memory)
		most = max(most, goroutines(t, m.url)-before)
		return nothing()+little() == many
	})
	t.Logf("%d connections opened in %v, all closed after %v; %.1f KB and %.2f goroutines each; a real client waited %v at most",
		many, opened.Round(time.Millisecond), time.Since(began).Round(time.Millisecond), float64(highest)/many/1e3, most/many, slowest.Round(time.Millisecond))
	if slowest > pace*5*time.Second {
		t.Errorf("a real client waited %v", slowest)
	}
	if most < many*0.9 {
		t.Errorf("at most %v of them were open at once: this tests too little", most)
	}
	perConnection := int64(60_000)
	if raceFlag != nil { // the detector keeps a shadow of all memory and stacks
		perConnection = 200_000
	}
	if highest > many*perConnection || most > 1.1*many {
		t.Errorf("memory grew by %d bytes, goroutines by %v", highest, most)
	}
	eventually(t, 20*time.Second, "nothing is left of them", func() bool { return goroutines(t, m.url) < before+10 })
}

func TestConnectionsThatSendNothingDoNotTakeEveryPlace(t *testing.T) {
	t.Parallel()
	const places, header = 200, 3 * time.Second
	m := fakeMember(t, "a", "m")
	m.args = append(m.args, "--config", configured(t, "api: {max_connections: "+strconv.Itoa(places)+"}\ngateway: {timeouts: {header: "+header.String()+"}}\n"))
	form(t, m)
	client.CloseIdleConnections()
	sayNothing(t, m.url, 10*places, "")
	began := time.Now()
	body := `{"model":"m","prompt":"hello","stream":false,"options":{"num_predict":8}}`
	conn := dial(t, m.url, post("/api/generate", len(body), body))
	if status, text, err := answerOn(conn, time.Minute); err != nil || status != http.StatusOK {
		t.Fatalf("a real client: %d %s %v after %v", status, text, err, time.Since(began))
	}
	if waited := time.Since(began); waited > header+2*time.Second {
		t.Errorf("a real client waited %v, longer than connections that send nothing may stay (%v)", waited.Round(time.Millisecond), header)
	}
}
