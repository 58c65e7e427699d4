// SPDX-License-Identifier: Apache-2.0

package podrunner

import (
	"time"

	"fairlead.dev/podrunner/podstatus"
)

// backoff is how long containers of one Pod wait before they are restarted: not
// at all the first time, then first, doubled with each end, up to limit; a
// container that ran, or waited, for twice limit begins anew.
type backoff struct {
	first, limit time.Duration
	entries      map[string]*backoffEntry // by container name
}

type backoffEntry struct {
	wait time.Duration
	last time.Time
}

func newBackoff(first, limit time.Duration) *backoff {
	return &backoff{first: first, limit: limit, entries: map[string]*backoffEntry{}}
}

// until is when a container that ended may be started again, and how long it
// then has waited. A zero time: at once.
func (b *backoff) until(name string, finished time.Time) (time.Time, time.Duration) {
	e := b.entries[name]
	if e == nil || b.expired(e, finished) {
		return time.Time{}, 0
	}
	return finished.Add(e.wait), e.wait
}

func (b *backoff) expired(e *backoffEntry, at time.Time) bool {
	return at.Sub(e.last) > 2*b.limit
}

// restarted notes that a container that had ended at finished is started again.
func (b *backoff) restarted(name string, finished, now time.Time) {
	e := b.entries[name]
	if e == nil || b.expired(e, finished) {
		b.entries[name] = &backoffEntry{wait: b.first, last: now}
		return
	}
	e.wait, e.last = min(2*e.wait, b.limit), now
}

// recall takes up, after a restart of the agent, what the runtime still knows:
// the newest container of a name waited for so long after the one before it.
func (b *backoff) recall(name string, o *podstatus.Observed) {
	if b.entries[name] != nil {
		return
	}
	var newest, before *podstatus.Container
	for i := range o.Containers {
		c := &o.Containers[i]
		switch {
		case c.Name != name:
		case newest == nil:
			newest = c
		case before == nil:
			before = c
		}
	}
	if before == nil || before.State != podstatus.Exited || before.Finished.IsZero() {
		return
	}
	e := &backoffEntry{wait: b.first, last: newest.Created}
	if waited := newest.Created.Sub(before.Finished); waited >= b.first*9/10 {
		// It waited for the entry's value of then, which was doubled since.
		for e.wait <= waited && e.wait < b.limit {
			e.wait = min(2*e.wait, b.limit)
		}
	}
	b.entries[name] = e
}
