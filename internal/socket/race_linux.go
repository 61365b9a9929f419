//go:build race

package socket

import "syscall"

// The race detector learns from package syscall that who reads comes after who wrote.

func shortRead(fd uintptr, p []byte) (int, syscall.Errno) { return told(syscall.Read(int(fd), p)) }

func shortWrite(fd uintptr, p []byte) (int, syscall.Errno) { return told(syscall.Write(int(fd), p)) }

func told(n int, err error) (int, syscall.Errno) {
	if err == nil {
		return n, 0
	}
	return n, err.(syscall.Errno) // which package syscall's errors are
}
