// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// readyWithin is how long an agent may take for its first programming. One
	// that takes longer has a row that says so.
	readyWithin = 90 * time.Second
	// dataplaneSettle is how long an agent is left alone before its memory is
	// read.
	dataplaneSettle = 5 * time.Second
	// dataplaneBlocks are fewer than those of the part connect.
	dataplaneBlocks = 30
	// slowFlips are for agents that make their changes wait.
	slowFlips = 20
)

// contestant is an agent that is compared: fairlead with one dataplane, or
// kube-proxy.
type contestant struct {
	name  string
	flips int
	// strict: a Backend that answers after it was removed is a failure, as it
	// is for connect() hooks. With netfilter it is counted.
	strict bool
	// command, in files of dir and with a kubeconfig.
	command func(b *bench, p *place, kubeconfig string) (*exec.Cmd, error)
	// ready waits until n Services are programmed.
	ready func(ctx context.Context, r *race, n int) error
}

// errTooSlow: not ready after readyWithin.
var errTooSlow = errors.New("not ready")

// dataplanes compares them, each on a node of its own that is then thrown away.
func (b *bench) dataplanes(ctx context.Context) error {
	var list []contestant
	for _, d := range b.settings.dataplanes {
		list = append(list, fairleadWith(d, b.settings.flips))
	}
	if b.kubeProxy != "" {
		list = append(list, kubeProxyWith("kube-proxy nftables", ""), kubeProxyWith("  minSyncPeriod 1ms", "1ms"))
	}
	var errs []error
	for _, n := range b.settings.services {
		for _, c := range list {
			say("dataplanes: %s, %d Services", c.name, n)
			row, err := b.compare(ctx, c, n)
			switch {
			case ctx.Err() != nil:
				return err
			case errors.Is(err, errTooSlow):
				row.Without = fmt.Sprintf("not ready after %v", readyWithin)
			case err != nil: // the others are measured all the same
				row.Without = "failed"
				errs = append(errs, fmt.Errorf("%s, %d Services: %w", strings.TrimSpace(c.name), n, err))
			}
			b.report.Dataplanes = append(b.report.Dataplanes, row)
		}
	}
	return errors.Join(errs...)
}

// race is one contestant at work.
type race struct {
	site   *site
	place  *place
	api    *apiServer
	client *process
	agent  *agent
	said   *log
}

func (b *bench) compare(ctx context.Context, c contestant, n int) (row dataplaneRow, err error) {
	row = dataplaneRow{Name: c.name, Services: n}
	r := &race{}
	defer func() { err = errors.Join(err, r.leave(b.lab)) }()
	if err := r.enter(b.lab, n); err != nil {
		return row, err
	}
	config := filepath.Join(r.place.dir, "kubeconfig")
	if err := os.WriteFile(config, r.api.kubeconfig(), 0o600); err != nil {
		return row, err
	}
	cmd, err := c.command(b, r.place, config)
	if err != nil {
		return row, err
	}
	if r.said, err = logOf(cmd); err != nil {
		return row, err
	}
	begin := monotonic()
	if err := b.lab.launch(cmd, r.site.node, r.place.self); err != nil {
		return row, fmt.Errorf("start %s: %w", cmd.Path, err)
	}
	r.agent = &agent{place: r.place, outer: cmd, pid: cmd.Process.Pid}
	limit, cancel := context.WithTimeoutCause(ctx, readyWithin, errTooSlow)
	defer cancel()
	if err := c.ready(limit, r, n); err != nil {
		if errors.Is(context.Cause(limit), errTooSlow) {
			err = errTooSlow
		}
		return row, err
	}
	row.Load.WallMs = float64(monotonic()-begin) / 1e6
	return row, b.measure(ctx, r, c, &row)
}

