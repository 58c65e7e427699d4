// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"fairlead.dev/controller/source"
	"fairlead.dev/dataplane/dataplanetest"
)

// inNewNetns runs f in a network namespace of its own that ends with it, with a
// veth pair fairlead-a (up) and fairlead-b.
func inNewNetns(t *testing.T, f func(t *testing.T, link netlink.Link)) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("SKIPPED: needs root for a network namespace")
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		// Never unlocked: the thread and its namespace end with the goroutine.
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			t.Errorf("unshare: %v", err)
			return
		}
		veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "fairlead-a"}, PeerName: "fairlead-b"}
		if err := netlink.LinkAdd(veth); err != nil {
			t.Errorf("add veth: %v", err)
			return
		}
		for _, name := range []string{"lo", "fairlead-a", "fairlead-b"} {
			l, err := netlink.LinkByName(name)
			if err == nil {
				err = netlink.LinkSetUp(l)
			}
			if err != nil {
				t.Errorf("link %s: %v", name, err)
				return
			}
		}
		f(t, veth)
	}()
	<-done
}

func addr(t *testing.T, s string) *netlink.Addr {
	a, err := netlink.ParseAddr(s)
	if err != nil {
		t.Error(err)
		runtime.Goexit()
	}
	return a
}

func must(t *testing.T, err error) {
	if err != nil {
		t.Helper()
		t.Error(err)
		runtime.Goexit()
	}
}

// watching gives the addresses of the present namespace as they change.
func watching(t *testing.T) (host hostAddresses, changes <-chan hostAddresses, stop func()) {
	w, err := openNodeWatch(quiet())
	must(t, err)
	host, err = w.list()
	must(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	ch, ended := make(chan hostAddresses, 100), make(chan struct{})
	go func() {
		defer close(ended)
		w.run(ctx, host, func(h hostAddresses) { ch <- h })
	}()
	return host, ch, func() { cancel(); <-ended; w.close() }
}

// next waits for a state of the host that satisfies is.
func next(t *testing.T, changes <-chan hostAddresses, what string, is func(hostAddresses) bool) hostAddresses {
	deadline := time.After(5 * time.Second)
	var last hostAddresses
	for {
		select {
		case last = <-changes:
			if is(last) {
				return last
			}
		case <-deadline:
			t.Errorf("not within 5 s: %s; last seen %v", what, last)
			runtime.Goexit()
		}
	}
}

func TestAnAddressThatComesAndGoesIsSeenWithinMilliseconds(t *testing.T) {
	inNewNetns(t, func(t *testing.T, link netlink.Link) {
		host, changes, stop := watching(t)
		defer stop()
		a := netip.MustParseAddr("192.0.2.77")
		if host.has(a) {
			t.Error("address is there already")
			return
		}
		var took []time.Duration
		for range 20 {
			begin := time.Now()
			must(t, netlink.AddrAdd(link, addr(t, "192.0.2.77/24")))
			next(t, changes, "the new address", func(h hostAddresses) bool { return h.has(a) })
			took = append(took, time.Since(begin))
			must(t, netlink.AddrDel(link, addr(t, "192.0.2.77/24")))
			next(t, changes, "the address gone", func(h hostAddresses) bool { return !h.has(a) })
		}
		slices.Sort(took)
		t.Logf("address added -> seen: median %v, worst %v", took[10], took[19])
		if took[10] > 50*time.Millisecond {
			t.Errorf("median %v, want milliseconds", took[10])
		}
	})
}

func TestABurstOfAddressesIsFewChanges(t *testing.T) {
	inNewNetns(t, func(t *testing.T, link netlink.Link) {
		_, changes, stop := watching(t)
		defer stop()
		const n = 200
		for i := range n {
			must(t, netlink.AddrAdd(link, addr(t, fmt.Sprintf("192.0.2.%d/32", i+1))))
		}
		seen := 1
		next(t, changes, "all 200 addresses", func(h hostAddresses) bool {
			seen++
			return h.has(netip.MustParseAddr("192.0.2.1")) && h.has(netip.MustParseAddr("192.0.2.200"))
		})
		t.Logf("%d addresses were %d changes", n, seen)
		if seen > n/2 {
			t.Errorf("%d changes for a burst of %d addresses", seen, n)
		}
	})
}

func TestATentativeAddressCountsOnceItIsAssigned(t *testing.T) {
	inNewNetns(t, func(t *testing.T, link netlink.Link) {
		w, err := openNodeWatch(quiet())
		must(t, err)
		defer w.close()
		must(t, netlink.AddrAdd(link, addr(t, "2001:db8:77::5/64")))
		a := netip.MustParseAddr("2001:db8:77::5")
		host, err := w.list()
		must(t, err)
		list, err := w.handle.AddrList(link, netlink.FAMILY_V6)
		must(t, err)
		tentative := slices.ContainsFunc(list, func(l netlink.Addr) bool {
			return l.IP.Equal(a.AsSlice()) && l.Flags&unix.IFA_F_TENTATIVE != 0
		})
		if !tentative {
			t.Skip("SKIPPED: this kernel does no duplicate address detection here")
		}
		if host.has(a) {
			t.Errorf("tentative address is among %v", host.all)
		}
		_, changes, stop := watching(t)
		defer stop()
		next(t, changes, "the address once it is no longer tentative", func(h hostAddresses) bool { return h.has(a) })
	})
}

func TestTheDefaultRouteNamesTheSourceAddress(t *testing.T) {
	inNewNetns(t, func(t *testing.T, link netlink.Link) {
		must(t, netlink.AddrAdd(link, addr(t, "10.9.0.1/24")))
		must(t, netlink.AddrAdd(link, addr(t, "10.8.0.1/24")))
		host, changes, stop := watching(t)
		defer stop()
		if host.default4.IsValid() {
			t.Errorf("source %s without a default route", host.default4)
		}
		must(t, netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: addr(t, "10.9.0.254/32").IP}))
		next(t, changes, "source 10.9.0.1", func(h hostAddresses) bool { return h.default4 == netip.MustParseAddr("10.9.0.1") })
	})
}

