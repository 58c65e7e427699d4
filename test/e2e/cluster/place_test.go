// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// place is the inside of a node: the namespaces of its first process.
type place struct {
	pid    int
	cgroup string // directory in cgroup2
}

// enter moves the calling thread, which must be spent afterwards, into the
// node. Its children are in the node's process namespace.
func (p place) enter() error {
	if err := unix.Unshare(unix.CLONE_FS); err != nil { // or the mount namespace cannot change
		return fmt.Errorf("unshare: %w", err)
	}
	var fds []int
	for _, name := range []string{"net", "pid", "mnt"} {
		fd, err := unix.Open(fmt.Sprintf("/proc/%d/ns/%s", p.pid, name), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open namespace %s of the node: %w", name, err)
		}
		defer unix.Close(fd)
		fds = append(fds, fd)
	}
	for i, flag := range []int{unix.CLONE_NEWNET, unix.CLONE_NEWPID, unix.CLONE_NEWNS} {
		if err := unix.Setns(fds[i], flag); err != nil {
			return fmt.Errorf("enter the node: %w", err)
		}
	}
	return nil
}

// do runs f inside of the node.
func (p place) do(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // not unlocked: the thread is spent
		if err := p.enter(); err != nil {
			done <- err
			return
		}
		done <- f()
	}()
	return <-done
}

// process is a child inside of a node, or outside of all.
type process struct {
	name string
	log  string // path of what it says
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended
}

// start runs a command inside of the node, in its cgroup, with its output
// appended to the log. It ends with the node's first process: Go's Pdeathsig
// does not work for a child that cannot see its parent.
func (p place) start(name, log string, argv ...string) (*process, error) {
	dir, err := os.Open(p.cgroup)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	return begin(name, log, p.enter, &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}, argv)
}

// startOutside runs a command beside the nodes.
func startOutside(name, log string, argv ...string) (*process, error) {
	return begin(name, log, func() error { return nil }, &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}, argv)
}

func begin(name, log string, enter func() error, attr *syscall.SysProcAttr, argv []string) (*process, error) {
	out, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	p := &process{name: name, log: log, cmd: exec.Command(argv[0], argv[1:]...), done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = out, out
	attr.Setpgid = true
	p.cmd.SysProcAttr = attr
	started := make(chan error, 1)
	go func() {
		// Pdeathsig comes when the thread that started the child ends: so it waits.
		runtime.LockOSThread()
		err := enter()
		if err == nil {
			err = p.cmd.Start()
		}
		started <- err
		if err == nil {
			_ = p.cmd.Wait()
			close(p.done)
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	return p, nil
}

// stop sends the signal and waits for up to the grace.
func (p *process) stop(sig syscall.Signal, grace time.Duration) error {
	_ = p.cmd.Process.Signal(sig)
	select {
	case <-p.done:
		return nil
	case <-time.After(grace):
		_ = p.cmd.Process.Kill()
		<-p.done
		return fmt.Errorf("%s did not end %v after %v", p.name, grace, sig)
	}
}

// alive says how the process ended, if it did.
func (p *process) alive() error {
	select {
	case <-p.done:
		return errors.New(p.name + " ended: " + p.cmd.ProcessState.String() + "; it said:\n" + tail(p.log, 3000))
	default:
		return nil
	}
}

// tail is the end of a file.
func tail(path string, bytes int) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	return string(b[max(0, len(b)-bytes):])
}
