// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"fairlead.dev/controller/compile"
	"fairlead.dev/dataplane"
)

// How long a failed attempt waits for the next one: doubled each time.
const (
	retryMin = 100 * time.Millisecond
	retryMax = 10 * time.Second
)

// driftRest is the least time between two checks that a Dataplane asked for.
const driftRest = 250 * time.Millisecond

// maxTriggers bounds the trigger times kept while the Dataplane fails.
const maxTriggers = 1000

// loop is the one goroutine that compiles and calls the Dataplane. Its fields
// are its own.
type loop struct {
	c *Controller
	// lost: an attempt failed whole, so what the kernel holds is unknown until
	// a Sync. The last good state is in force; changes wait.
	lost    bool
	failed  map[dataplane.ServiceName]failure
	delay   time.Duration
	retry   *time.Timer
	waiting bool // retry is armed
	said    reports

	sizes map[dataplane.ServiceName]size
	total size
	// triggers are when what was taken began. What began before this process
	// did is not its latency.
	triggers []time.Time
	begun    time.Time
}

// failure is a Service that the Dataplane did not take.
type failure struct {
	err  error
	want *dataplane.Service // nil: to be removed
}

func newLoop(c *Controller) *loop {
	retry := time.NewTimer(time.Hour)
	retry.Stop()
	return &loop{
		c: c, lost: true, delay: retryMin, retry: retry, begun: time.Now(),
		failed: map[dataplane.ServiceName]failure{}, sizes: map[dataplane.ServiceName]size{},
	}
}

// run does nothing to the kernel until the Source has delivered all that
// exists, and leaves the kernel as it is when ctx ends.
func (l *loop) run(ctx context.Context) error {
	defer l.retry.Stop()
	select {
	case <-ctx.Done():
		return nil
	case <-l.c.synced:
	}
	if err := l.firstSync(ctx); err != nil {
		return err
	}
	var check <-chan time.Time
	if l.c.opts.CheckInterval > 0 {
		check = time.After(jitter(l.c.opts.CheckInterval))
	}
	drifted, rested := l.drifted(), make(chan struct{}, 1)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-l.c.wake:
			if !l.lost { // else the retry takes it along
				l.apply(ctx, false)
			}
		case <-l.retry.C:
			l.waiting = false
			if l.lost {
				l.resync(ctx)
			} else {
				l.apply(ctx, true)
			}
		case <-check:
			l.check(ctx)
			check = time.After(jitter(l.c.opts.CheckInterval))
		case <-drifted:
			// Whoever keeps changing our state makes us check a quarter of the
			// time, not all of it.
			start := time.Now()
			l.check(ctx)
			rest := max(driftRest, 3*time.Since(start))
			drifted = nil
			time.AfterFunc(rest, func() { rested <- struct{}{} })
		case <-rested:
			drifted = l.drifted()
		}
	}
}

// drifted is signalled by a Dataplane that can watch its kernel state.
func (l *loop) drifted() <-chan struct{} {
	if w, ok := l.c.opts.Dataplane.(dataplane.Watcher); ok {
		return w.Drifted()
	}
	return nil
}

