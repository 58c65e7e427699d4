// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"sync"
	"time"
)

// progress follows changes from their arrival until the kernel has them. It is
// what health and the pending metrics are answered from. Safe for concurrent
// use.
type progress struct {
	now     func() time.Time
	timeout time.Duration

	mu         sync.Mutex
	waiting    batch // arrived, not compiled yet
	underway   batch // compiled, not in force yet
	lastQueued time.Time
	lastDone   time.Time
	lastTook   time.Duration // from the arrival of what was last taken until it was in force
	synced     bool          // a first Sync was done
	failed     int           // Services that the last attempt could not program
}

// batch counts changes and remembers when the oldest of them arrived.
type batch struct {
	since               time.Time
	services, endpoints int
}

func (b *batch) add(o batch) {
	if b.since.IsZero() || (!o.since.IsZero() && o.since.Before(b.since)) {
		b.since = o.since
	}
	b.services += o.services
	b.endpoints += o.endpoints
}

// queued notes the arrival of so many changes; both may be 0 for a change of
// the node.
func (p *progress) queued(services, endpoints int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.now()
	p.lastQueued = now
	p.waiting.add(batch{since: now, services: services, endpoints: endpoints})
}

// taken notes that all that waits was compiled.
func (p *progress) taken() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.waiting.since.IsZero() {
		p.underway.add(p.waiting)
	}
	p.waiting = batch{}
}

// done notes that what was taken is in force, but for so many Services.
func (p *progress) done(failed int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lastDone = p.now()
	if !p.underway.since.IsZero() {
		p.lastTook = p.lastDone.Sub(p.underway.since)
	}
	p.underway = batch{}
	p.synced = true
	p.failed = failed
}

// condition is what the health servers answer.
type condition struct {
	now, lastUpdated time.Time
	synced           bool
	// stale: a change has waited for longer than the timeout. Before the first
	// Sync nothing is: the Source may still be delivering.
	stale  bool
	failed int
}

func (p *progress) condition() condition {
	p.mu.Lock()
	defer p.mu.Unlock()
	c := condition{now: p.now(), lastUpdated: p.lastDone, synced: p.synced, failed: p.failed}
	oldest := p.waiting
	oldest.add(p.underway)
	switch {
	case oldest.since.IsZero():
		// Nothing waits, so what is in force is as of now.
		if c.synced {
			c.lastUpdated = c.now
		}
	case c.synced:
		c.stale = c.now.Sub(oldest.since) > p.timeout
	}
	return c
}

// took is how long the last changes waited until they were in force; 0: there
// were none.
func (p *progress) took() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.lastTook
}

// pending gives the changes that are not in force yet, and when a change last
// arrived and was last in force.
func (p *progress) pending() (b batch, queued, done time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	b = p.waiting
	b.add(p.underway)
	return b, p.lastQueued, p.lastDone
}
