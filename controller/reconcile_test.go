// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"fairlead.dev/controller/source"
	"fairlead.dev/dataplane"
	"fairlead.dev/dataplane/dataplanetest"
)

func TestNothingReachesTheKernelBeforeTheSourceHasDeliveredAll(t *testing.T) {
	a := newAgent(t, nil)
	a.source.do(func(h source.Handler) { give(h, 1, "10.244.0.1") })
	time.Sleep(50 * time.Millisecond)
	if n, applies := a.model.Syncs(), a.model.Applies(); n != 0 || len(applies) != 0 {
		t.Fatalf("before OnSynced: %d Syncs and Applies %v, want none", n, applies)
	}
	a.source.do(func(h source.Handler) { give(h, 2, "10.244.0.2"); h.OnSynced() })
	eventually(t, "both Services in the kernel", func() bool { return a.backends(1) == "10.244.0.1" && a.backends(2) == "10.244.0.2" })
	if n := a.model.Syncs(); n != 1 {
		t.Errorf("%d Syncs, want 1 that has both Services", n)
	}
}

func TestWhatArrivesDuringAnApplyIsOneApply(t *testing.T) {
	a := started(t, 20, nil)
	eventually(t, "quiet", func() bool { return len(a.wake) == 0 })
	before := len(a.model.Applies())
	release := a.model.Hold()
	entered := make(chan struct{}, 100)
	a.model.OnCall(func() { entered <- struct{}{} })
	a.source.do(func(h source.Handler) { give(h, 1, "10.244.9.1") })
	<-entered
	a.source.do(func(h source.Handler) {
		for i := 2; i <= 20; i++ {
			give(h, i, "10.244.9.9", "10.244.9.8")
			give(h, i, "10.244.9.9")
		}
	})
	release()
	eventually(t, "the last Service's new Backend", func() bool { return a.backends(20) == "10.244.9.9" })
	// The first event may have been split in two by the loop's speed: Service
	// and EndpointSlice are two events.
	applies := a.model.Applies()[before:]
	if got := len(applies[len(applies)-1].Services); len(applies) > 3 || got < 19 {
		t.Errorf("%d Applies, the last with %d Services: want all 19 that arrived meanwhile in one", len(applies), got)
	}
}

func TestAServiceThatFailsIsTriedAgainWhileTheOthersGoOn(t *testing.T) {
	a := started(t, 2, nil)
	bad := serviceName("s1")
	a.model.Reject(bad, errors.New("map is full"))
	a.source.do(func(h source.Handler) { give(h, 1, "10.244.1.1"); give(h, 2, "10.244.1.2") })
	eventually(t, "the good Service's change", func() bool { return a.backends(2) == "10.244.1.2" })
	eventually(t, "the failure in Problems", func() bool { return len(a.Problems()) == 1 })
	if p := a.Problems()[0]; p.Object != "Service default/s1" || p.Reason != "map is full" {
		t.Errorf("Problem %+v", p)
	}
	if got := a.backends(1); got != "10.244.0.1" {
		t.Errorf("failed Service has Backends %s, want its last good state 10.244.0.1", got)
	}
	if a.inForce(bad) || !a.inForce(serviceName("s2")) {
		t.Error("want only the good Service in force")
	}
	if valueOf(t, a.metrics.applyErrors) == 0 {
		t.Error("fairlead_apply_errors_total is 0")
	}
	a.model.Reject(bad, nil)
	eventually(t, "the retry", func() bool { return a.backends(1) == "10.244.1.1" && a.inForce(bad) && len(a.Problems()) == 0 })
}

func TestAFailedRemovalIsTriedAgain(t *testing.T) {
	a := started(t, 1, nil)
	a.model.Reject(serviceName("s1"), errors.New("busy"))
	a.source.do(func(h source.Handler) { h.OnService(keyOf("s1"), nil) })
	eventually(t, "the failure", func() bool { return !a.inForce(serviceName("s1")) })
	a.model.Reject(serviceName("s1"), nil)
	eventually(t, "the removal", func() bool { return a.backends(1) == "none" })
}

