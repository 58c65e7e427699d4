// SPDX-License-Identifier: Apache-2.0

// Package dataplanetest is for tests alone. Model is a Dataplane whose kernel is
// a map, for tests of what drives a Dataplane: it obeys the contract of
// dataplane.Dataplane, fails on demand and records what it was asked. The rest
// is what the tests of every Dataplane share: builders, a Lab, and Follows,
// which plays any Changes to it. Nothing here knows of any technology.
package dataplanetest

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"

	"fairlead.dev/dataplane"
)

// ErrNotSynced is what Apply returns before a first Sync.
var ErrNotSynced = errors.New("dataplanetest: Apply before the first Sync")

// Model is a Dataplane in memory. Its zero value is not usable: see New. All
// methods are safe for concurrent use, but Sync and Apply report overlapping
// calls through Overlapped.
type Model struct {
	mu       sync.Mutex
	kernel   dataplane.Table
	synced   bool
	closed   bool
	busy     bool
	overlap  bool
	syncs    int
	applies  []dataplane.Change
	keep     bool
	rejected map[dataplane.ServiceName]error
	errs     []error
	gate     chan struct{}
	onCall   func()
	drifted  chan struct{}
}

// New makes a Model with an empty kernel.
func New() *Model {
	return &Model{
		kernel:   dataplane.Table{Services: map[dataplane.ServiceName]*dataplane.Service{}},
		rejected: map[dataplane.ServiceName]error{},
		keep:     true,
		drifted:  make(chan struct{}, 1),
	}
}

var (
	_ dataplane.Dataplane = (*Model)(nil)
	_ dataplane.Watcher   = (*Model)(nil)
)

// Drifted is signalled by TamperSeen.
func (m *Model) Drifted() <-chan struct{} { return m.drifted }

// Name is "model".
func (m *Model) Name() string { return "model" }

// Sync makes the kernel equal t.
func (m *Model) Sync(ctx context.Context, t *dataplane.Table) (int, error) {
	defer m.enter(ctx)()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.syncs++
	if err := cmpErr(ctx, m.nextErr()); err != nil {
		return 0, err
	}
	m.synced = true
	m.kernel.Node = t.Node
	changed, failed := 0, map[dataplane.ServiceName]error{}
	for name := range m.kernel.Services {
		if t.Services[name] == nil {
			changed += m.set(name, nil, failed)
		}
	}
	for name, s := range t.Services {
		changed += m.set(name, s, failed)
	}
	return changed, applyError(failed)
}

// Apply makes the kernel follow c.
func (m *Model) Apply(ctx context.Context, c dataplane.Change) error {
	defer m.enter(ctx)()
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.keep {
		m.applies = append(m.applies, dataplane.Change{Services: maps.Clone(c.Services), Node: c.Node})
	}
	if err := cmpErr(ctx, m.nextErr()); err != nil {
		return err
	}
	if !m.synced {
		return ErrNotSynced
	}
	if c.Node != nil {
		m.kernel.Node = *c.Node
	}
	failed := map[dataplane.ServiceName]error{}
	for name, s := range c.Services {
		m.set(name, s, failed)
	}
	return applyError(failed)
}

// Close forgets nothing: like a kernel, the state outlives it.
func (m *Model) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
	return nil
}

// set returns how many Frontends it changed.
func (m *Model) set(name dataplane.ServiceName, s *dataplane.Service, failed map[dataplane.ServiceName]error) int {
	old := m.kernel.Services[name]
	if err := m.rejected[name]; err != nil {
		failed[name] = err
		return 0
	}
	switch {
	case s == nil && old == nil:
		return 0
	case s == nil:
		delete(m.kernel.Services, name)
		return len(old.Frontends)
	case old == nil:
		m.kernel.Services[name] = s
		return len(s.Frontends)
	case old.Equal(s):
		return 0
	}
	m.kernel.Services[name] = s
	return differing(old, s)
}

func differing(old, s *dataplane.Service) int {
	was := map[dataplane.FrontendKey]*dataplane.Frontend{}
	for i := range old.Frontends {
		was[old.Frontends[i].FrontendKey] = &old.Frontends[i]
	}
	n := 0
	for i := range s.Frontends {
		f := was[s.Frontends[i].FrontendKey]
		if f == nil || !f.Equal(&s.Frontends[i]) {
			n++
		}
		delete(was, s.Frontends[i].FrontendKey)
	}
	return n + len(was)
}

func (m *Model) enter(ctx context.Context) (leave func()) {
	m.mu.Lock()
	m.overlap = m.overlap || m.busy
	m.busy = true
	gate, onCall := m.gate, m.onCall
	m.mu.Unlock()
	if onCall != nil {
		onCall()
	}
	if gate != nil {
		select {
		case <-gate:
		case <-ctx.Done():
		}
	}
	return func() {
		m.mu.Lock()
		m.busy = false
		m.mu.Unlock()
	}
}

func (m *Model) nextErr() error {
	if len(m.errs) == 0 {
		return nil
	}
	err := m.errs[0]
	m.errs = m.errs[1:]
	return err
}

func cmpErr(ctx context.Context, err error) error {
	if err != nil {
		return err
	}
	return ctx.Err()
}

func applyError(failed map[dataplane.ServiceName]error) error {
	if len(failed) == 0 {
		return nil
	}
	return &dataplane.ApplyError{Failed: failed}
}

// FailNext makes each of the next len(errs) calls of Sync or Apply fail whole
// with its error, changing nothing; a nil lets its call pass.
func (m *Model) FailNext(errs ...error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.errs = append(m.errs, errs...)
}

// Reject makes one Service fail with err until err is nil: the others pass, as
// an *ApplyError.
func (m *Model) Reject(name dataplane.ServiceName, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err == nil {
		delete(m.rejected, name)
		return
	}
	m.rejected[name] = err
}

// Hold makes calls block until release is called (or their ctx ends).
func (m *Model) Hold() (release func()) {
	gate := make(chan struct{})
	m.mu.Lock()
	defer m.mu.Unlock()
	m.gate = gate
	return sync.OnceFunc(func() {
		m.mu.Lock()
		m.gate = nil
		m.mu.Unlock()
		close(gate)
	})
}

// OnCall makes f be called at the start of every Sync and Apply.
func (m *Model) OnCall(f func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.onCall = f
}

// Forget stops the recording of Applies, for benchmarks.
func (m *Model) Forget() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.keep, m.applies = false, nil
}

// Tamper changes the kernel behind the Dataplane's back.
func (m *Model) Tamper(f func(kernel *dataplane.Table)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f(&m.kernel)
}

// TamperSeen is Tamper where the Dataplane notices it.
func (m *Model) TamperSeen(f func(kernel *dataplane.Table)) {
	m.Tamper(f)
	select {
	case m.drifted <- struct{}{}:
	default:
	}
}

// Kernel is a copy of what the kernel holds. The Services are shared.
func (m *Model) Kernel() dataplane.Table {
	m.mu.Lock()
	defer m.mu.Unlock()
	return dataplane.Table{Services: maps.Clone(m.kernel.Services), Node: m.kernel.Node}
}

// Syncs is how often Sync was called.
func (m *Model) Syncs() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.syncs
}

// Applies are the Changes that Apply was called with, failed ones too.
func (m *Model) Applies() []dataplane.Change {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.applies)
}

// Closed reports whether Close was called.
func (m *Model) Closed() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.closed
}

// Overlapped reports whether two calls ever ran at once, which the contract
// forbids.
func (m *Model) Overlapped() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.overlap
}
