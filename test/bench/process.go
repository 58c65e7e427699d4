// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"

	"golang.org/x/sys/unix"

	"fairlead.dev/test/internal/namespace"
)

// roleVariable makes this program, started again, play a part in the lab.
const roleVariable = "FAIRLEAD_BENCH_ROLE"

// ops are what a role can be asked to do, one after another.
type ops map[string]func(json.RawMessage) (any, error)

func play(role string) {
	switch role {
	case "janitor":
		os.Exit(clean(os.Stdin))
	case "server":
		serve(ops{"listening": listen()})
	case "client":
		serve(ops{"connects": op(measureConnects), "await": op(await), "appear": op(appear)})
	case "agent":
		a := &innerAgent{}
		serve(ops{"load": op(a.load), "flip": op(a.flip), "syncs": op(a.syncs), "profile": op(a.profile)})
	}
}

// op gives a function the type it needs in ops.
func op[In, Out any](f func(In) (Out, error)) func(json.RawMessage) (any, error) {
	return func(raw json.RawMessage) (any, error) {
		var in In
		if err := json.Unmarshal(raw, &in); err != nil {
			return nil, err
		}
		return f(in)
	}
}

type question struct {
	Op  string
	Arg any
}

type answer struct {
	Error  string
	Result json.RawMessage
}

// serve carries out questions until stdin ends, with the process that asks.
func serve(can ops) {
	in, out := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)
	for {
		var q struct {
			Op  string
			Arg json.RawMessage
		}
		if in.Decode(&q) != nil {
			os.Exit(0)
		}
		result, err := can[q.Op](q.Arg)
		a := answer{}
		if err == nil {
			a.Result, err = json.Marshal(result)
		}
		if err != nil {
			a.Error = err.Error()
		}
		if out.Encode(a) != nil {
			os.Exit(0)
		}
	}
}

// process is a process of the lab in one of the roles.
type process struct {
	role string
	cmd  *exec.Cmd
	in   io.WriteCloser
	out  *json.Decoder
}

// start starts this program again, in a namespace and a cgroup of the lab.
func (l *lab) start(role string, ns *namespace.Namespace, cgroup string) (*process, error) {
	cmd := again(role)
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := l.launch(cmd, ns, cgroup); err != nil {
		return nil, fmt.Errorf("start %s: %w", role, err)
	}
	p := &process{role: role, cmd: cmd, in: in, out: json.NewDecoder(out)}
	if role == "server" {
		return p, p.ask("listening", nil, nil)
	}
	return p, nil
}

func again(role string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe")
	cmd.Args[0] = "fairlead-bench-" + role
	cmd.Env = append(os.Environ(), roleVariable+"="+role)
	if role == "client" {
		// Its system calls are timed: no signals of the runtime among them.
		cmd.Env = append(cmd.Env, "GODEBUG=asyncpreemptoff=1")
	}
	cmd.Stderr = os.Stderr
	// The terminal's interrupt is for the process that cleans up.
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	return cmd
}

// launch starts a command in a namespace and a cgroup of the lab.
func (l *lab) launch(cmd *exec.Cmd, ns *namespace.Namespace, cgroup string) error {
	path := l.cgroupDir(cgroup)
	if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	defer dir.Close()
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	}
	cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(dir.Fd())
	return ns.Do(cmd.Start)
}

func (p *process) ask(op string, arg, result any) error {
	if err := p.begin(op, arg); err != nil {
		return err
	}
	return p.end(op, result)
}

// begin asks, end waits for the answer.
func (p *process) begin(op string, arg any) error {
	if err := json.NewEncoder(p.in).Encode(question{op, arg}); err != nil {
		return fmt.Errorf("ask %s to %s: %w", p.role, op, err)
	}
	return nil
}

func (p *process) end(op string, result any) error {
	var a answer
	if err := p.out.Decode(&a); err != nil {
		return fmt.Errorf("%s is gone while it had to %s: %w", p.role, op, err)
	}
	if a.Error != "" {
		return fmt.Errorf("%s: %s: %s", p.role, op, a.Error)
	}
	if result == nil {
		return nil
	}
	return json.Unmarshal(a.Result, result)
}

func (p *process) stop() {
	p.in.Close()
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait()
}

// monotonic is CLOCK_MONOTONIC in nanoseconds, the same in all processes.
func monotonic() int64 {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts)
	return ts.Nano()
}

// kernelRelease is what uname -r prints.
func kernelRelease() string {
	var u unix.Utsname
	_ = unix.Uname(&u)
	return strings.TrimRight(string(u.Release[:]), "\x00")
}
