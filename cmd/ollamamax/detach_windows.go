package main

import (
	"os/exec"
	"syscall"
)

// detach keeps the terminal's Ctrl-C away from a node of the demo, which stops it itself.
func detach(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{CreationFlags: syscall.CREATE_NEW_PROCESS_GROUP}
}
