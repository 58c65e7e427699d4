// SPDX-License-Identifier: Apache-2.0

// Package handover replaces one Dataplane by another with no connection lost:
// the successor holds the whole Table before a predecessor stops deciding new
// flows, and a predecessor that carries flows itself goes on carrying them. It
// knows no technology.
package handover

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"fairlead.dev/dataplane"
)

// Predecessor is a Dataplane that an earlier agent left in force. Its methods
// are called one at a time.
type Predecessor interface {
	Name() string
	// Begin is called once the successor holds t. When it returns, the
	// predecessor decides no new flow.
	Begin(ctx context.Context, t *dataplane.Table) error
	// Apply tells of a Change that the successor has taken, so that flows to
	// removed Backends end.
	Apply(ctx context.Context, c dataplane.Change) error
	// Carries reports whether flows would be cut off if it ended now.
	Carries() (bool, error)
	// End removes all that it left in the kernel, and closes it.
	End(ctx context.Context) error
	// Close lets go of it and leaves it as it is.
	Close() error
}

// Observer is a Predecessor that looks at the Table before the successor is
// programmed, each time that is tried.
type Observer interface {
	Observe(ctx context.Context, t *dataplane.Table) error
}

// Lasting is a Predecessor that may carry flows for as long as they last.
type Lasting interface {
	Lasts() bool
}

// Masquerading is a Predecessor whose flows have source ports of this node that
// a successor without conntrack could take.
type Masquerading interface {
	Masqueraded() ([]dataplane.ConntrackRow, error)
}

// Options of New.
type Options struct {
	// DrainTimeout is how long a predecessor may carry flows; default 15 min.
	DrainTimeout time.Duration
	// Poll is how often it is asked whether it does; default 1 s. It is asked
	// less often, down to every half minute, the longer that goes on.
	Poll time.Duration
	// Ended is called when the last predecessor has ended.
	Ended func()
	// Reserve keeps the successor from taking the ports of masqueraded flows;
	// nil for one that does not have to be kept.
	Reserve func([]dataplane.ConntrackRow) error
	// Log defaults to slog.Default().
	Log *slog.Logger
}

// Dataplane is the successor, which looks after its predecessors too.
type Dataplane struct {
	dataplane.Dataplane
	options Options

	drifted chan struct{} // the successor's signals, and ours after an End

	mu      sync.Mutex
	waiting []Predecessor // not begun
	leaving []leaver
	polls   bool

	running context.Context // until Close
	stop    context.CancelFunc
	workers sync.WaitGroup
}

type leaver struct {
	Predecessor
	until time.Time // zero for ever
}

// pollMost is the longest time between two questions, pollShare the part of
// the time so far that is waited for the next.
const (
	pollMost  = 30 * time.Second
	pollShare = 20
)

var (
	_ dataplane.Dataplane = (*Dataplane)(nil)
	_ dataplane.Watcher   = (*Dataplane)(nil)
)

// New makes next follow its predecessors.
func New(next dataplane.Dataplane, old []Predecessor, o Options) *Dataplane {
	if o.DrainTimeout == 0 {
		o.DrainTimeout = 15 * time.Minute
	}
	if o.Poll == 0 {
		o.Poll = time.Second
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	d := &Dataplane{Dataplane: next, options: o, waiting: old, drifted: make(chan struct{}, 1)}
	d.running, d.stop = context.WithCancel(context.Background())
	if w, ok := next.(dataplane.Watcher); ok {
		d.workers.Go(func() { d.forward(d.running, w.Drifted()) })
	}
	return d
}

// Drifted implements dataplane.Watcher. It is also signalled when a
// predecessor has ended: what it undid (a sysctl) the successor may need.
func (d *Dataplane) Drifted() <-chan struct{} { return d.drifted }

func (d *Dataplane) forward(ctx context.Context, from <-chan struct{}) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-from:
			d.signal()
		}
	}
}

func (d *Dataplane) signal() {
	select {
	case d.drifted <- struct{}{}:
	default:
	}
}

