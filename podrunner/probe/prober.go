// SPDX-License-Identifier: Apache-2.0

// Package probe asks containers whether they have started, live and are ready,
// by what their Pod's probes say. It is responsible for asking at the right
// time, for thresholds, and for that one container's slowness is not another's;
// it refuses to know what follows from a result.
package probe

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Kind of a probe.
type Kind uint8

// The kinds of probes.
const (
	Startup Kind = iota
	Readiness
	Liveness
)

func (k Kind) String() string { return [...]string{"Startup", "Readiness", "Liveness"}[k] }

// Result of a probe after its thresholds.
type Result uint8

// Results. Unknown: there was none yet.
const (
	Unknown Result = iota
	Success
	Failure
)

// Target is one probe of one running container.
type Target struct {
	Pod         types.UID
	Container   *corev1.Container
	ContainerID string
	Kind        Kind
	// Host is where http, tcp and grpc probes go that name no other: the Pod's
	// address.
	Host string
	// Started is when the container was started.
	Started time.Time
	// Initial is the result that holds until there is one: what was known of
	// this very container before a restart of the agent. Mostly Unknown.
	Initial Result
}

func (t *Target) spec() *corev1.Probe {
	switch t.Kind {
	case Startup:
		return t.Container.StartupProbe
	case Readiness:
		return t.Container.ReadinessProbe
	}
	return t.Container.LivenessProbe
}

// Options are what a Prober is made from.
type Options struct {
	// Exec runs a command in a container; exit is its code where err is nil.
	Exec func(ctx context.Context, id string, command []string, timeout time.Duration) (output []byte, exit int, err error)
	// Changed is called when a probe's result is another than before, and when it
	// was asked for the first time. It must not block.
	Changed func(pod types.UID)
	// Unhealthy is called for each single try that failed or warned, for an
	// Event: reason is "Unhealthy" or "ProbeWarning". May be nil.
	Unhealthy func(t *Target, reason, message string)
	Logger    *slog.Logger
}

// Prober runs probes. All methods may be called at once.
type Prober struct {
	o     Options
	start time.Time
	poke  chan struct{}

	mu    sync.Mutex
	pods  map[types.UID][]*entry
	queue queue
	// fields of every entry are guarded by mu
}

type entry struct {
	Target
	due     time.Time
	index   int // in queue; -1: not in it
	running bool
	gone    bool
	// held: not asked any more, or not yet (until the startup probe succeeds).
	held   bool
	result Result
	asked  bool
	// last is the last single result, run how often it came in a row.
	last Result
	run  int32
}

// New makes a Prober; Run makes it ask.
func New(o Options) *Prober {
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.Unhealthy == nil {
		o.Unhealthy = func(*Target, string, string) {}
	}
	return &Prober{o: o, start: time.Now(), poke: make(chan struct{}, 1), pods: map[types.UID][]*entry{}}
}

// Set replaces what is probed of a Pod. A target of the same container and kind
// goes on as it is.
func (p *Prober) Set(pod types.UID, targets []Target) {
	p.mu.Lock()
	defer p.mu.Unlock()
	old := p.pods[pod]
	var entries []*entry
	for i := range targets {
		if targets[i].spec() == nil {
			continue
		}
		e := take(old, &targets[i])
		if e == nil {
			e = &entry{Target: targets[i], index: -1, result: targets[i].Initial}
			p.schedule(e)
		}
		entries = append(entries, e)
	}
	for _, e := range old {
		if e != nil {
			e.gone = true
			p.queue.remove(e)
		}
	}
	if len(entries) == 0 {
		delete(p.pods, pod)
		return
	}
	p.pods[pod] = entries
	for _, e := range entries {
		p.release(e)
	}
}

// take moves the entry of the same target out of old.
func take(old []*entry, t *Target) *entry {
	for i, e := range old {
		if e != nil && e.ContainerID == t.ContainerID && e.Kind == t.Kind {
			old[i] = nil
			e.Host, e.Container = t.Host, t.Container
			return e
		}
	}
	return nil
}

// schedule sets the first time: after the initial delay; where the container
// runs for long already, liveness at some time of its period, so that a restart
// of the agent does not ask all at once.
func (p *Prober) schedule(e *entry) {
	spec := e.spec()
	now := time.Now()
	e.due = e.Started.Add(time.Duration(spec.InitialDelaySeconds) * time.Second)
	if e.due.Before(now) {
		e.due = now
		if e.Kind == Liveness && e.Started.Before(p.start) {
			e.due = now.Add(rand.N(period(spec)))
		}
	}
	e.held = e.Kind == Startup && e.result == Success
	if e.Kind != Startup && e.Container.StartupProbe != nil {
		e.held = true
	}
	if !e.held {
		p.push(e)
	}
}

