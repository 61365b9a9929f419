package socket

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// pair is both ends of a connection over loopback, made ours by the function.
func pair(t *testing.T, ours func(net.Conn) net.Conn) (a, b net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	near, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	far, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { near.Close(); far.Close() })
	return ours(near), ours(far)
}

func TestWhatGoesInComesOut(t *testing.T) {
	a, b := pair(t, Direct)
	var want bytes.Buffer
	for _, size := range []int{1, 0, 100, most - 1, most, most + 1, 5 << 20} {
		want.Write(bytes.Repeat([]byte{byte(size), byte(size >> 8), 7}, size/3+1))
	}
	text := want.Bytes()
	var sending sync.WaitGroup
	sending.Go(func() {
		for rest, size := text, 1; len(rest) > 0; size = size*3 + 1 {
			n, err := a.Write(rest[:min(size, len(rest))])
			if err != nil {
				t.Error(err)
				return
			}
			rest = rest[n:]
		}
		a.Close()
	})
	got, err := io.ReadAll(b)
	sending.Wait()
	if err != nil || !bytes.Equal(got, text) {
		t.Errorf("%d bytes went in, %d came out: %v", len(text), len(got), err)
	}
}

func TestPiecesOfSeveralWritersStayWhole(t *testing.T) {
	a, b := pair(t, Direct)
	var writers sync.WaitGroup
	for i := range 8 {
		writers.Go(func() {
			line := strings.Repeat(string(rune('a'+i)), 9999+i*20_000) + "\n" // small ones and large ones
			for range 20 {
				if _, err := io.WriteString(a, line); err != nil {
					t.Error(err)
				}
			}
		})
	}
	go func() { writers.Wait(); a.Close() }()
	all, err := io.ReadAll(b)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSuffix(string(all), "\n"), "\n")
	if len(lines) != 160 {
		t.Fatalf("%d lines", len(lines))
	}
	for _, line := range lines {
		if want := 9999 + int(line[0]-'a')*20_000; len(line) != want || strings.Trim(line, line[:1]) != "" {
			t.Fatalf("a line of %d bytes begins with %.20q, want %d of one kind", len(line), line, want)
		}
	}
}

// errorsOf makes a connection fail in every way, and says what its user is told.
func errorsOf(t *testing.T, ours func(net.Conn) net.Conn) (told []string) {
	tell := func(what string, n int, err error) {
		var op *net.OpError
		var timeout net.Error
		isOp, isTimeout := errors.As(err, &op), errors.As(err, &timeout) && timeout.Timeout()
		name := ""
		if isOp {
			name = fmt.Sprint(op.Op, " ", op.Net, " ", op.Err)
		}
		told = append(told, fmt.Sprint(what, ": ", n, " ", name, " timeout ", isTimeout, " deadline ", errors.Is(err, os.ErrDeadlineExceeded),
			" closed ", errors.Is(err, net.ErrClosed), " eof ", err == io.EOF))
	}
	buf := make([]byte, 10)
	a, b := pair(t, ours)
	_ = a.SetReadDeadline(time.Unix(1, 0))
	n, err := a.Read(buf)
	tell("read past its deadline", n, err)
	_ = a.SetReadDeadline(time.Time{})
	_ = a.SetWriteDeadline(time.Unix(1, 0))
	n, err = a.Write(buf)
	tell("write past its deadline", n, err)
	_ = a.SetWriteDeadline(time.Now().Add(50 * time.Millisecond))
	for err = nil; err == nil; { // until nothing more fits between the two
		_, err = a.Write(make([]byte, 1000))
	}
	tell("write to who does not read", 0, err)
	waiting := make(chan error)
	go func() { _, err := b.(interface{ Read([]byte) (int, error) }).Read(make([]byte, 0)); waiting <- err }()
	tell("read nothing", 0, <-waiting)

	a, b = pair(t, ours)
	go func() { _, err := a.Read(make([]byte, 10)); waiting <- err }()
	_ = a.SetReadDeadline(time.Unix(1, 0)) // as net/http wakes a reader
	tell("woken by a deadline", 0, <-waiting)
	_ = a.SetReadDeadline(time.Time{})
	go func() { _, err := a.Read(make([]byte, 10)); waiting <- err }()
	_ = a.Close()
	tell("closed while it reads", 0, <-waiting)
	n, err = a.Write(buf)
	tell("write when closed", n, err)
	n, err = b.Read(buf)
	tell("the other side has ended", n, err)

	a, b = pair(t, ours)
	inner := a
	if d, ok := a.(interface{ SetLinger(int) error }); ok {
		_ = d.SetLinger(0)
	}
	_ = inner.Close() // resets it
	n, err = b.Read(buf)
	tell("the other side has reset it", n, err)
	n, err = b.Write(buf)
	tell("write to who has reset it", n, err)
	return told
}

func TestErrorsAreThoseOfPackageNet(t *testing.T) {
	ours, theirs := errorsOf(t, Direct), errorsOf(t, func(c net.Conn) net.Conn { return c })
	for i := range theirs {
		if ours[i] != theirs[i] {
			t.Errorf("%s\nwant\n%s", ours[i], theirs[i])
		}
	}
}

func TestACallAllocatesNothing(t *testing.T) {
	a, b := pair(t, Direct)
	if b == nil || a == nil {
		t.Fatal("no connection")
	}
	buf := make([]byte, 100)
	if n := testing.AllocsPerRun(100, func() {
		if _, err := a.Write(buf); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(b, buf); err != nil {
			t.Fatal(err)
		}
	}); n > 0 {
		t.Errorf("a write and a read allocate %v times", n)
	}
}
