//go:build unix

package engine

import (
	"os/exec"
	"syscall"
)

// ownGroup makes the command the leader of a process group of its own.
func ownGroup(cmd *exec.Cmd) { cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} }

// terminateGroup asks every process of the group to stop. A group that is gone is no error.
func terminateGroup(group int) { _ = syscall.Kill(-group, syscall.SIGTERM) }

// killGroup ends every process of the group. A group that is gone is no error.
func killGroup(group int) { _ = syscall.Kill(-group, syscall.SIGKILL) }

// groupOf returns the process group of a process, -1 if it is gone.
func groupOf(pid int) int {
	group, err := syscall.Getpgid(pid)
	if err != nil {
		return -1
	}
	return group
}
