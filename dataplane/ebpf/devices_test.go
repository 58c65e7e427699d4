// SPDX-License-Identifier: Apache-2.0

package ebpf

import (
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// runs reports whether a device's ingress runs just this program.
func runs(t *testing.T, ifindex int, p *ebpf.Program) bool {
	t.Helper()
	q, err := link.QueryPrograms(link.QueryOptions{Target: ifindex, Attach: ebpf.AttachTCXIngress})
	if err != nil {
		t.Fatalf("query tcx ingress: %v", err)
	}
	info, err := p.Info()
	if err != nil {
		t.Fatal(err)
	}
	id, _ := info.ID()
	return len(q.Programs) == 1 && q.Programs[0].ID == id
}

func TestADeviceThatGetsADefaultRouteIsFromOutsideUntilItLosesIt(t *testing.T) {
	if haveTCX() != nil {
		t.Skip("this kernel has no tcx")
	}
	l := newLab(t)
	d := l.open()
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "fairlead-a"}, PeerName: "fairlead-b"}); err != nil {
		t.Fatal(err)
	}
	dev, err := netlink.LinkByName("fairlead-a")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetUp(dev); err != nil {
		t.Fatal(err)
	}
	index := dev.Attrs().Index
	soon := func(what string, p *ebpf.Program) {
		t.Helper()
		for limit := time.Now().Add(3 * time.Second); !runs(t, index, p); time.Sleep(10 * time.Millisecond) {
			if time.Now().After(limit) {
				t.Fatalf("%s: its ingress does not run %s", what, p)
			}
		}
	}
	soon("a new device", d.programs.FairleadFromPod)
	_, all, _ := net.ParseCIDR("0.0.0.0/0")
	route := &netlink.Route{LinkIndex: index, Dst: all, Scope: netlink.SCOPE_LINK}
	if err := netlink.RouteAdd(route); err != nil {
		t.Fatal(err)
	}
	soon("with a default route", d.programs.FairleadFromUplink)
	if err := netlink.RouteDel(route); err != nil {
		t.Fatal(err)
	}
	soon("without it", d.programs.FairleadFromPod)
}

// TestDevicesThatVanishDoNotFailTheStart has Pods come and go meanwhile.
func TestDevicesThatVanishDoNotFailTheStart(t *testing.T) {
	l := newLab(t)
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	var churn sync.WaitGroup
	over := make(chan struct{})
	defer func() { close(over); churn.Wait() }()
	churn.Go(func() {
		const pairs = 4
		for i := 0; ; i++ {
			select {
			case <-over:
				return
			default:
			}
			name := fmt.Sprintf("pod%d", i%pairs)
			if link, err := h.LinkByName(name); err == nil {
				_ = h.LinkDel(link)
			}
			_ = h.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: "peer-" + name})
		}
	})
	for range 5 {
		d, err := New(t.Context(), l.options)
		if err != nil {
			t.Fatal(err)
		}
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
