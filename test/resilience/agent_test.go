// SPDX-License-Identifier: Apache-2.0

package resilience

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/google/go-cmp/cmp"

	"fairlead.dev/dataplane"
	"fairlead.dev/dataplane/ebpf"
	"fairlead.dev/test/conformance"
	"fairlead.dev/test/internal/output"
)

// agent is a `fairlead run` process on node1.
type agent struct {
	cmd     *exec.Cmd
	log     output.Buffer
	started int64         // before it was started, CLOCK_MONOTONIC in nanoseconds
	stopped int64         // before it was told to stop
	short   time.Duration // cpuShort when it was started
	exited  chan struct{}
	err     error
}

// startAgent runs one of the builds on the manifests. More arguments win.
func (b *bed) startAgent(build int, more ...string) *agent {
	b.t.Helper()
	a := &agent{exited: make(chan struct{})}
	a.cmd = exec.Command(binaries[build], "run", "--manifests", b.manifests, "--state-dir", b.state,
		"--node-name", b.node.Name, "--bpffs", b.node.BPFFS, "--cgroup-root", b.node.CgroupRoot,
		"--devices", strings.Join(b.node.Devices, ","), "--cluster-cidr", join(conformance.ClusterCIDRs),
		"--service-cidr", join(conformance.ServiceCIDRs), "--metrics-bind-address=", "--healthz-bind-address=")
	a.cmd.Args = append(a.cmd.Args, more...)
	a.cmd.Stderr = &a.log
	a.started, a.short = monotonic(), cpuShort()
	if err := b.thread.Start(a.cmd, b.member("host1").CgroupDir); err != nil {
		b.t.Fatalf("start the agent: %v", err)
	}
	go func() {
		a.err = a.cmd.Wait()
		close(a.exited)
	}()
	b.t.Cleanup(a.kill)
	return a
}

func join(ps []netip.Prefix) string {
	var words []string
	for _, p := range ps {
		words = append(words, p.String())
	}
	return strings.Join(words, ",")
}

// kill is kill -9, and waits until the process is gone.
func (a *agent) kill() {
	_ = a.cmd.Process.Kill()
	<-a.exited
}

// terminate is SIGTERM, and gives the exit code.
func (a *agent) terminate(within time.Duration) (int, error) {
	a.stopped = monotonic()
	if err := a.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return 0, err
	}
	return a.exitCode(within)
}

func (a *agent) exitCode(within time.Duration) (int, error) {
	select {
	case <-a.exited:
		return a.cmd.ProcessState.ExitCode(), nil
	case <-time.After(within):
		return 0, fmt.Errorf("the agent still runs after %v; it said:\n%s", within, a.log.String())
	}
}

// alive fails the test where the agent has ended by itself.
func (a *agent) alive() error {
	select {
	case <-a.exited:
		return fmt.Errorf("the agent ended by itself: %v; it said:\n%s", a.err, a.log.String())
	default:
		return nil
	}
}

// openFiles counts the agent's file descriptors.
func (a *agent) openFiles() (int, error) {
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", a.cmd.Process.Pid))
	return len(entries), err
}

// residentKiB is the agent's own memory: pages of files are the binary's and,
// with those of eBPF maps, shared.
func (a *agent) residentKiB() (int, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", a.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "RssAnon:"); ok {
			return strconv.Atoi(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")))
		}
	}
	return 0, errors.New("no RssAnon in /proc/PID/status")
}

// dump is `fairlead dump services -o json`, in a process of its own.
func (b *bed) dump() (dataplane.Dump, error) {
	var d dataplane.Dump
	out, err := b.command("dump", "services", "-o", "json")
	if err != nil {
		return d, err
	}
	if err := json.Unmarshal([]byte(out), &d); err != nil {
		return d, fmt.Errorf("fairlead dump services -o json printed no JSON: %w\n%s", err, out)
	}
	return d, nil
}

// command runs another of the binary's commands, and gives its stdout.
func (b *bed) command(args ...string) (string, error) {
	cmd := exec.Command(binaries[0], append(args, "--bpffs", b.node.BPFFS)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return string(out), fmt.Errorf("fairlead %s: %w: %s", strings.Join(args, " "), err, stderr.String())
	}
	return string(out), nil
}

// cpuShort is how long, since the machine started, somebody waited for a CPU: a
// busy machine keeps an agent from its work, and that is not the agent's. 0
// where the kernel does not say (PSI, Documentation/accounting/psi.rst).
func cpuShort() time.Duration {
	text, _ := os.ReadFile("/proc/pressure/cpu")
	some, _, _ := strings.Cut(string(text), "\n")
	_, total, _ := strings.Cut(some, "total=")
	n, _ := strconv.ParseInt(total, 10, 64)
	return time.Duration(n) * time.Microsecond
}

// settled is when the kernel was seen to hold what the world wants.
type settled struct {
	// version of the world that the kernel held.
	version int
	// equal is when this process had read it, known when `fairlead dump` had
	// printed it too.
	equal, known int64
}

// settle waits until the kernel, and then `fairlead dump`, equals a version of
// the world that was in force while it read. Reading in this process first
// costs less than one dump after another, and less than a dump takes.
func (b *bed) settle(w *world, patient func() bool) (settled, error) {
	for {
		begin := monotonic()
		rows, err := b.peek()
		equal := monotonic()
		if _, ok := w.inForce(rows, begin, equal); ok {
			begin = monotonic()
			var d dataplane.Dump
			if d, err = b.dump(); err != nil {
				return settled{}, err
			}
			known := monotonic()
			if v, ok := w.inForce(d.Frontends, begin, known); ok {
				return settled{version: v, equal: equal, known: known}, nil
			}
			rows = d.Frontends
		}
		if !patient() {
			return settled{}, errors.Join(err, fmt.Errorf("the kernel is not what the manifests say (-want +got):\n%.3000s", cmp.Diff(w.wanted(), rows, sameAddr)))
		}
		time.Sleep(15 * time.Millisecond)
	}
}

// within is patience for a time from now.
func within(d time.Duration) func() bool {
	deadline := time.Now().Add(d)
	return func() bool { return time.Now().Before(deadline) }
}

// within is patience that ends with the agent.
func (a *agent) within(d time.Duration) func() bool {
	patient := within(d)
	return func() bool { return patient() && a.alive() == nil }
}

var sameAddr = cmp.Comparer(func(a, b netip.Addr) bool { return a == b })

// peek reads the kernel's table in this process.
func (b *bed) peek() ([]dataplane.Row, error) {
	r, err := ebpf.Read(b.node.BPFFS)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	d, err := r.Table()
	return d.Frontends, err
}
