// SPDX-License-Identifier: Apache-2.0

package ipvs

import (
	"context"
	"encoding/binary"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"fairlead.dev/dataplane"
	"fairlead.dev/dataplane/dataplanetest"
)

func TestKernelFollowsAnyChangeAndSurvivesAnyRestart(t *testing.T) {
	l := newLab(t)
	dataplanetest.Follows(t, dataplanetest.FollowOptions{
		Open: func() (dataplane.Dataplane, error) { return New(context.Background(), l.options) },
		Read: l.Read,
		// The machine of test/vm is emulated.
		Shape: dataplanetest.Shape{Backends: 6, Ports: 3}, Steps: 6, RestartOneIn: 4,
	})
}

func TestDriftIsNoticedRepairedAndCounted(t *testing.T) {
	l := newLab(t)
	d := l.open()
	tab := l.table(serviceAt("a", "10.96.0.1:80", dataplane.TCP, backends("10.244.1.1:80")...), serviceAt("b", "[fd00::1]:80", dataplane.UDP, backends("[fd00:10:244:1::1]:80")...))
	l.sync(d, tab)
	select {
	case <-d.Drifted():
		t.Fatal("our own changes were taken for drift")
	case <-time.After(2 * pollEvery):
	}
	other, err := openTable(DefaultAffinityMax)
	l.must(err)
	defer other.close()
	foreign, err := openKernel(l.options.withDefaults().marks())
	l.must(err)
	defer foreign.close()
	for name, breakIt := range map[string]func(){
		"the table is deleted": func() { l.must(other.remove()) },
		"a map is flushed": func() {
			other.conn.FlushSet(other.sets["internal4"])
			l.must(other.commit())
		},
		"IPVS is flushed": func() { l.must(foreign.handle.Flush()) },
		"the device is deleted": func() {
			link, err := netlink.LinkByName(deviceName)
			l.must(err)
			l.must(netlink.LinkDel(link))
		},
		"a route is deleted": func() {
			list, err := netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{LinkIndex: d.routes.index, Table: localTable}, netlink.RT_FILTER_OIF|netlink.RT_FILTER_TABLE)
			l.must(err)
			if len(list) != 1 {
				t.Fatalf("routes of the device: %v; want one", list)
			}
			l.must(netlink.RouteDel(&list[0]))
		},
	} {
		breakIt()
		start := time.Now()
		select {
		case <-d.Drifted():
			t.Logf("%s: noticed after %v", name, time.Since(start).Round(time.Millisecond))
		case <-time.After(20 * pollEvery):
			t.Errorf("%s: not noticed", name)
		}
		if n := l.sync(d, tab); n == 0 {
			t.Errorf("%s: nothing was repaired", name)
		}
		l.Holds(tab)
		if n := l.sync(d, tab); n != 0 {
			t.Errorf("%s: a second full check repaired %d", name, n)
		}
		for len(d.Drifted()) > 0 {
			<-d.Drifted()
		}
	}
}

// Word of what was comes late: a repair makes the device first, and then sets it up.
func TestWordOfADeviceThatIsUpAgainIsNoDrift(t *testing.T) {
	l := newLab(t)
	d := l.open()
	l.sync(d, l.table())
	word := func(kind uint16) syscall.NetlinkMessage {
		data := make([]byte, unix.SizeofIfInfomsg) // no flag: it is down
		binary.NativeEndian.PutUint32(data[4:], uint32(d.routes.index))
		return syscall.NetlinkMessage{Header: syscall.NlMsghdr{Type: kind}, Data: data}
	}
	if d.watch.aboutDevice(word(unix.RTM_NEWLINK)) {
		t.Error("a device that is up is drift")
	}
	link, err := netlink.LinkByName(deviceName)
	l.must(err)
	l.must(netlink.LinkSetDown(link))
	if !d.watch.aboutDevice(word(unix.RTM_NEWLINK)) {
		t.Error("a device that is down is no drift")
	}
	l.must(netlink.LinkDel(link))
	if !d.watch.aboutDevice(word(unix.RTM_DELLINK)) {
		t.Error("a device that is gone is no drift")
	}
}

