package socket

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
)

// Direct returns the connection with short reads and writes; one that is not of TCP as it is.
func Direct(c net.Conn) net.Conn {
	tcp, ok := c.(*net.TCPConn)
	if !ok {
		return c
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return c // it is closed, and says so itself
	}
	d := &direct{TCPConn: tcp, raw: raw}
	d.in.call, d.out.call = d.in.read, d.out.write
	return d
}

type direct struct {
	*net.TCPConn
	raw     syscall.RawConn
	in, out half
}

// half is one direction of a connection.
type half struct {
	mu    sync.Mutex            // of the caller whose call this is
	call  func(fd uintptr) bool // made once, so that a call allocates nothing
	p     []byte
	n     int
	errno syscall.Errno
}

func (h *half) read(fd uintptr) bool  { return h.do(shortRead, fd) }
func (h *half) write(fd uintptr) bool { return h.do(shortWrite, fd) }

// do makes one system call. It returns false when the socket is not ready: the caller then waits for
// it, and calls again.
func (h *half) do(call func(fd uintptr, p []byte) (int, syscall.Errno), fd uintptr) bool {
	for {
		n, errno := call(fd, h.p)
		switch errno {
		case syscall.EINTR:
			continue
		case syscall.EAGAIN:
			return false
		}
		h.n, h.errno = n, errno
		return true
	}
}

// transfer makes a call for p and returns how much it moved. The caller holds mu.
func (h *half) transfer(p []byte, wait func(func(fd uintptr) bool) error) (int, error) {
	h.p = p
	err := wait(h.call)
	h.p = nil
	switch {
	case err != nil:
		return 0, err
	case h.errno != 0:
		return 0, h.errno
	}
	return h.n, nil
}

func (c *direct) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return c.TCPConn.Read(p)
	}
	c.in.mu.Lock()
	defer c.in.mu.Unlock()
	n, err := c.in.transfer(p[:min(len(p), most)], c.raw.Read)
	switch {
	case err != nil:
		return 0, c.failed("read", err)
	case n == 0:
		return 0, io.EOF
	}
	return n, nil
}

func (c *direct) Write(p []byte) (int, error) {
	c.out.mu.Lock() // over all of p, as in package net
	defer c.out.mu.Unlock()
	if len(p) > most {
		return c.TCPConn.Write(p)
	}
	for done := 0; ; {
		n, err := c.out.transfer(p[done:], c.raw.Write)
		if done += n; err != nil {
			return done, c.failed("write", err)
		}
		if done == len(p) {
			return done, nil
		}
	}
}

// failed says what package net would have said.
func (c *direct) failed(op string, err error) error {
	var errno syscall.Errno
	var raw *net.OpError
	switch {
	case errors.As(err, &raw):
		err = raw.Err
	case errors.As(err, &errno):
		err = os.NewSyscallError(op, errno)
	}
	return &net.OpError{Op: op, Net: "tcp", Source: c.LocalAddr(), Addr: c.RemoteAddr(), Err: err}
}
