// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"runtime/pprof"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"fairlead.dev/controller"
	"fairlead.dev/controller/source"
	"fairlead.dev/dataplane"
	"fairlead.dev/dataplane/ebpf"
)

// gcPercent is that of `fairlead run` (cmd/fairlead/run.go).
const gcPercent = 25

// innerAgent is the agent without its command line and with a Source that
// makes its objects: controller, compile and the ebpf Dataplane are the real
// ones. It has a process to itself.
type innerAgent struct {
	order  loadOrder
	source source.Source
	made   *made // where the Source is one
	dp     *timed
	failed chan error
	cpu    *os.File
}

// loadOrder starts an innerAgent.
type loadOrder struct {
	Services int
	// Manifests: objects come from this directory after all.
	Manifests, State  string
	BPFFS, CgroupRoot string
	CheckInterval     time.Duration
	Profile           string // path to begin file names with, empty for none
}

// loaded is what a start cost. Programs is until the eBPF programs are loaded
// and attached, Load from the first object to the end of the first Sync, Making
// what of that the making of the objects takes.
type loaded struct {
	Programs, Load, Making, Sync cost
	Profiled                     bool
}

// cost is in nanoseconds, CPU that of all threads.
type cost struct{ Wall, CPU int64 }

func costSince(wall, cpu int64) cost { return cost{monotonic() - wall, cpuTime() - cpu} }

func cpuTime() int64 {
	var u unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &u)
	return u.Utime.Nano() + u.Stime.Nano()
}

func (a *innerAgent) load(o loadOrder) (r loaded, err error) {
	a.order = o
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	if o.Profile != "" {
		if a.cpu, err = os.Create(o.Profile + "-cpu.pprof"); err != nil {
			return r, err
		}
	}
	slots := slotsFor([]int{o.Services})
	wall, cpu := monotonic(), cpuTime()
	inner, err := ebpf.New(context.Background(), ebpf.Options{BPFFS: o.BPFFS, CgroupRoot: o.CgroupRoot, SlotsMax: slots, Logger: log})
	if err != nil {
		return r, err
	}
	r.Programs = costSince(wall, cpu)

	wall, cpu = monotonic(), cpuTime()
	for i := range o.Services {
		runtime.KeepAlive(newService(i))
		runtime.KeepAlive(newSlices(i, firstBefore))
	}
	r.Making = costSince(wall, cpu)
	if err := a.openSource(log); err != nil {
		return r, err
	}
	a.dp, a.failed = &timed{Dataplane: inner, first: make(chan struct{})}, make(chan error, 1)
	c, err := controller.New(controller.Options{
		Source: a.source, Dataplane: a.dp, NodeName: nodeName, Log: log, CheckInterval: o.CheckInterval,
		FirstSynced: func() {
			go func() {
				debug.SetGCPercent(gcPercent)
				debug.FreeOSMemory()
			}()
		},
		ClusterCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00:10:244::/48")},
	})
	if err != nil {
		return r, err
	}
	if a.cpu != nil {
		_ = pprof.StartCPUProfile(a.cpu)
	}
	wall, cpu = monotonic(), cpuTime()
	go func() { a.failed <- c.Run(context.Background()) }()
	select {
	case err := <-a.failed:
		return r, fmt.Errorf("the controller ended: %w", err)
	case <-a.dp.first:
	}
	r.Load = costSince(wall, cpu)
	r.Sync, r.Profiled = cost{Wall: a.dp.took[0]}, o.Profile != ""
	return r, nil
}

// slotsFor is what --slots-max would be set to.
func slotsFor(services []int) int {
	return max(ebpf.DefaultSlotsMax, 12*slices.Max(services))
}

func (a *innerAgent) openSource(log *slog.Logger) (err error) {
	if a.order.Manifests == "" {
		a.made = &made{services: a.order.Services, flips: make(chan flipOrder), flipped: make(chan int64)}
		a.source = a.made
		return nil
	}
	a.source, err = source.NewDirectory(source.DirectoryOptions{
		Path: a.order.Manifests, NodeName: nodeName, StatePath: filepath.Join(a.order.State, "clusterips.json"), Logger: log})
	return err
}

// flipOrder moves the probed Service to the addresses from First on.
type flipOrder struct{ First int }

// flip gives the time just before the Handler was told.
func (a *innerAgent) flip(o flipOrder) (int64, error) {
	select {
	case err := <-a.failed:
		return 0, fmt.Errorf("the controller ended: %w", err)
	case a.made.flips <- o:
	}
	return <-a.made.flipped, nil
}

// syncs gives how long the full checks took so far, in nanoseconds.
func (a *innerAgent) syncs(struct{}) ([]int64, error) {
	a.dp.mu.Lock()
	defer a.dp.mu.Unlock()
	if len(a.dp.errs) > 0 {
		return nil, a.dp.errs[0]
	}
	return a.dp.took[1:], nil
}

// profile writes the heap's profile after a collection, and ends that of the CPU.
func (a *innerAgent) profile(struct{}) (struct{}, error) {
	pprof.StopCPUProfile()
	a.cpu.Close()
	f, err := os.Create(a.order.Profile + "-heap.pprof")
	if err != nil {
		return struct{}{}, err
	}
	defer f.Close()
	runtime.GC()
	return struct{}{}, pprof.Lookup("heap").WriteTo(f, 0)
}

// timed is a Dataplane that notes how long Sync takes.
type timed struct {
	dataplane.Dataplane
	first chan struct{}

	mu   sync.Mutex
	took []int64
	errs []error
}

// Sync implements dataplane.Dataplane.
func (t *timed) Sync(ctx context.Context, table *dataplane.Table) (int, error) {
	begin := monotonic()
	n, err := t.Dataplane.Sync(ctx, table)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.took = append(t.took, monotonic()-begin)
	if err != nil {
		t.errs = append(t.errs, err)
	} else if len(t.took) == 1 {
		close(t.first)
	} else if n > 0 {
		t.errs = append(t.errs, fmt.Errorf("a check repaired %d Frontends that nobody had touched", n))
	}
	return n, err
}

// made is a Source whose objects are made when they are delivered.
type made struct {
	services int
	flips    chan flipOrder
	flipped  chan int64
}

// Name implements source.Source.
func (m *made) Name() string { return "made for the benchmark" }

// State implements source.Source.
func (m *made) State() source.State { return source.State{Connected: true} }

// Run implements source.Source.
func (m *made) Run(ctx context.Context, h source.Handler) error {
	for i := range m.services {
		s := newService(i)
		h.OnService(keyOf(s), s)
		for _, slice := range newSlices(i, firstBefore) {
			h.OnEndpointSlice(keyOf(slice), slice)
		}
	}
	h.OnSynced()
	for {
		select {
		case <-ctx.Done():
			return nil
		case o := <-m.flips:
			slice := newSlices(0, o.First)[0]
			at := monotonic()
			h.OnEndpointSlice(keyOf(slice), slice)
			m.flipped <- at
		}
	}
}
