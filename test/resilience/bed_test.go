// SPDX-License-Identifier: Apache-2.0

package resilience

import (
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"fairlead.dev/test/conformance"
)

const roleVariable = "FAIRLEAD_RESILIENCE_ROLE"

// binaries are two builds of the agent that differ in their version.
var binaries [2]string

func TestMain(m *testing.M) {
	if os.Getenv(roleVariable) == "load" {
		loadMain()
	}
	os.Exit(runTests(m))
}

func runTests(m *testing.M) int {
	if os.Getuid() != 0 {
		fmt.Println("needs root: agents are run in network namespaces and cgroups")
		return m.Run()
	}
	dir, err := os.MkdirTemp("", "fairlead-resilience-")
	if err != nil {
		fmt.Println(err)
		return 1
	}
	defer os.RemoveAll(dir)
	for i, version := range []string{"resilience-a", "resilience-b"} {
		binaries[i] = filepath.Join(dir, "fairlead-"+version)
		out, err := exec.Command("go", "build", "-ldflags", "-X main.version="+version, "-o", binaries[i], "fairlead.dev/cmd/fairlead").CombinedOutput()
		if err != nil {
			fmt.Printf("build cmd/fairlead: %v\n%s", err, out)
			return 1
		}
	}
	return m.Run()
}

// seed gives the random choices of a test, and says how to repeat them.
func seed(t *testing.T) (*rand.Rand, uint64) {
	t.Helper()
	n := uint64(time.Now().UnixNano())
	if text := os.Getenv("FAIRLEAD_SEED"); text != "" {
		var err error
		if n, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatalf("FAIRLEAD_SEED=%q: want a number", text)
		}
	}
	t.Logf("FAIRLEAD_SEED=%d repeats the choices of this run", n)
	return rand.New(rand.NewPCG(n, n)), n
}

// bed is a lab and the places of one agent on node1.
type bed struct {
	t      *testing.T
	lab    *conformance.Lab
	node   *conformance.Node
	thread *resident
	// manifests is the agent's directory, state its --state-dir.
	manifests, state string
}

func newBed(t *testing.T) *bed {
	t.Helper()
	watchForLeftovers(t)
	b := &bed{t: t, lab: conformance.NewLab(t)}
	b.node = b.lab.Node(1)
	dir, err := os.MkdirTemp("", fmt.Sprintf("fairlead-resilience-%d-", os.Getpid()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	b.manifests, b.state = filepath.Join(dir, "manifests"), filepath.Join(dir, "state")
	if err := os.Mkdir(b.manifests, 0o755); err != nil {
		t.Fatal(err)
	}
	if b.thread, err = newResident(b.node.NetNSPath); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.thread.close)
	return b
}

func (b *bed) member(name string) conformance.Member {
	b.t.Helper()
	m, err := b.lab.Member(name)
	if err != nil {
		b.t.Fatal(err)
	}
	return m
}

// resident is a thread in a network namespace. What it starts dies with it, so
// not even a killed test leaves agents behind.
type resident struct{ work chan func() }

func newResident(netns string) (*resident, error) {
	r := &resident{work: make(chan func())}
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

func (r *resident) do(f func() error) error {
	done := make(chan error, 1)
	r.work <- func() { done <- f() }
	return <-done
}

func (r *resident) close() { close(r.work) }

// start runs a command on the resident's thread, in a cgroup.
func (r *resident) start(cmd *exec.Cmd, cgroupDir string) error {
	dir, err := os.Open(cgroupDir)
	if err != nil {
		return fmt.Errorf("open cgroup: %w", err)
	}
	defer dir.Close()
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL, UseCgroupFD: true, CgroupFD: int(dir.Fd())}
	return r.do(cmd.Start)
}

// load is a running load process.
type load struct {
	name    string
	plan    loadPlan
	cmd     *exec.Cmd
	in      io.WriteCloser
	thread  *resident
	stopped sync.Once
	report  loadReport
	err     error
	result  chan struct{}
}

// load starts asking from a member's place.
func (b *bed) load(from string, plan loadPlan) *load {
	b.t.Helper()
	m := b.member(from)
	l := &load{name: from, plan: plan, result: make(chan struct{})}
	var err error
	if l.thread, err = newResident(fmt.Sprintf("/proc/%d/ns/net", m.PID)); err != nil {
		b.t.Fatal(err)
	}
	l.cmd = exec.Command("/proc/self/exe")
	l.cmd.Args[0] = "fairlead-resilience-load-" + from
	l.cmd.Env = append(os.Environ(), roleVariable+"=load", "GOMAXPROCS=2")
	l.cmd.Stderr = os.Stderr
	out, err := l.cmd.StdoutPipe()
	if err == nil {
		l.in, err = l.cmd.StdinPipe()
	}
	if err == nil {
		err = l.thread.start(l.cmd, m.CgroupDir)
	}
	if err == nil { // the process is a group of its own, with its threads
		err = unix.Setpriority(unix.PRIO_PGRP, l.cmd.Process.Pid, plan.Nice)
	}
	if err == nil {
		err = gob.NewEncoder(l.in).Encode(plan)
	}
	if err != nil {
		b.t.Fatalf("start load from %s: %v", from, err)
	}
	go func() {
		defer close(l.result)
		l.err = gob.NewDecoder(out).Decode(&l.report)
		_, _ = io.Copy(io.Discard, out)
		l.err = errors.Join(l.err, l.cmd.Wait())
	}()
	b.t.Cleanup(func() { l.stop() })
	return l
}

// stop ends the load and waits for its report.
func (l *load) stop() (loadReport, error) {
	l.stopped.Do(func() {
		l.in.Close()
		select {
		case <-l.result:
		case <-time.After(30 * time.Second):
			_ = l.cmd.Process.Kill()
			<-l.result
		}
		l.thread.close()
	})
	if l.err != nil {
		return l.report, fmt.Errorf("load from %s: %w", l.name, l.err)
	}
	return l.report, nil
}

// question describes a record for a failure message.
func (l *load) question(r *record) string {
	s := l.plan.Streams[r.Stream]
	how := string(s.Mode)
	if r.Again {
		how += " (again over the same socket)"
	}
	return fmt.Sprintf("%s -> %s %s at %.3f s", l.name, s.To[r.To], how, float64(r.Start)/1e9)
}

func (l *load) server(r *record) netip.AddrPort { return l.report.Servers[r.Server] }
