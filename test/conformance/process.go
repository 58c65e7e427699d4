// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"syscall"

	"fairlead.dev/test/internal/namespace"
)

// Environment of a test binary that is started as something else.
const (
	roleVariable = "FAIRLEAD_CONFORMANCE_ROLE"
	nameVariable = "FAIRLEAD_CONFORMANCE_NAME"
	roleProcess  = "process"
	roleJanitor  = "janitor"
)

// A test binary cannot be asked to call anything first in its main, and the
// package is used from several: so the other roles begin here.
func init() {
	switch os.Getenv(roleVariable) {
	case "":
		return
	case roleProcess:
		runProcess(os.Getenv(nameVariable), os.Stdin, os.Stdout)
	case roleJanitor:
		runJanitor(os.Stdin)
	}
	os.Exit(0)
}

// process is a process of the lab: client and server at once, in a network
// namespace and a cgroup.
type process struct {
	name string
	cmd  *exec.Cmd
	in   io.WriteCloser

	mu      sync.Mutex
	nextID  uint64
	waiting map[uint64]chan reply
	dead    error
}

// startProcess starts this binary again in ns and in the cgroup directory.
func startProcess(name string, ns *namespace.Namespace, cgroupDir string) (*process, error) {
	dir, err := os.Open(cgroupDir)
	if err != nil {
		return nil, fmt.Errorf("open cgroup of process %s: %w", name, err)
	}
	defer dir.Close()
	cmd, in, out, err := again(roleProcess, name)
	if err != nil {
		return nil, err
	}
	cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(dir.Fd())
	// A child is born in the network namespace of the thread that forks it.
	if err := ns.Do(cmd.Start); err != nil {
		return nil, fmt.Errorf("start process %s: %w", name, err)
	}
	p := &process{name: name, cmd: cmd, in: in, waiting: map[uint64]chan reply{}}
	go p.read(out)
	return p, nil
}

// again prepares this binary in another role. It ends when its input does, so
// it never outlives the test, whatever way the test ends.
func again(role, name string) (*exec.Cmd, io.WriteCloser, io.Reader, error) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Args[0] = "fairlead-conformance-" + role + "-" + name
	cmd.Env = append(os.Environ(), roleVariable+"="+role, nameVariable+"="+name, "GOMAXPROCS=2")
	cmd.Stderr = os.Stderr
	// Not killed by the terminal's interrupt: the janitor has to work then.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, nil, nil, fmt.Errorf("pipe to %s: %w", role, err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, nil, nil, fmt.Errorf("pipe from %s: %w", role, err)
	}
	return cmd, in, out, nil
}

// do sends a call and waits for its reply. Calls may overlap.
func (p *process) do(c call) ([]outcome, error) {
	ch := make(chan reply, 1)
	p.mu.Lock()
	if p.dead != nil {
		p.mu.Unlock()
		return nil, p.dead
	}
	p.nextID++
	c.ID = p.nextID
	p.waiting[c.ID] = ch
	line, err := json.Marshal(c)
	if err == nil {
		_, err = p.in.Write(append(line, '\n'))
	}
	p.mu.Unlock()
	if err != nil {
		return nil, fmt.Errorf("send %s to process %s: %w", c.Op, p.name, err)
	}
	r, ok := <-ch
	if !ok {
		return nil, p.dead
	}
	if r.Error != "" {
		return nil, fmt.Errorf("process %s: %s: %s", p.name, c.Op, r.Error)
	}
	return r.Outcomes, nil
}

func (p *process) read(out io.Reader) {
	lines := bufio.NewReader(out)
	for {
		line, err := lines.ReadBytes('\n')
		var r reply
		if err == nil {
			err = json.Unmarshal(line, &r)
		}
		p.mu.Lock()
		if err != nil {
			p.dead = fmt.Errorf("process %s is gone: %w", p.name, err)
			for _, ch := range p.waiting {
				close(ch)
			}
			p.waiting = nil
			p.mu.Unlock()
			return
		}
		ch := p.waiting[r.ID]
		delete(p.waiting, r.ID)
		p.mu.Unlock()
		if ch != nil {
			ch <- r
		}
	}
}

// stop ends the process and waits for it.
func (p *process) stop() {
	p.in.Close()
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait()
}

// runProcess is the other side: it carries out calls until its input ends.
func runProcess(name string, in io.Reader, out io.Writer) {
	w := &worker{name: name}
	var mu sync.Mutex
	lines := bufio.NewReader(in)
	for {
		line, err := lines.ReadBytes('\n')
		if err != nil {
			return
		}
		go func() {
			var c call
			var r reply
			if err := json.Unmarshal(line, &c); err != nil {
				r.Error = err.Error()
			} else if r.Outcomes, err = w.carryOut(c); err != nil {
				r.Error = err.Error()
			}
			r.ID = c.ID
			text, err := json.Marshal(r)
			if err != nil {
				text, _ = json.Marshal(reply{ID: c.ID, Error: err.Error()})
			}
			mu.Lock()
			defer mu.Unlock()
			_, _ = out.Write(append(text, '\n'))
		}()
	}
}
