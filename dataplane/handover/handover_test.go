// SPDX-License-Identifier: Apache-2.0

package handover_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"fairlead.dev/dataplane"
	"fairlead.dev/dataplane/dataplanetest"
	"fairlead.dev/dataplane/handover"
)

// old is a Predecessor that writes down what it was asked.
type old struct {
	mu      sync.Mutex
	calls   []string
	carries bool
	refuses error
	next    *dataplanetest.Model
}

func (o *old) note(s string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.calls = append(o.calls, s)
}

func (o *old) seen() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.calls)
}

func (o *old) Name() string { return "old" }

func (o *old) Begin(_ context.Context, t *dataplane.Table) error {
	if len(o.next.Kernel().Services) != len(t.Services) {
		o.note("begin before the successor was complete")
	}
	err := o.refuses
	o.refuses = nil
	o.note("begin")
	return err
}

func (o *old) Apply(_ context.Context, c dataplane.Change) error {
	o.note("apply")
	return nil
}

func (o *old) Carries() (bool, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.carries, nil
}

func (o *old) End(context.Context) error { o.note("end"); return nil }
func (o *old) Close() error              { o.note("close"); return nil }

func (o *old) idle() {
	o.mu.Lock()
	o.carries = false
	o.mu.Unlock()
}

var web = dataplane.ServiceName{Namespace: "default", Name: "web"}

func oneService() *dataplane.Table {
	return &dataplane.Table{Services: map[dataplane.ServiceName]*dataplane.Service{web: {Name: web}}}
}

func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("no %s within 5 s", what)
		}
	}
}

func TestThePredecessorLeavesWhenTheSuccessorHoldsAllAndItsFlowsAreOver(t *testing.T) {
	next := dataplanetest.New()
	o := &old{next: next, carries: true}
	ended := make(chan struct{})
	d := handover.New(next, []handover.Predecessor{o}, handover.Options{Poll: time.Millisecond, Ended: func() { close(ended) }})
	ctx := context.Background()

	next.FailNext(errors.New("not yet"))
	if _, err := d.Sync(ctx, oneService()); err == nil || len(o.seen()) != 0 {
		t.Fatalf("a Sync that failed: error %v, and the predecessor was asked %v; want it left alone", err, o.seen())
	}
	if _, err := d.Sync(ctx, oneService()); err != nil {
		t.Fatal(err)
	}
	if err := d.Apply(ctx, dataplane.Change{Services: map[dataplane.ServiceName]*dataplane.Service{web: nil}}); err != nil {
		t.Fatal(err)
	}
	time.Sleep(20 * time.Millisecond)
	if got := o.seen(); !slices.Equal(got, []string{"begin", "apply"}) {
		t.Fatalf("while it carries flows the predecessor was asked %v", got)
	}
	o.idle()
	<-ended
	select {
	case <-d.Drifted():
	case <-time.After(5 * time.Second):
		t.Error("the successor is not checked after the end of its predecessor")
	}
	if got := o.seen(); !slices.Equal(got, []string{"begin", "apply", "end"}) {
		t.Errorf("the predecessor was asked %v", got)
	}
	if err := d.Close(); err != nil || !next.Closed() {
		t.Errorf("Close: %v, successor closed: %t", err, next.Closed())
	}
}

func TestAPredecessorIsEndedWhenItsTimeIsOver(t *testing.T) {
	next := dataplanetest.New()
	o := &old{next: next, carries: true}
	d := handover.New(next, []handover.Predecessor{o}, handover.Options{Poll: time.Millisecond, DrainTimeout: 30 * time.Millisecond})
	defer d.Close()
	if _, err := d.Sync(context.Background(), oneService()); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "end", func() bool { return slices.Contains(o.seen(), "end") })
}

func TestAnAgentThatStopsLeavesADrainingPredecessorAsItIs(t *testing.T) {
	next := dataplanetest.New()
	o := &old{next: next, carries: true}
	d := handover.New(next, []handover.Predecessor{o}, handover.Options{Poll: time.Millisecond})
	if _, err := d.Sync(context.Background(), oneService()); err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if got := o.seen(); !slices.Equal(got, []string{"begin", "close"}) {
		t.Errorf("the predecessor was asked %v", got)
	}
}

func TestTheSuccessorsOwnSignalsComeThrough(t *testing.T) {
	next := dataplanetest.New()
	d := handover.New(next, nil, handover.Options{})
	defer d.Close()
	next.TamperSeen(func(*dataplane.Table) {})
	select {
	case <-d.Drifted():
	case <-time.After(5 * time.Second):
		t.Error("no signal")
	}
}

func TestAPredecessorThatCannotBeginIsTriedAgain(t *testing.T) {
	next := dataplanetest.New()
	o := &old{next: next, refuses: errors.New("busy")}
	d := handover.New(next, []handover.Predecessor{o}, handover.Options{Poll: time.Millisecond})
	defer d.Close()
	if _, err := d.Sync(context.Background(), oneService()); err == nil {
		t.Fatal("no error of a predecessor that cannot begin")
	}
	if _, err := d.Sync(context.Background(), oneService()); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "end", func() bool { return slices.Contains(o.seen(), "end") })
}

// lasting is an old one that looks first, carries for ever and masquerades.
type lasting struct{ *old }

func (lasting) Lasts() bool { return true }

func (l lasting) Observe(_ context.Context, t *dataplane.Table) error {
	if len(l.next.Kernel().Services) == len(t.Services) {
		l.note("observe after the successor was complete")
	}
	l.note("observe")
	return nil
}

func (l lasting) Masqueraded() ([]dataplane.ConntrackRow, error) {
	return []dataplane.ConntrackRow{{Masquerade: "192.0.2.1:1024"}}, nil
}

func TestAPredecessorThatLastsLooksFirstAndIsNotEndedByTheClock(t *testing.T) {
	next := dataplanetest.New()
	o := &old{next: next, carries: true}
	var reserved []dataplane.ConntrackRow
	d := handover.New(next, []handover.Predecessor{lasting{o}}, handover.Options{
		Poll: time.Millisecond, DrainTimeout: time.Millisecond,
		Reserve: func(rows []dataplane.ConntrackRow) error { reserved = rows; return nil },
	})
	defer d.Close()
	if _, err := d.Sync(context.Background(), oneService()); err != nil {
		t.Fatal(err)
	}
	if len(reserved) != 1 || reserved[0].Masquerade != "192.0.2.1:1024" {
		t.Errorf("reserved %v, want the port of its one flow", reserved)
	}
	time.Sleep(50 * time.Millisecond)
	if got := o.seen(); !slices.Equal(got, []string{"observe", "begin"}) {
		t.Fatalf("beyond the time for others it was asked %v", got)
	}
	o.idle()
	waitFor(t, "end", func() bool { return slices.Contains(o.seen(), "end") })
}

func TestAPredecessorThatCarriesNothingEndsWithTheFirstSync(t *testing.T) {
	next := dataplanetest.New()
	o := &old{next: next}
	d := handover.New(next, []handover.Predecessor{o}, handover.Options{})
	defer d.Close()
	if _, err := d.Sync(context.Background(), oneService()); err != nil {
		t.Fatal(err)
	}
	if got := o.seen(); !slices.Equal(got, []string{"begin", "end"}) {
		t.Errorf("after the first Sync it was asked %v, want its end: the process may end now", got)
	}
}
