// SPDX-License-Identifier: Apache-2.0

package netfilter

import (
	"maps"
	"net/netip"
	"sync"
	"time"

	"fairlead.dev/dataplane"
)

// laterAfter is how long rules wait for others to join them.
const laterAfter = 100 * time.Millisecond

// queue holds what of rules need not be done at once.
type queue struct {
	working sync.Mutex // one walk at a time

	mu sync.Mutex
	// Backends whose flows are to be ended, by Frontend: those that wait for
	// a walk, and those that one is looking for.
	waiting, sought map[dataplane.FrontendKey]backends
	closed          chan struct{} // made with the first worker
	worker          sync.WaitGroup
	failed          error // the first since the last put
}

// put makes Backends wait that were lost, and forgets those that are back. It
// returns what went wrong before.
func (q *queue) put(rules []FlowRule, end func(rulesByFrontend) (int, error)) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	idle := len(q.waiting) == 0
	for _, r := range rules {
		for b := range r.lost {
			if q.waiting == nil {
				q.waiting = map[dataplane.FrontendKey]backends{}
			}
			if q.waiting[r.Frontend] == nil {
				q.waiting[r.Frontend] = backends{}
			}
			q.waiting[r.Frontend][b] = struct{}{}
		}
	}
	for _, r := range rules { // a Frontend may have moved from one Service to another
		if r.now == nil {
			continue
		}
		keep := keepOf(r.now)
		gone := func(b netip.AddrPort, _ struct{}) bool { return keep(b) }
		maps.DeleteFunc(q.waiting[r.Frontend], gone)
		maps.DeleteFunc(q.sought[r.Frontend], gone)
		if len(q.waiting[r.Frontend]) == 0 {
			delete(q.waiting, r.Frontend)
		}
	}
	if idle && len(q.waiting) > 0 {
		if q.closed == nil {
			q.closed = make(chan struct{})
		}
		q.worker.Go(func() {
			select {
			case <-q.closed:
			case <-time.After(laterAfter):
			}
			q.work(end)
		})
	}
	err := q.failed
	q.failed = nil
	return err
}

// work ends the flows that wait for it.
func (q *queue) work(end func(rulesByFrontend) (int, error)) {
	q.working.Lock()
	defer q.working.Unlock()
	q.mu.Lock()
	q.sought, q.waiting = q.waiting, nil
	rules := make(rulesByFrontend, len(q.sought))
	for key := range q.sought {
		rules[key] = []FlowRule{{Frontend: key, Keep: func(b netip.AddrPort) bool { return !q.seeks(key, b) }}}
	}
	q.mu.Unlock()
	if len(rules) == 0 {
		return
	}
	_, err := end(rules)
	q.mu.Lock()
	defer q.mu.Unlock()
	q.sought = nil
	if err != nil && q.failed == nil {
		q.failed = err
	}
}

// seeks reports whether a Backend's flows are still to be ended.
func (q *queue) seeks(key dataplane.FrontendKey, b netip.AddrPort) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.sought[key].has(b)
}

// close lets what waits be done now, and waits for that.
func (q *queue) close() {
	q.mu.Lock()
	if q.closed != nil {
		select {
		case <-q.closed:
		default:
			close(q.closed)
		}
	}
	q.mu.Unlock()
	q.worker.Wait()
}
