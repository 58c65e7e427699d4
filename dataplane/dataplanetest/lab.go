// SPDX-License-Identifier: Apache-2.0

package dataplanetest

import (
	"context"
	"net/netip"
	"os"
	"runtime"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"fairlead.dev/dataplane"
)

// Failer ends a test or one run of a property.
type Failer interface {
	Helper()
	Fatalf(format string, args ...any)
}

// Lab is what a test does with a Dataplane of any technology, and expects of it.
type Lab struct {
	T testing.TB
	// Read opens a reader of what the kernel holds.
	Read func() (dataplane.Reader, error)
}

// Sync expects a Sync to change so many Frontends.
func (l Lab) Sync(d dataplane.Dataplane, t *dataplane.Table, want int) {
	l.T.Helper()
	if n, err := d.Sync(context.Background(), t); err != nil || n != want {
		l.T.Fatalf("Sync changed %d Frontends, error %v; want %d", n, err, want)
	}
}

// Apply expects a Change of Services to be programmed.
func (l Lab) Apply(d dataplane.Dataplane, services ...*dataplane.Service) {
	l.T.Helper()
	if err := d.Apply(context.Background(), dataplane.Change{Services: Table(services...).Services}); err != nil {
		l.T.Fatalf("Apply: %v", err)
	}
}

// Holds expects a reader to find just a Table.
func (l Lab) Holds(t *dataplane.Table) {
	l.T.Helper()
	Holds(l.T, l.Read, t)
}

// Holds fails a test or a run unless a reader finds just a Table.
func Holds(t Failer, read func() (dataplane.Reader, error), want *dataplane.Table) {
	t.Helper()
	rows := want.Rows()
	if rows == nil {
		rows = []dataplane.Row{}
	}
	if diff := cmp.Diff(rows, Rows(t, read), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Fatalf("the kernel does not hold the Table (-want +got):\n%s", diff)
	}
}

// Rows are those that a reader finds.
func Rows(t Failer, read func() (dataplane.Reader, error)) []dataplane.Row {
	t.Helper()
	r, err := read()
	if err != nil {
		t.Fatalf("open a reader: %v", err)
	}
	defer r.Close()
	got, err := r.Table()
	if err != nil {
		t.Fatalf("read the Table: %v", err)
	}
	return got.Frontends
}

// EnterNamespace puts the test's thread into a network namespace without a
// name, whose loopback device is up. It ends with the thread, which ends with
// the test, and with the sockets that the test has there.
func EnterNamespace(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: it makes network namespaces and rules in them")
	}
	runtime.LockOSThread() // not unlocked: the thread dies with the test
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatalf("make network namespace: %v", err)
	}
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		t.Fatal(err)
	}
}
