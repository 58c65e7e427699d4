// SPDX-License-Identifier: Apache-2.0

package traffic

import (
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"fairlead.dev/test/internal/namespace"
)

// Process is a running load process.
type Process struct {
	// Name is its place.
	Name string
	Plan Plan
	// Report is complete once it was stopped.
	Report Report

	cmd     *exec.Cmd
	in      io.WriteCloser
	thread  *namespace.Thread
	stopped sync.Once
	err     error
	began   chan struct{}
	result  chan struct{}
}

// Start starts asking from the place of a process: its network namespace, and a
// cgroup's directory. It ends with this process, or with Stop.
func Start(name string, pid int, cgroupDir string, plan Plan) (*Process, error) {
	p := &Process{Name: name, Plan: plan, began: make(chan struct{}), result: make(chan struct{})}
	var err error
	if p.thread, err = namespace.NewThread(fmt.Sprintf("/proc/%d/ns/net", pid)); err != nil {
		return nil, err
	}
	p.cmd = exec.Command("/proc/self/exe")
	p.cmd.Args[0] = "fairlead-load-" + name
	p.cmd.Env = append(os.Environ(), roleVariable+"=load", "GOMAXPROCS=2")
	p.cmd.Stderr = os.Stderr
	out, err := p.cmd.StdoutPipe()
	if err == nil {
		p.in, err = p.cmd.StdinPipe()
	}
	if err == nil {
		err = p.thread.Start(p.cmd, cgroupDir)
	}
	if err == nil { // the process is a group of its own, with its threads
		err = unix.Setpriority(unix.PRIO_PGRP, p.cmd.Process.Pid, plan.Nice)
	}
	if err == nil {
		err = gob.NewEncoder(p.in).Encode(plan)
	}
	if err != nil {
		p.thread.Close()
		return nil, fmt.Errorf("start load from %s: %w", name, err)
	}
	go func() {
		defer close(p.result)
		said, began := gob.NewDecoder(out), false
		p.err = said.Decode(&began)
		close(p.began)
		if p.err == nil {
			p.err = said.Decode(&p.Report)
		}
		_, _ = io.Copy(io.Discard, out)
		p.err = errors.Join(p.err, p.cmd.Wait())
	}()
	return p, nil
}

// Await waits until each stream has asked: sockets that are held are open.
func (p *Process) Await() { <-p.began }

// Stop ends the load and waits for its report.
func (p *Process) Stop() (Report, error) {
	p.stopped.Do(func() {
		p.in.Close()
		select {
		case <-p.result:
		case <-time.After(30 * time.Second):
			_ = p.cmd.Process.Kill()
			<-p.result
		}
		p.thread.Close()
	})
	if p.err != nil {
		return p.Report, fmt.Errorf("load from %s: %w", p.Name, p.err)
	}
	return p.Report, nil
}

// Question describes a record for a failure message.
func (p *Process) Question(r *Record) string {
	s := p.Plan.Streams[r.Stream]
	how := string(s.Mode)
	if r.Again {
		how += " (again over the same socket)"
	}
	return fmt.Sprintf("%s -> %s %s at %.3f s", p.Name, s.To[r.To], how, float64(r.Start)/1e9)
}

// Server is who answered.
func (p *Process) Server(r *Record) netip.AddrPort { return p.Report.Servers[r.Server] }
