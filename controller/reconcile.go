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

// maxTriggers bounds the trigger times kept while the Dataplane fails.
const maxTriggers = 1000

// loop is the one goroutine that compiles and calls the Dataplane. Its fields
// are its own.
type loop struct {
	c *Controller
	// lost: an attempt failed whole, so what the kernel holds is unknown until
	// a Sync. The last good state is in force; changes wait.
	lost    bool
	failed  map[dataplane.ServiceName]error
	delay   time.Duration
	retry   *time.Timer
	waiting bool // retry is armed
	logged  string
	// problems are those that compile gave last.
	problems map[compile.Problem]bool

	sizes map[dataplane.ServiceName]size
	total size
	// triggers are when what was taken began. What began before this process
	// did is not its latency.
	triggers []time.Time
	begun    time.Time
}

// size counts what the metrics tell of a Service.
type size struct{ frontends, backends int }

func newLoop(c *Controller) *loop {
	retry := time.NewTimer(time.Hour)
	retry.Stop()
	return &loop{
		c: c, lost: true, delay: retryMin, retry: retry, begun: time.Now(),
		failed: map[dataplane.ServiceName]error{}, sizes: map[dataplane.ServiceName]size{},
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
		}
	}
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
	res := l.take()
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
	l.settle(ctx, err)
	l.c.checks.update(res.HealthChecks)
}

// resync makes the kernel equal the whole Table as it is now.
func (l *loop) resync(ctx context.Context) (changed int, err error) {
	res := l.take()
	changed, err = l.sync(ctx)
	l.c.checks.update(res.HealthChecks)
	return changed, err
}

// check compares the kernel with the Table. What waits is applied first, so
// that all that Sync has to change is drift.
func (l *loop) check(ctx context.Context) {
	if l.lost {
		return
	}
	l.apply(ctx, false)
	if l.lost || ctx.Err() != nil {
		return
	}
	clean := len(l.failed) == 0
	changed, _ := l.sync(ctx)
	if clean && changed > 0 {
		l.c.metrics.drift.Add(float64(changed))
		l.c.opts.Log.Warn("repaired drift: something else changed the kernel's state", "frontends", changed)
	}
}

func (l *loop) sync(ctx context.Context) (changed int, err error) {
	start := time.Now()
	// Only Compile changes the Table, and only this goroutine calls it.
	changed, err = l.c.opts.Dataplane.Sync(ctx, l.c.compiler.Table())
	l.observe(l.c.metrics.fullSeconds, start)
	if whole(err) == nil {
		l.lost = false
		clear(l.failed)
	}
	l.settle(ctx, err)
	return changed, err
}

// take compiles what arrived.
func (l *loop) take() compile.Result {
	c := l.c
	c.mu.Lock()
	res := c.compiler.Compile()
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
		l.warn(res.Problems)
	}
	return res
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
	for name := range l.failed {
		services[name] = l.c.compiler.Table().Services[name]
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

// settle draws the consequences of an attempt.
func (l *loop) settle(ctx context.Context, err error) {
	if err != nil && ctx.Err() != nil {
		return
	}
	var partial *dataplane.ApplyError
	if errors.As(err, &partial) {
		maps.Copy(l.failed, partial.Failed)
	} else if err != nil {
		l.lost = true
	}
	if err != nil {
		l.c.metrics.applyErrors.Inc()
	}
	if len(l.failed) > 0 || len(*l.c.failed.Load()) > 0 {
		failed := maps.Clone(l.failed)
		l.c.failed.Store(&failed)
	}
	if !l.lost {
		l.inForce()
	}
	l.report(err)
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

// warn logs the Problems that are new. There may be many, and one may flap, so
// a Compile says at most a few.
func (l *loop) warn(now []compile.Problem) {
	const most = 10
	known := l.problems
	l.problems = make(map[compile.Problem]bool, len(now))
	logged := 0
	for _, p := range now {
		l.problems[p] = true
		if known[p] {
			continue
		}
		if logged++; logged <= most {
			l.c.opts.Log.Warn("not in force as written", "object", p.Object, "reason", p.Reason)
		}
	}
	if logged > most {
		l.c.opts.Log.Warn("more objects are not in force as written", "count", logged-most)
	}
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

// report logs a failure when it is new and when it is over, not each attempt.
func (l *loop) report(err error) {
	msg := ""
	if err != nil {
		msg = err.Error()
	} else if len(l.failed) > 0 {
		msg = l.logged
	}
	if msg == l.logged {
		return
	}
	l.logged = msg
	if msg == "" {
		l.c.opts.Log.Info("the kernel takes changes again")
		return
	}
	l.c.opts.Log.Error("cannot bring the kernel in line, trying again; the last good state is in force", "error", err)
}

func (l *loop) observe(h prometheus.Observer, start time.Time) {
	d := time.Since(start).Seconds()
	h.Observe(d)
	l.c.metrics.syncSeconds.Observe(d)
}

// count follows the size of the Table, Change by Change.
func (l *loop) count(change dataplane.Change) {
	for name, s := range change.Services {
		var n size
		old := l.sizes[name]
		if s == nil {
			delete(l.sizes, name)
		} else {
			n = sizeOf(s)
			l.sizes[name] = n
		}
		l.total.frontends += n.frontends - old.frontends
		l.total.backends += n.backends - old.backends
	}
	if len(change.Services) > 0 {
		l.c.metrics.services.Set(float64(len(l.sizes)))
		l.c.metrics.frontends.Set(float64(l.total.frontends))
		l.c.metrics.backends.Set(float64(l.total.backends))
	}
}

func sizeOf(s *dataplane.Service) size {
	n := size{frontends: len(s.Frontends)}
	for i := range s.Frontends {
		n.backends += len(s.Frontends[i].Internal.Backends)
		if s.Frontends[i].Kind != dataplane.ClusterIP {
			n.backends += len(s.Frontends[i].External.Backends)
		}
	}
	return n
}

// jitter spreads d by a tenth, so that a cluster's agents do not work in step.
func jitter(d time.Duration) time.Duration {
	return d - d/10 + rand.N(d/5+1)
}