// Sync implements dataplane.Dataplane. After the first one that succeeds the
// predecessors begin to leave.
func (d *Dataplane) Sync(ctx context.Context, t *dataplane.Table) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, p := range d.waiting {
		if o, ok := p.(Observer); ok {
			if err := o.Observe(ctx, t); err != nil {
				return 0, fmt.Errorf("look at dataplane %s: %w", p.Name(), err)
			}
		}
	}
	n, err := d.Dataplane.Sync(ctx, t)
	if err != nil {
		return n, err
	}
	return n, d.begin(ctx, t)
}

// Apply implements dataplane.Dataplane.
func (d *Dataplane) Apply(ctx context.Context, c dataplane.Change) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	err := d.Dataplane.Apply(ctx, c)
	for _, l := range d.leaving {
		if lerr := l.Apply(ctx, c); lerr != nil {
			d.options.Log.Warn("flows of the dataplane before do not follow a change", "dataplane", l.Name(), "error", lerr)
		}
	}
	return err
}

// begin lets go of the predecessors that wait. One that fails is tried again at
// the next Sync.
func (d *Dataplane) begin(ctx context.Context, t *dataplane.Table) error {
	for len(d.waiting) > 0 {
		p := d.waiting[0]
		if err := p.Begin(ctx, t); err != nil {
			return fmt.Errorf("take over from dataplane %s: %w", p.Name(), err)
		}
		d.waiting = d.waiting[1:]
		if err := d.reserve(p); err != nil {
			d.options.Log.Warn("new connections may get ports of ones that are carried", "dataplane", p.Name(), "error", err)
		}
		l := leaver{Predecessor: p}
		if lasting, ok := p.(Lasting); !ok || !lasting.Lasts() {
			l.until = time.Now().Add(d.options.DrainTimeout)
		}
		d.leaving = append(d.leaving, l)
		d.options.Log.Info("took over new connections", "from", p.Name(), "to", d.Name())
	}
	if len(d.leaving) > 0 && !d.polls {
		d.polls = true
		d.endIdle(ctx)
		d.workers.Go(func() { d.poll(d.running) })
	}
	return nil
}

func (d *Dataplane) reserve(p Predecessor) error {
	m, ok := p.(Masquerading)
	if !ok || d.options.Reserve == nil {
		return nil
	}
	flows, err := m.Masqueraded()
	if err != nil {
		return err
	}
	return d.options.Reserve(flows)
}

// poll ends predecessors as soon as they carry nothing.
func (d *Dataplane) poll(ctx context.Context) {
	begin := time.Now()
	left := func() int {
		d.mu.Lock()
		defer d.mu.Unlock()
		return d.endIdle(ctx)
	}
	for left() > 0 {
		select {
		case <-ctx.Done():
			return
		case <-time.After(max(d.options.Poll, min(time.Since(begin)/pollShare, pollMost))):
		}
	}
	if d.options.Ended != nil {
		d.options.Ended()
	}
}

// endIdle returns how many predecessors are left. d.mu is held.
func (d *Dataplane) endIdle(ctx context.Context) int {
	kept := d.leaving[:0]
	for _, l := range d.leaving {
		carries, err := l.Carries()
		if err != nil {
			d.options.Log.Warn("ask the dataplane before whether it carries flows", "dataplane", l.Name(), "error", err)
		}
		late := !l.until.IsZero() && time.Now().After(l.until)
		if ctx.Err() != nil || !late && (carries || err != nil) {
			kept = append(kept, l)
			continue
		}
		if err := l.End(ctx); err != nil {
			d.options.Log.Error("remove the dataplane before: run `fairlead cleanup` when the agent is stopped", "dataplane", l.Name(), "error", err)
			continue
		}
		d.options.Log.Info("the dataplane before is removed", "dataplane", l.Name(), "cutOff", carries)
		d.signal()
	}
	d.leaving = kept
	return len(kept)
}

// Close implements dataplane.Dataplane. A predecessor that still carries flows
// goes on; the next agent looks after it.
func (d *Dataplane) Close() error {
	d.stop()
	d.workers.Wait()
	errs := []error{d.Dataplane.Close()}
	for _, l := range d.leaving {
		errs = append(errs, l.Close())
	}
	return errors.Join(errs...)
}