func TestCleanupLeavesTheMachineAsItWas(t *testing.T) {
	l := newLab(t)
	foreign, err := openKernel(l.options.withDefaults().marks())
	l.must(err)
	defer foreign.close()
	other := service(0, ipv4, "rr")
	other.Address, other.Port, other.Protocol = netip.MustParseAddr("198.51.100.7").AsSlice(), 80, 6
	l.must(foreign.handle.NewService(other))
	const key = "ipv4/vs/conntrack"
	l.must(writeSysctl(key, "0"))
	l.options.TCPTimeout = 1234 * time.Second
	if there, err := Present(l.options); there || err != nil {
		t.Fatalf("present before the start: %t, %v", there, err)
	}
	was, err := foreign.timeouts()
	l.must(err)
	d := l.open()
	l.sync(d, l.table(serviceAt("a", "10.96.0.1:80", dataplane.TCP, backends("10.244.1.1:80")...)))
	if v, _ := readSysctl(key); v != "1" {
		t.Errorf("sysctl %s is %s after the start; want 1", key, v)
	}
	if now, err := foreign.timeouts(); err != nil || now.TimeoutTCP != l.options.TCPTimeout || now.TimeoutUDP != was.TimeoutUDP {
		t.Errorf("timeouts of IPVS are %+v, error %v; want %v for TCP and %v for UDP", now, err, l.options.TCPTimeout, was.TimeoutUDP)
	}
	d.Close()
	if there, err := Present(l.options); !there || err != nil {
		t.Errorf("present after Close: %t, %v", there, err)
	}
	removed, err := Cleanup(l.options)
	l.must(err)
	if v, _ := readSysctl(key); v != "0" {
		t.Errorf("sysctl %s is %s after Cleanup; want 0 as before (removed: %v)", key, v, removed)
	}
	if now, err := foreign.timeouts(); err != nil || now != was {
		t.Errorf("timeouts of IPVS are %+v, error %v, after Cleanup; want %+v", now, err, was)
	}
	left, err := foreign.handle.GetServices()
	l.must(err)
	if len(left) != 1 || left[0].Port != 80 {
		t.Errorf("virtual servers after Cleanup: %+v; want the foreign one alone", left)
	}
	if again, err := Cleanup(l.options); len(again) != 0 || err != nil {
		t.Errorf("second Cleanup removed %v, error %v", again, err)
	}
	if there, err := Present(l.options); there || err != nil {
		t.Errorf("present after Cleanup: %t, %v", there, err)
	}
	if _, err := Read(l.options); err == nil || !strings.Contains(err.Error(), "no table fairlead-ipvs") {
		t.Errorf("Read after Cleanup: %v", err)
	}
}

func TestRemovedBackendsOfUDPGoAtOnceAndIdleOnesOfTCPToo(t *testing.T) {
	for _, p := range []dataplane.Protocol{dataplane.TCP, dataplane.UDP} {
		l := newLab(t)
		d := l.open()
		l.sync(d, l.table(serviceAt("a", "10.96.0.1:80", p, backends("10.244.1.1:80", "10.244.1.2:80")...)))
		l.Apply(d, serviceAt("a", "10.96.0.1:80", p, backends("10.244.1.2:80")...))
		servers, err := d.kernel.servers()
		l.must(err)
		for mark, s := range servers {
			if mark != d.options.marks().sentinel() && len(s.weights) != 1 {
				t.Errorf("%s: destinations %v; want one", p, s.weights)
			}
		}
	}
}

func TestAnUnknownSchedulerIsAClearError(t *testing.T) {
	l := newLab(t)
	l.options.Scheduler = "nosuch"
	d := l.open()
	_, err := d.Sync(context.Background(), l.table(serviceAt("a", "10.96.0.1:80", dataplane.TCP, backends("10.244.1.1:80")...)))
	if err == nil || !strings.Contains(err.Error(), `no scheduler "nosuch"`) {
		t.Errorf("error %v; want one that names the scheduler", err)
	}
}

func BenchmarkLoadAndFlip(b *testing.B) {
	l := newLab(b)
	tab := l.synthetic(1000, 10)
	ctx := context.Background()
	for b.Loop() {
		d, err := New(ctx, l.options)
		l.must(err)
		start := time.Now()
		l.sync(d, tab)
		b.ReportMetric(float64(time.Since(start).Microseconds())/1000, "ms/load")
		start = time.Now()
		if n := l.sync(d, tab); n != 0 {
			b.Fatal(n)
		}
		b.ReportMetric(float64(time.Since(start).Microseconds())/1000, "ms/check")
		one, two := l.synthetic(1, 10), l.synthetic(1, 9)
		const flips = 50
		start = time.Now()
		for i := range flips {
			next := one
			if i%2 == 0 {
				next = two
			}
			l.must(d.Apply(ctx, dataplane.Change{Services: next.Services}))
		}
		b.ReportMetric(float64(time.Since(start).Microseconds())/1000/flips, "ms/flip")
		d.Close()
		_, err = Cleanup(l.options)
		l.must(err)
	}
}