func TestAChangeThatMakesRoomTriesTheFailedAtOnce(t *testing.T) {
	a := started(t, 2, nil)
	a.model.Reject(serviceName("s3"), errors.New("map is full"))
	a.source.do(func(h source.Handler) { give(h, 3, "10.244.0.3") })
	// Some attempts on, the next is seconds away.
	eventually(t, "four failures", func() bool { return valueOf(t, a.metrics.applyErrors) >= 4 })
	a.model.Reject(serviceName("s3"), nil)
	begin := time.Now()
	a.source.do(func(h source.Handler) { h.OnService(keyOf("s1"), nil) })
	eventually(t, "the Service that failed", func() bool { return a.backends(3) == "10.244.0.3" })
	if d := time.Since(begin); d > 400*time.Millisecond {
		t.Errorf("took %v: the timer did it, not the removal", d)
	}
}

func TestAnApplyThatFailsWholeIsFollowedByASync(t *testing.T) {
	a := started(t, 2, nil)
	syncs := a.model.Syncs()
	boom := errors.New("kernel says no")
	a.model.FailNext(boom, boom)
	a.source.do(func(h source.Handler) { h.OnEndpointSlice(keyOf("s1"), testSlice(1, "10.244.1.1")) })
	eventually(t, "the failure", func() bool { return valueOf(t, a.metrics.applyErrors) >= 1 })
	a.source.do(func(h source.Handler) { h.OnEndpointSlice(keyOf("s2"), testSlice(2, "10.244.1.2")) })
	if b, _, _ := a.progress.pending(); b.endpoints == 0 {
		t.Error("nothing is pending after a failure")
	}
	eventually(t, "recovery", func() bool { return a.backends(1) == "10.244.1.1" && a.backends(2) == "10.244.1.2" })
	if a.model.Syncs() <= syncs {
		t.Error("recovered without a Sync, so what the kernel held was only assumed")
	}
	eventually(t, "nothing pending", func() bool { b, _, _ := a.progress.pending(); return b == batch{} })
}

func TestAFirstSyncThatFailsForAWhileIsTriedAgain(t *testing.T) {
	a := newAgent(t, nil)
	a.model.FailNext(errors.New("not yet"), errors.New("not yet"))
	a.source.do(func(h source.Handler) { give(h, 1, "10.244.0.1"); h.OnSynced() })
	eventually(t, "the Service", func() bool { return a.backends(1) == "10.244.0.1" })
	if n := a.model.Syncs(); n != 3 {
		t.Errorf("%d Syncs, want 3", n)
	}
}

func TestFirstSyncedIsCalledOnceAndWhenTheKernelHasTheTable(t *testing.T) {
	var calls atomic.Int32
	var kernel dataplane.Table
	var a *agent
	a = newAgent(t, func(o *Options) {
		o.CheckInterval = time.Millisecond
		o.FirstSynced = func() {
			if calls.Add(1) == 1 {
				kernel = a.model.Kernel()
			}
		}
	})
	boom := errors.New("not yet")
	a.model.FailNext(boom, boom)
	a.source.do(func(h source.Handler) { give(h, 1, "10.244.0.1"); h.OnSynced() })
	eventually(t, "some checks", func() bool { return a.model.Syncs() > 5 })
	a.model.FailNext(boom)
	a.source.do(func(h source.Handler) { h.OnEndpointSlice(keyOf("s1"), testSlice(1, "10.244.0.2")) })
	eventually(t, "the change", func() bool { return a.backends(1) == "10.244.0.2" })
	if err := a.stop(); err != nil {
		t.Fatal(err)
	}
	if n := calls.Load(); n != 1 {
		t.Errorf("called %d times", n)
	}
	if kernel.Services[serviceName("s1")] == nil {
		t.Errorf("called when the kernel held %v", kernel.Services)
	}
}

