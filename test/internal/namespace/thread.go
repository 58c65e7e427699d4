// SPDX-License-Identifier: Apache-2.0

package namespace

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// Thread is a thread in a network namespace. What it starts dies with it, so
// not even a killed test leaves agents behind.
type Thread struct{ work chan func() }

// NewThread enters the namespace at a path such as /proc/PID/ns/net.
func NewThread(netns string) (*Thread, error) {
	r := &Thread{work: make(chan func())}
	ready := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // not unlocked: the thread ends with it
		err := enter(netns)
		ready <- err
		if err != nil {
			return
		}
		for f := range r.work {
			f()
		}
	}()
	return r, <-ready
}

func enter(netns string) error {
	fd, err := unix.Open(netns, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", netns, err)
	}
	defer unix.Close(fd)
	if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter %s: %w", netns, err)
	}
	return nil
}

// Do runs f there.
func (r *Thread) Do(f func() error) error {
	done := make(chan error, 1)
	r.work <- func() { done <- f() }
	return <-done
}

// Close ends the thread, and what it started.
func (r *Thread) Close() { close(r.work) }

// Start runs a command on the thread, in a cgroup.
func (r *Thread) Start(cmd *exec.Cmd, cgroupDir string) error {
	dir, err := os.Open(cgroupDir)
	if err != nil {
		return fmt.Errorf("open cgroup: %w", err)
	}
	defer dir.Close()
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL, UseCgroupFD: true, CgroupFD: int(dir.Fd())}
	return r.Do(cmd.Start)
}
