// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"fairlead.dev/test/conformance"
)

// roleVariable makes this binary a client in a pod's place.
const roleVariable = "FAIRLEAD_E2E_ROLE"

// The conformance package begins its roles in an init too: see there.
func init() {
	if os.Getenv(roleVariable) == "client" {
		clientMain(os.Stdin, os.Stdout)
		os.Exit(0)
	}
}

// question is what a client is asked to do.
type question struct {
	// Op: "ask" over a new connection, "open" one and ask and keep it, "again"
	// over the kept one, "until" Backend answers, a new connection each time.
	Op      string
	Network string // "tcp" or "udp"
	To      string
	Backend string
	Within  time.Duration
}

// answer is what came of it.
type answer struct {
	Backend string // who answered
	Failure string // why nobody did
	Tries   int
	At      int64 // CLOCK_MONOTONIC in nanoseconds
}

func monotonic() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		panic(err)
	}
	return ts.Nano()
}

func clientMain(in io.Reader, out io.Writer) {
	var kept net.Conn
	requests, answers := json.NewDecoder(in), json.NewEncoder(out)
	for {
		var q question
		if requests.Decode(&q) != nil {
			return
		}
		var a answer
		switch q.Op {
		case "ask":
			a, _ = askOnce(q, false)
		case "open":
			a, kept = askOnce(q, true)
		case "again":
			a = converse(kept, q.Within)
		case "until":
			for deadline := time.Now().Add(q.Within); a.Backend != q.Backend && time.Now().Before(deadline); {
				tries := a.Tries
				a, _ = askOnce(q, false)
				a.Tries = tries + 1
			}
		}
		if answers.Encode(a) != nil {
			return
		}
	}
}

func askOnce(q question, keep bool) (answer, net.Conn) {
	c, err := net.DialTimeout(q.Network, q.To, q.Within)
	if err != nil {
		return answer{Failure: failure(err), At: monotonic()}, nil
	}
	a := converse(c, q.Within)
	if keep {
		return a, c
	}
	if t, ok := c.(*net.TCPConn); ok {
		_ = t.SetLinger(0) // thousands of them: no TIME_WAIT
	}
	c.Close()
	return a, nil
}

// converse asks a server of the conformance lab, which answers a line of JSON
// with another that names it.
func converse(c net.Conn, within time.Duration) (a answer) {
	_ = c.SetDeadline(time.Now().Add(within))
	_, err := c.Write([]byte("{}\n"))
	var line []byte
	if err == nil {
		line, err = bufio.NewReader(c).ReadBytes('\n')
	}
	a.At = monotonic()
	if err == nil {
		err = json.Unmarshal(line, &a)
	}
	if err != nil {
		a.Failure = failure(err)
	}
	return a
}

func failure(err error) string {
	var timeout net.Error
	switch {
	case errors.Is(err, unix.ECONNREFUSED):
		return "refused"
	case errors.As(err, &timeout) && timeout.Timeout():
		return "timed out"
	}
	return err.Error()
}

// client is a process in the place of a member of the lab.
type client struct {
	t    *testing.T
	name string
	in   *json.Encoder
	out  *json.Decoder
	mu   sync.Mutex
}

// client starts one where the named member is: same network namespace, same
// cgroup. It ends with the test.
func (b *bed) client(name string) *client {
	b.t.Helper()
	m := b.member(name)
	cmd := exec.Command("/proc/self/exe")
	cmd.Args[0] = "fairlead-e2e-client-" + name
	cmd.Env = append(os.Environ(), roleVariable+"=client", "GOMAXPROCS=1")
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		b.t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.t.Fatal(err)
	}
	exited, err := startIn(fmt.Sprintf("/proc/%d/ns/net", m.PID), m.CgroupDir, cmd)
	if err != nil {
		b.t.Fatalf("start client in the place of %s: %v", name, err)
	}
	b.t.Cleanup(func() {
		in.Close()
		_ = cmd.Process.Kill()
		<-exited
	})
	return &client{t: b.t, name: name, in: json.NewEncoder(in), out: json.NewDecoder(out)}
}

func (c *client) do(q question) (a answer) {
	c.t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	if q.Network == "" {
		q.Network = "tcp"
	}
	if q.Within == 0 {
		q.Within = time.Second
	}
	if err := errors.Join(c.in.Encode(q), c.out.Decode(&a)); err != nil {
		c.t.Errorf("client %s: %v", c.name, err)
	}
	return a
}

// ask gives who answered, or why nobody did.
func (c *client) ask(to string) string {
	c.t.Helper()
	a := c.do(question{Op: "ask", To: to, Within: 300 * time.Millisecond})
	return a.Backend + a.Failure
}

// reaches waits until one of the Backends answers.
func (c *client) reaches(to string, backends ...string) {
	c.t.Helper()
	eventually(c.t, agentBound, func() string {
		got := c.ask(to)
		for _, b := range backends {
			if got == b {
				return ""
			}
		}
		return fmt.Sprintf("%s -> %s: want an answer of %s, seen %q", c.name, to, strings.Join(backends, " or "), got)
	})
}

// getsNothing waits until connects end in one of the ways.
func (c *client) getsNothing(to string, ways ...string) {
	c.t.Helper()
	c.reaches(to, ways...)
}

// inNetns runs f on a thread in a network namespace; the thread ends with it.
func inNetns(path string, f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // not unlocked: the thread is spent
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			err = unix.Setns(fd, unix.CLONE_NEWNET)
			unix.Close(fd)
		}
		if err != nil {
			done <- fmt.Errorf("enter %s: %w", path, err)
			return
		}
		done <- f()
	}()
	return <-done
}

// startIn starts a command in a network namespace and a cgroup. It is killed
// when this process ends; exited is closed when it was waited for.
func startIn(netns, cgroupDir string, cmd *exec.Cmd) (exited chan struct{}, err error) {
	dir, err := os.Open(cgroupDir)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL, UseCgroupFD: true, CgroupFD: int(dir.Fd())}
	started := make(chan error, 1)
	exited = make(chan struct{})
	// Pdeathsig comes when the thread that started the child ends: so it waits.
	go inNetns(netns, func() error {
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait()
			close(exited)
		}
		return err
	})
	return exited, <-started
}

// dialer connects from a network namespace.
func dialer(netns string) func(context.Context, string, string) (net.Conn, error) {
	return func(_ context.Context, network, address string) (c net.Conn, err error) {
		err = inNetns(netns, func() error {
			c, err = net.DialTimeout(network, address, 2*time.Second)
			return err
		})
		return c, err
	}
}

func (b *bed) member(name string) conformance.Member {
	b.t.Helper()
	return b.lab.Member(b.t, name)
}