// release lets a probe go that waited for the startup probe.
func (p *Prober) release(e *entry) {
	if !e.held || e.Kind == Startup || e.running || (e.Kind == Liveness && e.result == Failure) {
		return
	}
	if e.Container.StartupProbe != nil && p.resultOf(e.Pod, e.ContainerID, Startup) != Success {
		return
	}
	e.held = false
	if now := time.Now(); e.due.Before(now) {
		e.due = now
	}
	p.push(e)
}

func (p *Prober) push(e *entry) {
	if p.queue.push(e) {
		select {
		case p.poke <- struct{}{}:
		default:
		}
	}
}

func period(spec *corev1.Probe) time.Duration {
	return time.Duration(max(spec.PeriodSeconds, 1)) * time.Second
}

// Result of a container's probe; Unknown where it has none, or none yet.
func (p *Prober) Result(pod types.UID, containerID string, k Kind) Result {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.resultOf(pod, containerID, k)
}

// Asked says whether a container's probe has answered once, whatever that means
// for its result.
func (p *Prober) Asked(pod types.UID, containerID string, k Kind) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, e := range p.pods[pod] {
		if e.ContainerID == containerID && e.Kind == k {
			return e.asked
		}
	}
	return false
}

func (p *Prober) resultOf(pod types.UID, containerID string, k Kind) Result {
	for _, e := range p.pods[pod] {
		if e.ContainerID == containerID && e.Kind == k {
			return e.result
		}
	}
	return Unknown
}

// Run asks until ctx ends, and returns when the last try has.
func (p *Prober) Run(ctx context.Context) {
	var tries sync.WaitGroup
	defer tries.Wait()
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		next := time.Hour
		p.mu.Lock()
		now := time.Now()
		for e := p.queue.first(); e != nil; e = p.queue.first() {
			if wait := e.due.Sub(now); wait > 0 {
				next = wait
				break
			}
			p.queue.remove(e)
			e.running = true
			target := e.Target
			tries.Go(func() { p.try(ctx, e, &target) })
		}
		p.mu.Unlock()
		timer.Reset(next)
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-p.poke:
		}
	}
}

// try asks once; a try that could not be made is repeated up to three times.
func (p *Prober) try(ctx context.Context, e *entry, t *Target) {
	spec := t.spec()
	var a answer
	var err error
	for range 3 {
		if a, err = p.ask(ctx, t, spec); err == nil || ctx.Err() != nil {
			break
		}
	}
	if ctx.Err() != nil {
		return
	}
	switch {
	case err != nil:
		p.o.Unhealthy(t, "Unhealthy", fmt.Sprintf("%s probe errored and resulted in unknown state: %v", t.Kind, err))
	case !a.ok:
		p.o.Unhealthy(t, "Unhealthy", fmt.Sprintf("%s probe failed: %s", t.Kind, a.output))
	case a.warn:
		p.o.Unhealthy(t, "ProbeWarning", fmt.Sprintf("%s probe warning: %s", t.Kind, a.output))
	}
	p.mu.Lock()
	e.running = false
	changed := !e.asked
	e.asked = true
	if !e.gone {
		if err == nil {
			changed = p.count(e, spec, a.ok) || changed
		}
		if !e.held {
			e.due = e.due.Add(period(spec))
			if now := time.Now(); e.due.Before(now) {
				e.due = now.Add(period(spec))
			}
			p.push(e)
		}
	}
	p.mu.Unlock()
	if changed {
		p.o.Changed(t.Pod)
	}
}

// count applies the thresholds, and says whether the result is another now.
func (p *Prober) count(e *entry, spec *corev1.Probe, ok bool) bool {
	r := Failure
	threshold := max(spec.FailureThreshold, 1)
	if ok {
		r, threshold = Success, max(spec.SuccessThreshold, 1)
	}
	if e.last == r {
		e.run++
	} else {
		e.last, e.run = r, 1
	}
	if e.run < threshold {
		return false
	}
	// A container that is to be ended, or has started, is not asked that again.
	if e.Kind == Startup || (e.Kind == Liveness && r == Failure) {
		e.held = true
	}
	if e.result == r {
		return false
	}
	e.result = r
	if e.Kind == Startup && r == Success {
		for _, other := range p.pods[e.Pod] {
			if other.ContainerID == e.ContainerID {
				p.release(other)
			}
		}
	}
	return true
}
