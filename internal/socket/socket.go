// Package socket has small reads and writes of a TCP connection pass Go's scheduler by.
//
// The runtime takes every system call for one that may block: it is told before and after, and its
// monitor looks every 20 µs whether one lasts, to hand the thread's work to another thread. Writing to a
// socket that never blocks lasts about as long as that, because the kernel delivers a small packet
// within the call. A gateway that forwards thousands of small requests a second therefore spends half of its time
// on threads that are woken for nothing. Here such calls are made as what they are: short. They hold up the
// other goroutines of their thread for some microseconds, and cannot block, since the sockets do not.
//
// Everything else stays as it is in package net: waiting, deadlines, closing, errors, large pieces.
//
// Start reading at Direct.
package socket

import "net"

// most is how many bytes one short call moves; larger pieces go through package net, since to copy
// them takes longer than to hand a thread over.
const most = 64 << 10

// Listen returns a listener whose connections are Direct.
func Listen(l net.Listener) net.Listener { return listener{l} }

type listener struct{ net.Listener }

func (l listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return Direct(c), nil
}
