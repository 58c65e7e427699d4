// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

// agent is a running one with a place of its own on the hooked site's node.
type agent struct {
	place *place
	pid   int
	inner *process  // the innerAgent's, nil for a `fairlead run`
	outer *exec.Cmd // the other
	load  loaded
}

// startInner starts an innerAgent and waits for its first Sync.
func (b *bench) startInner(o loadOrder) (*agent, error) {
	p, err := b.lab.newPlace()
	if err != nil {
		return nil, err
	}
	a := &agent{place: p}
	if a.inner, err = b.lab.start("agent", b.lab.hooked.node, p.self); err != nil {
		return nil, err
	}
	a.pid = a.inner.cmd.Process.Pid
	o.BPFFS, o.CgroupRoot = p.bpffs, b.lab.cgroupDir(p.pods)
	if o.CheckInterval == 0 {
		o.CheckInterval = -1
	}
	if b.profile != "" {
		o.Profile = filepath.Join(b.profile, fmt.Sprintf("%s-services%d", p.self, o.Services))
	}
	if err := a.inner.ask("load", o, &a.load); err != nil {
		a.stop()
		return nil, err
	}
	return a, nil
}

// startOuter starts `fairlead run` on a directory of n Services and waits until
// it says that the kernel is in line.
func (b *bench) startOuter(ctx context.Context, n int) (*agent, error) {
	p, err := b.lab.newPlace()
	if err != nil {
		return nil, err
	}
	if err := writeManifests(p.manifests, n); err != nil {
		return nil, fmt.Errorf("write manifests: %w", err)
	}
	a := &agent{place: p}
	a.outer = exec.Command(b.fairlead, "run", "--manifests", p.manifests, "--state-dir", p.state, "--node-name", nodeName,
		"--bpffs", p.bpffs, "--cgroup-root", b.lab.cgroupDir(p.pods), "--cluster-cidr", clusterCIDRs,
		"--log-format", "json")
	said, err := logOf(a.outer)
	if err != nil {
		return nil, err
	}
	begin := monotonic()
	if err := b.lab.launch(a.outer, b.lab.hooked.node, p.self); err != nil {
		return nil, fmt.Errorf("start %s: %w", b.fairlead, err)
	}
	a.pid = a.outer.Process.Pid
	limit, cancel := context.WithTimeoutCause(ctx, readyWithin, errTooSlow)
	defer cancel()
	if err := said.inLine(limit, n); err != nil {
		a.stop()
		return nil, fmt.Errorf("fairlead run: %w", err)
	}
	a.load.Load.Wall = monotonic() - begin
	a.load.Load.CPU, err = cgroupCPU(b.lab.cgroupDir(p.self))
	return a, err
}

// cgroupCPU is the CPU time of all that ran in a cgroup, in nanoseconds.
func cgroupCPU(dir string) (int64, error) {
	text, err := os.ReadFile(filepath.Join(dir, "cpu.stat"))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if v, ok := strings.CutPrefix(line, "usage_usec "); ok {
			us, err := strconv.ParseInt(strings.TrimSpace(v), 10, 64)
			return us * 1000, err
		}
	}
	return 0, fmt.Errorf("no usage_usec in %s/cpu.stat", dir)
}

// flip gives the probed Service the addresses from first on, and the time just
// before it did.
func (a *agent) flip(first int) (at int64, err error) {
	if a.inner != nil {
		err = a.inner.ask("flip", flipOrder{first}, &at)
		return at, err
	}
	next := filepath.Join(a.place.dir, probeFile)
	if err := os.WriteFile(next, probeManifest(first), 0o644); err != nil {
		return 0, err
	}
	at = monotonic()
	return at, os.Rename(next, filepath.Join(a.place.manifests, probeFile))
}

// memory is what /proc/PID/status says, in MiB.
type memory struct {
	RSS, Peak float64
	// Anonymous is the agent's own. File is the binary and, since the kernel
	// counts it so, eBPF maps that are mapped into the agent.
	Anonymous, File float64
}

func (a *agent) memory() (m memory, err error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", a.pid))
	if err != nil {
		return m, fmt.Errorf("read the agent's memory: %w", err)
	}
	for line := range strings.Lines(string(text)) {
		key, value, _ := strings.Cut(line, ":")
		to := map[string]*float64{"VmRSS": &m.RSS, "VmHWM": &m.Peak, "RssAnon": &m.Anonymous, "RssFile": &m.File}[key]
		if to == nil {
			continue
		}
		kib, err := strconv.ParseFloat(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(value), "kB")), 64)
		if err != nil {
			return m, err
		}
		*to = kib / 1024
	}
	return m, nil
}

// leave ends the agent and removes what it left in the kernel.
func (a *agent) leave() error {
	if a.inner != nil && a.load.Profiled {
		if err := a.inner.ask("profile", struct{}{}, nil); err != nil {
			return err
		}
	}
	a.stop()
	return a.place.leave()
}

func (a *agent) stop() {
	if a.inner != nil {
		a.inner.stop()
		return
	}
	_ = a.outer.Process.Kill()
	_ = a.outer.Wait()
}
