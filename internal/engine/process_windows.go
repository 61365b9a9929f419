package engine

import (
	"os/exec"
	"syscall"

	"github.com/shirou/gopsutil/v4/process"
)

// ownGroup keeps a Ctrl-C that is meant for the node away from the engine.
func ownGroup(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{CreationFlags: syscall.CREATE_NEW_PROCESS_GROUP}
}

// terminateGroup ends the process and its descendants: Windows has no signal that asks.
func terminateGroup(group int) { killGroup(group) }

// killGroup ends the process and its descendants. One that is gone is no error.
func killGroup(group int) {
	p, err := process.NewProcess(int32(group))
	if err != nil {
		return
	}
	killTree(p)
}

func killTree(p *process.Process) {
	children, _ := p.Children() // none, if it is gone
	for _, child := range children {
		killTree(child)
	}
	_ = p.Kill() // gone already
}

// groupOf returns -1: Windows has no process groups, and a runner is found through its parent.
func groupOf(int) int { return -1 }