// measure fills the rest of a row, of an agent that is ready.
func (b *bench) measure(ctx context.Context, r *race, c contestant, row *dataplaneRow) error {
	self := b.lab.cgroupDir(r.place.self)
	cpu := func() (ms float64, err error) {
		ns, err := cgroupCPU(self)
		return float64(ns) / 1e6, err
	}
	var err error
	if row.Load.CPUMs, err = cpu(); err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(dataplaneSettle):
	}
	if row.Memory, err = r.agent.memory(); err != nil {
		return err
	}
	o := connectOrder{Protocol: unix.IPPROTO_TCP, Blocks: dataplaneBlocks, PerBlock: perBlock, Variants: b.variants(r.site, r.place, false)}
	var connects connectResult
	if err := r.client.ask("connects", o, &connects); err != nil {
		return err
	}
	row.Connect = newConnectRow(c.name, connects)
	before, err := cpu()
	if err != nil {
		return err
	}
	took, stale, err := r.flips(c.flips)
	if err == nil && c.strict && stale > 0 {
		err = fmt.Errorf("flip: %d answers of Backends that had been removed before", stale)
	}
	if err != nil {
		return err
	}
	after, err := cpu()
	if err != nil {
		return err
	}
	row.StaleAnswers = stale
	row.Flips, row.CPUMsPerFlip = len(took), (after-before)/float64(len(took))
	row.P50Ms, row.P99Ms, row.MaxMs = percentile(took, 50), percentile(took, 99), percentile(took, 100)
	return nil
}

// flips changes the Backends of the probed Service again and again, and gives
// how many milliseconds each change took to be in force, and how many answers
// of removed Backends came after the first one of a new Backend.
func (r *race) flips(count int) (took []float64, stale int, err error) {
	order := awaitOrder{To: netip.AddrPortFrom(probeIPv4, servicePort), First: firstBefore, Within: 30 * time.Second}
	for range count {
		order.First = firstBefore + firstAfter - order.First
		if err := r.client.begin("await", order); err != nil {
			return nil, 0, err
		}
		time.Sleep(2*time.Millisecond + rand.N(10*time.Millisecond)) // not in step with anything
		begin := r.api.change("endpointslices", newSlices(0, order.First)[0])
		var moved awaited
		err := r.client.end("await", &moved)
		for ; err == nil && moved.At < begin; stale++ {
			err = r.client.ask("await", order, &moved)
		}
		if err != nil {
			return nil, 0, err
		}
		took = append(took, float64(moved.At-begin)/1e6)
	}
	return took, stale, nil
}

// enter makes a node, an API server with n Services, and a client.
func (r *race) enter(l *lab, n int) (err error) {
	if r.site, err = l.newSite(); err != nil {
		return err
	}
	if r.place, err = l.newPlace(); err != nil {
		return err
	}
	if r.api, err = startAPIServer(r.site.node, n, podIPv4(1).String(), podIPv6(1).String()); err != nil {
		return err
	}
	r.client, err = l.start("client", r.site.client, r.place.pods)
	return err
}

// leave throws the node away with all that the agent left in its kernel.
func (r *race) leave(l *lab) error {
	if r.agent != nil {
		r.agent.stop()
	}
	if r.client != nil {
		r.client.stop()
	}
	if r.api != nil {
		r.api.close()
	}
	if r.site != nil {
		l.closeSite(r.site)
	}
	if r.place == nil {
		return nil
	}
	return r.place.leave()
}

// fairleadWith is `fairlead run` with a dataplane.
func fairleadWith(dataplane string, flips int) contestant {
	return contestant{
		name: "fairlead " + dataplane, flips: flips, strict: dataplane == "ebpf",
		command: func(b *bench, p *place, kubeconfig string) (*exec.Cmd, error) {
			return exec.Command(b.fairlead, "run", "--kubeconfig", kubeconfig, "--dataplane", dataplane, "--node-name", nodeName,
				"--state-dir", p.state, "--bpffs", p.bpffs, "--cgroup-root", b.lab.cgroupDir(p.pods),
				"--slots-max", fmt.Sprint(slotsFor(b.settings.services)), "--cluster-cidr", clusterCIDRs, "--log-format", "json"), nil
		},
		ready: func(ctx context.Context, r *race, n int) error {
			return r.said.inLine(ctx, n)
		},
	}
}
