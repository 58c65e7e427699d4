// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"context"
	"sync"
)

// watch notices that something else changed our rules. Its sockets are opened
// in the network namespace that it watches.
type watch struct {
	drifted chan struct{}
	mu      sync.Mutex // held while own changes are made
	eye     eye
}

// eye is how a flavour notices. Its methods are called one at a time, but wait.
type eye interface {
	// open prepares for own changes.
	open()
	// shut is called after own changes, which were so many transactions, and
	// reports whether others made some too.
	shut(commits int) (foreign bool)
	// wait returns when there may be something to see, or close was called.
	wait(ctx context.Context) error
	// look reports whether others changed something since the last look.
	look() (foreign bool)
	close() error
}

func newWatch(f Flavour, v6 bool) (*watch, error) {
	w := &watch{drifted: make(chan struct{}, 1)}
	var err error
	if f == Legacy {
		w.eye, err = newLegacyEye(v6)
	} else {
		w.eye, err = newNFTEye()
	}
	if err != nil {
		return nil, err
	}
	return w, nil
}

// signal makes the reader of drifted Sync.
func (w *watch) signal() {
	select {
	case w.drifted <- struct{}{}:
	default:
	}
}

// begin and end are around own changes.
func (w *watch) begin() {
	w.mu.Lock()
	w.eye.open()
}

func (w *watch) end(commits int) {
	foreign := w.eye.shut(commits)
	w.mu.Unlock()
	if foreign {
		w.signal()
	}
}

// run signals foreign changes until ctx ends.
func (w *watch) run(ctx context.Context) {
	for w.eye.wait(ctx) == nil && ctx.Err() == nil {
		w.mu.Lock()
		foreign := ctx.Err() == nil && w.eye.look()
		w.mu.Unlock()
		if foreign {
			w.signal()
		}
	}
}

// close ends a run whose ctx ended.
func (w *watch) close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.eye.close()
}