func TestAnAddressChangeReachesTheDataplane(t *testing.T) {
	inNewNetns(t, func(t *testing.T, link netlink.Link) {
		// Run takes the namespace of the thread that calls it, so not newAgent's.
		a := newAgentHere(t)
		defer a.stop()
		a.source.do(func(h source.Handler) { h.OnSynced() })
		eventuallyHere(t, "first Sync", func() bool { return a.progress.condition().synced })
		begin := time.Now()
		must(t, netlink.AddrAdd(link, addr(t, "192.0.2.9/24")))
		want := netip.MustParseAddr("192.0.2.9")
		eventuallyHere(t, "the address in the kernel's Node", func() bool {
			n := a.model.Kernel().Node
			return slices.Contains(n.Addresses, want) && n.PrimaryIPv4 == want
		})
		t.Logf("address added -> applied: %v", time.Since(begin))
	})
}

func TestOnlyAddressesAndDefaultRoutesConcernTheNode(t *testing.T) {
	msg := func(kind uint16, body ...byte) []byte {
		b := make([]byte, 16, 28)
		binary.NativeEndian.PutUint32(b, uint32(16+len(body)))
		binary.NativeEndian.PutUint16(b[4:], kind)
		return append(b, body...)
	}
	pod, def := []byte{2, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, []byte{2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	for _, c := range []struct {
		sentence string
		b        []byte
		want     bool
	}{
		{"a pod's route", msg(unix.RTM_NEWROUTE, pod...), false},
		{"a default route", msg(unix.RTM_DELROUTE, def...), true},
		{"a default route behind a pod's", append(msg(unix.RTM_NEWROUTE, pod...), msg(unix.RTM_NEWROUTE, def...)...), true},
		{"an address", msg(unix.RTM_NEWADDR, 2, 24, 0, 0), true},
		{"a header that says more than there is", []byte{255, 0, 0, 0, 24, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, true},
		{"a header of length 0", make([]byte, 16), true},
		{"nothing", nil, false},
	} {
		if got := concernsAddresses(c.b); got != c.want {
			t.Errorf("%s: %v, want %v", c.sentence, got, c.want)
		}
	}
}

func FuzzConcernsAddressesEndsOnEveryInput(f *testing.F) {
	f.Add([]byte{17, 0, 0, 0, 24, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 32})
	f.Fuzz(func(_ *testing.T, b []byte) { concernsAddresses(b) })
}

func newAgentHere(t *testing.T) *agent {
	a := &agent{t: t, source: &script{steps: make(chan func(source.Handler))}, done: make(chan error, 2)}
	a.model = dataplanetest.New()
	c, err := New(Options{Source: a.source, Dataplane: a.model, NodeName: "n1", CheckInterval: -1, Log: quiet()})
	must(t, err)
	a.Controller = c
	ctx, cancel := context.WithCancel(context.Background())
	a.cancel = cancel
	ns, err := os.Open("/proc/thread-self/ns/net")
	must(t, err)
	go func() {
		defer ns.Close()
		runtime.LockOSThread()
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			a.done <- err
			return
		}
		a.done <- c.Run(ctx)
	}()
	return a
}

func eventuallyHere(t *testing.T, what string, is func() bool) {
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(100 * time.Microsecond) {
		if is() {
			return
		}
	}
	t.Errorf("not within 5 s: %s", what)
	runtime.Goexit()
}
