//go:build !windows

package models

import "net"

// listenAnywhere listens at a free port of loopback.
func listenAnywhere() (net.Listener, error) { return net.Listen("tcp", "127.0.0.1:0") }