func TestRunGivesUpWhereTheKernelCannotBeProgrammed(t *testing.T) {
	a := newAgent(t, func(o *Options) { o.FirstSyncTimeout = 300 * time.Millisecond })
	boom := errors.New("no such map type")
	for range 20 {
		a.model.FailNext(boom)
	}
	a.source.do(func(h source.Handler) { h.OnSynced() })
	select {
	case err := <-a.done:
		if !errors.Is(err, boom) || !strings.Contains(err.Error(), "dataplane model") {
			t.Errorf("Run: %v, want the Dataplane's error", err)
		}
		a.done <- nil
	case <-time.After(5 * time.Second):
		t.Fatal("Run still runs")
	}
	if n := a.model.Syncs(); n < 2 {
		t.Errorf("%d Syncs: gave up without trying again", n)
	}
}

func TestRunEndsWithTheErrorOfItsSource(t *testing.T) {
	boom := errors.New("no such directory")
	c, err := New(Options{Source: &script{fails: boom}, Dataplane: dataplanetest.New(), NodeName: "n1", Log: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Run(context.Background()); !errors.Is(err, boom) || !strings.Contains(err.Error(), "source script") {
		t.Errorf("Run: %v", err)
	}
}

func TestDriftIsRepairedAndCounted(t *testing.T) {
	a := started(t, 3, func(o *Options) { o.CheckInterval = 20 * time.Millisecond })
	eventually(t, "some checks", func() bool { return a.model.Syncs() > 3 })
	if n := valueOf(t, a.metrics.drift); n != 0 {
		t.Fatalf("%v drift repaired though nothing drifted", n)
	}
	a.model.Tamper(func(k *dataplane.Table) { delete(k.Services, serviceName("s2")) })
	eventually(t, "the repair", func() bool { return a.backends(2) == "10.244.0.1" })
	eventually(t, "the count", func() bool { return valueOf(t, a.metrics.drift) == 1 })
}

func TestDriftThatTheDataplaneSeesIsRepairedAtOnce(t *testing.T) {
	a := started(t, 3, nil) // no check by the clock
	for i := range 3 {
		start, syncs := time.Now(), a.model.Syncs()
		a.model.TamperSeen(func(k *dataplane.Table) { delete(k.Services, serviceName("s2")) })
		eventually(t, "the repair", func() bool { return a.backends(2) == "10.244.0.1" && a.model.Syncs() > syncs })
		if took := time.Since(start); took > time.Second {
			t.Errorf("repaired after %v, want a second", took)
		}
		eventually(t, "the count", func() bool { return valueOf(t, a.metrics.drift) == float64(i+1) })
	}
}

func TestAChangeIsNotCountedAsDrift(t *testing.T) {
	a := started(t, 3, func(o *Options) { o.CheckInterval = time.Millisecond })
	for i := range 300 {
		addr := []string{"10.244.5.1", "10.244.5.2"}[i%2]
		a.source.do(func(h source.Handler) {
			h.OnEndpointSlice(keyOf("s2"), testSlice(2, addr))
			give(h, 10+i, "10.244.0.1")
		})
	}
	eventually(t, "the last change", func() bool { return a.backends(2) == "10.244.5.2" })
	if n := valueOf(t, a.metrics.drift); n != 0 {
		t.Errorf("%v counted as drift", n)
	}
}

func TestTheEndOfRunLeavesTheKernelAsItIs(t *testing.T) {
	a := started(t, 2, nil)
	if err := a.stop(); err != nil {
		t.Errorf("Run: %v, want nil at the end of its context", err)
	}
	if n := len(a.model.Kernel().Services); n != 2 || a.model.Closed() {
		t.Errorf("kernel has %d Services (want 2), closed %v (want false: that is the caller's)", n, a.model.Closed())
	}
}

func TestTheEndOfRunDoesNotWaitForASlowApply(t *testing.T) {
	a := started(t, 1, nil)
	release := a.model.Hold()
	defer release()
	entered := make(chan struct{}, 10)
	a.model.OnCall(func() { entered <- struct{}{} })
	a.source.do(func(h source.Handler) { give(h, 1, "10.244.7.7") })
	<-entered
	if err := a.stop(); err != nil {
		t.Errorf("Run: %v", err)
	}
}
