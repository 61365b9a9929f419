package load

import (
	"bytes"
	"io"
	"net"
	"strings"
	"testing"
)

// receive has the answers of a server that sends text and then closes.
func receive(t *testing.T, text string, sink io.Writer) (Answer, error) {
	t.Helper()
	client, server := net.Pipe()
	defer client.Close()
	go func() {
		defer server.Close()
		_, _ = io.WriteString(server, text) // fails when the client has read enough
	}()
	return NewConn(client).Receive(sink)
}

func TestAnswersAreReadWhole(t *testing.T) {
	for name, c := range map[string]struct {
		text, body string
		want       Answer
	}{
		"length":      {"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\na\nb\nrest", "a\nb\n", Answer{Status: 200, Bytes: 4, Lines: 2}},
		"chunks":      {"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\na\nb\r\nA;x=y\r\n123456789\n\r\n0\r\nTrailer: x\r\n\r\n", "a\nb123456789\n", Answer{Status: 200, Bytes: 13, Lines: 2}},
		"empty":       {"HTTP/1.1 503 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", "", Answer{Status: 503, Close: true}},
		"long pieces": {"HTTP/1.1 200 OK\r\nContent-Length: 10000\r\n\r\n" + strings.Repeat("123456789\n", 1000), strings.Repeat("123456789\n", 1000), Answer{Status: 200, Bytes: 10000, Lines: 1000}},
	} {
		t.Run(name, func(t *testing.T) {
			var body bytes.Buffer
			got, err := receive(t, c.text, &body)
			if err != nil {
				t.Fatal(err)
			}
			if got.First.IsZero() || got.End.Before(got.First) {
				t.Errorf("first byte at %v, end at %v", got.First, got.End)
			}
			got.First, got.End = c.want.First, c.want.End
			if got != c.want {
				t.Errorf("answer %+v, want %+v", got, c.want)
			}
			if body.String() != c.body {
				t.Errorf("body %.100q, want %.100q", body.String(), c.body)
			}
		})
	}
}

func TestBrokenAnswersAreErrors(t *testing.T) {
	for name, text := range map[string]string{
		"nothing":           "",
		"no HTTP":           "hello, this is no server\r\n\r\n",
		"no length":         "HTTP/1.1 200 OK\r\n\r\nbody",
		"negative length":   "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
		"cut body":          "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nab",
		"cut chunk":         "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nab",
		"no last chunk":     "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n",
		"bad chunk":         "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n",
		"chunk overflowing": "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n0\r\n\r\n",
		"endless header":    "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 2*bufferSize),
	} {
		t.Run(name, func(t *testing.T) {
			if a, err := receive(t, text, nil); err == nil {
				t.Errorf("no error, but %+v", a)
			}
		})
	}
}

func TestARefusalIsQuoted(t *testing.T) {
	a, err := receive(t, "HTTP/1.1 502 Bad\r\nContent-Length: 8\r\n\r\nno node!", nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := (Target{}).check(a); err == nil || err.Error() != "status 502 no node!" {
		t.Errorf("error %v", err)
	}
	if err := (Target{Lines: 2}).check(Answer{Status: 200, Lines: 1}); err == nil {
		t.Error("a line is missing, and there is no error")
	}
}
