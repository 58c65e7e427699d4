// SPDX-License-Identifier: Apache-2.0

// Package netfilter reads the kernel's conntrack and ends the flows in it that
// a Change made stale, for the Dataplanes that leave flows to netfilter
// (nftables, iptables, ipvs). It knows Frontends and Backends by address and
// port. It refuses to know rules, who makes them, and Kubernetes: which flows
// may stay is told by the caller, flow by flow.
//
// What it holds in memory does not grow with the table: flows are looked at
// one at a time as they arrive from the kernel, which is asked for as few as
// it knows how to select.
package netfilter

import (
	"errors"
	"fmt"
	"sync"
)

// Conntrack is the flow table of one network namespace. Its methods may be
// called by several goroutines; they take turns.
type Conntrack struct {
	mu sync.Mutex
	// A socket that is dumping can't be asked for anything else, so what a dump
	// finds is deleted on another one.
	reads, deletes *socket
	timeouts       timeouts
	// unfiltered: this kernel (before 5.8) ignores or refuses filters by tuple.
	unfiltered bool

	queue queue
}

// Open opens the flow table of the calling thread's network namespace. Later
// calls may come from any thread. It takes CAP_NET_ADMIN there.
func Open() (*Conntrack, error) {
	reads, err := openSocket()
	if err != nil {
		return nil, fmt.Errorf("open conntrack: %w", err)
	}
	deletes, err := openSocket()
	if err != nil {
		reads.close()
		return nil, fmt.Errorf("open conntrack: %w", err)
	}
	return &Conntrack{reads: reads, deletes: deletes, timeouts: readTimeouts()}, nil
}

// Close ends what EndStale left for later and closes the sockets to the kernel.
func (c *Conntrack) Close() error {
	c.queue.close()
	c.mu.Lock()
	defer c.mu.Unlock()
	return errors.Join(c.reads.close(), c.deletes.close())
}