// firstSync adopts what an earlier process left. A proxy that cannot program
// must not keep running as if it could (kubernetes #85483).
func (l *loop) firstSync(ctx context.Context) error {
	start := time.Now()
	for {
		n, err := l.resync(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case !l.lost:
			l.c.opts.Log.Info("kernel in line with the rule table", "dataplane", l.c.opts.Dataplane.Name(),
				"services", len(l.sizes), "frontends", l.total.frontends, "changed", n, "took", time.Since(start))
			if f := l.c.opts.FirstSynced; f != nil {
				f()
			}
			return nil
		case time.Since(start) > l.c.opts.FirstSyncTimeout:
			return fmt.Errorf("dataplane %s cannot program the kernel, see fairlead check: %w", l.c.opts.Dataplane.Name(), err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-l.retry.C:
			l.waiting = false
		}
	}
}

// apply makes the kernel follow what changed and, if again, tries the failed
// Services once more.
func (l *loop) apply(ctx context.Context, again bool) {
	res, _ := l.take(false)
	l.follow(ctx, res, again)
}

func (l *loop) follow(ctx context.Context, res compile.Result, again bool) {
	change := l.withFailed(res.Change, again)
	var err error
	if !change.Empty() {
		start := time.Now()
		err = l.c.opts.Dataplane.Apply(ctx, change)
		l.observe(l.c.metrics.partialSeconds, start)
	}
	if whole(err) == nil {
		for name := range change.Services {
			delete(l.failed, name)
		}
	}
	l.settle(ctx, err, change.Services)
	l.c.checks.update(res.HealthChecks)
}

// resync makes the kernel equal the whole Table as it is now.
func (l *loop) resync(ctx context.Context) (changed int, err error) {
	res, table := l.take(true)
	changed, err = l.sync(ctx, table)
	l.c.checks.update(res.HealthChecks)
	return changed, err
}

// check compares the kernel with the Table. What waits is applied first, so
// that all that Sync has to change is drift.
func (l *loop) check(ctx context.Context) {
	if l.lost {
		return
	}
	res, table := l.take(true)
	l.follow(ctx, res, false)
	if l.lost || ctx.Err() != nil {
		return
	}
	clean := len(l.failed) == 0
	changed, _ := l.sync(ctx, table)
	if clean && changed > 0 {
		l.c.metrics.drift.Add(float64(changed))
		l.c.opts.Log.Warn("repaired drift: something else changed the kernel's state", "frontends", changed)
	}
}

func (l *loop) sync(ctx context.Context, table *dataplane.Table) (changed int, err error) {
	start := time.Now()
	changed, err = l.c.opts.Dataplane.Sync(ctx, table)
	l.observe(l.c.metrics.fullSeconds, start)
	if whole(err) == nil {
		l.lost = false
		clear(l.failed)
	}
	l.settle(ctx, err, table.Services)
	return changed, err
}

// take compiles what arrived. The whole Table costs as much as the cluster is
// large, so it is made only if asked for.
func (l *loop) take(whole bool) (res compile.Result, table *dataplane.Table) {
	c := l.c
	c.mu.Lock()
	res = c.compiler.Compile()
	if whole {
		table = c.compiler.Table()
	}
	c.progress.taken()
	c.problems = res.Problems
	c.noLocal = res.NoLocalEndpoints
	c.mu.Unlock()
	l.count(res.Change)
	for _, times := range res.TriggerTimes {
		for _, t := range times {
			if t.After(l.begun) && len(l.triggers) < maxTriggers {
				l.triggers = append(l.triggers, t)
			}
		}
	}
	if res.ProblemsChanged {
		l.said.problems(l.c.opts.Log, res.Problems)
	}
	return res, table
}

// withFailed adds the failed Services where they are due, or where the Change
// may have made room for them.
func (l *loop) withFailed(change dataplane.Change, due bool) dataplane.Change {
	if len(l.failed) == 0 {
		return change
	}
	due = due || change.Node != nil
	for _, s := range change.Services {
		due = due || s == nil
	}
	if !due {
		return change
	}
	services := maps.Clone(change.Services)
	if services == nil {
		services = map[dataplane.ServiceName]*dataplane.Service{}
	}
	for name, f := range l.failed {
		if _, newer := services[name]; !newer {
			services[name] = f.want
		}
	}
	return dataplane.Change{Services: services, Node: change.Node}
}

// whole gives err unless it is about some Services only.
func whole(err error) error {
	var partial *dataplane.ApplyError
	if errors.As(err, &partial) {
		return nil
	}
	return err
}

// settle draws the consequences of an attempt to give the kernel these Services.
func (l *loop) settle(ctx context.Context, err error, wanted map[dataplane.ServiceName]*dataplane.Service) {
	if err != nil && ctx.Err() != nil {
		return
	}
	var partial *dataplane.ApplyError
	if errors.As(err, &partial) {
		for name, cause := range partial.Failed {
			l.failed[name] = failure{err: cause, want: wanted[name]}
		}
	} else if err != nil {
		l.lost = true
	}
	if err != nil {
		l.c.metrics.applyErrors.Inc()
	}
	if len(l.failed) > 0 || len(*l.c.failed.Load()) > 0 {
		failed := make(map[dataplane.ServiceName]error, len(l.failed))
		for name, f := range l.failed {
			failed[name] = f.err
		}
		l.c.failed.Store(&failed)
	}
	if !l.lost {
		l.inForce()
	}
	l.said.outcome(l.c.opts.Log, err, len(l.failed) == 0 && !l.lost)
	l.schedule()
}

// inForce notes that the kernel has what was taken, but for the failed.
func (l *loop) inForce() {
	now := time.Now()
	l.c.progress.done(len(l.failed))
	for _, t := range l.triggers {
		l.c.metrics.programmingSeconds.Observe(max(0, now.Sub(t).Seconds()))
	}
	l.triggers = l.triggers[:0]
}

// schedule arms the retry where something failed.
func (l *loop) schedule() {
	switch {
	case !l.lost && len(l.failed) == 0:
		l.retry.Stop()
		l.waiting, l.delay = false, retryMin
	case !l.waiting:
		l.retry.Reset(jitter(l.delay))
		l.waiting, l.delay = true, min(2*l.delay, retryMax)
	}
}

func (l *loop) observe(h prometheus.Observer, start time.Time) {
	d := time.Since(start).Seconds()
	h.Observe(d)
	l.c.metrics.syncSeconds.Observe(d)
}

// jitter spreads d by a tenth, so that a cluster's agents do not work in step.
func jitter(d time.Duration) time.Duration {
	return d - d/10 + rand.N(d/5+1)
}
