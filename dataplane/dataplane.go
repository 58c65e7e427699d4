// SPDX-License-Identifier: Apache-2.0

package dataplane

import "context"

// Change is the difference between two Tables, Service by Service.
type Change struct {
	// Services holds the new state of each Service that changed; nil removes
	// the Service.
	Services map[ServiceName]*Service
	// Node is set where the node's facts changed.
	Node *Node
}

// Empty reports whether the Change changes nothing.
func (c Change) Empty() bool { return len(c.Services) == 0 && c.Node == nil }

// Dataplane is one technology that makes the kernel equal a Table. Its methods
// are called from one goroutine at a time.
type Dataplane interface {
	// Name is the value of --dataplane: ebpf, nftables, iptables or ipvs.
	Name() string

	// Sync makes the kernel equal the whole Table and returns how many
	// Frontends it had to add, change or remove. The first call adopts what
	// an earlier process left: what is right is not touched. Later calls are
	// the background check, and the number they return is drift repaired.
	Sync(ctx context.Context, t *Table) (changed int, err error)

	// Apply makes the kernel follow one Change after a first Sync. Each
	// Frontend is switched atomically. When Apply returns, no new connection
	// goes to a Backend that the Change removed. What could not be programmed
	// is in the error (an *ApplyError where only some Services failed); the
	// rest, and the last good state of what failed, are in force.
	Apply(ctx context.Context, c Change) error

	// Close lets go of the kernel state and leaves it in force.
	Close() error
}

// Watcher is a Dataplane that can tell, without looking at all it holds, that
// something else touched its kernel state.
type Watcher interface {
	// Drifted has a value when the kernel state may no longer be what was
	// programmed. It has one slot, is the same channel at every call, and is
	// never closed. Own changes do not signal it. The reader calls Sync.
	Drifted() <-chan struct{}
}

// ApplyError names the Services that a Dataplane could not program.
type ApplyError struct {
	Failed map[ServiceName]error
}
