package node

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"
)

func TestSilentConnectionsMakeRoomForThoseThatAsk(t *testing.T) {
	c := newConnections(10)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{ConnState: c.changed, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "ok") })}
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(func() { _ = server.Shutdown(context.WithoutCancel(t.Context())) })
	dial := func() net.Conn {
		conn, err := net.Dial("tcp", listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return conn
	}
	var silent []net.Conn
	for range 40 {
		silent = append(silent, dial())
		asking := dial()
		fmt.Fprint(asking, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
		resp, err := http.ReadResponse(bufio.NewReader(asking), nil)
		if err != nil {
			t.Fatalf("a client that asks was turned away beside %d that say nothing: %v", len(silent), err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
	}
	closed := 0
	for _, conn := range silent[:30] {
		if _, err := conn.Read(make([]byte, 1)); err != nil {
			closed++
		}
	}
	if closed != 30 {
		t.Errorf("of the 30 that were silent for longest %d were closed", closed)
	}
}

func TestEachThatComesTooManyMakesRoomEvenBeforeTheServerNotices(t *testing.T) {
	c := newConnections(2)
	var ours, theirs []net.Conn
	for range 5 {
		a, b := net.Pipe()
		ours, theirs = append(ours, a), append(theirs, b)
		c.changed(a, http.StateNew)
	}
	for i, conn := range theirs {
		if i >= 3 {
			_ = ours[i].Close()
			continue
		}
		if _, err := conn.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("connection %d: %v", i, err)
		}
	}
	for _, conn := range ours {
		c.changed(conn, http.StateClosed)
	}
	if n := c.open.Load(); n != 0 {
		t.Errorf("%d are counted when none is open", n)
	}
}
