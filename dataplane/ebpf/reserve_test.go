// SPDX-License-Identifier: Apache-2.0

package ebpf

import (
	"context"
	"fmt"
	"math/bits"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"fairlead.dev/bpf"
	"fairlead.dev/dataplane"
)

func TestPortsOfMasqueradedFlowsAreReservedFromWhoMasqueradesNext(t *testing.T) {
	l := newLab(t)
	d, err := New(context.Background(), l.options)
	if err != nil {
		t.Fatal(err)
	}
	tab := table(clusterIP("web", "10.96.0.10:80", dataplane.TCP, backends("10.244.1.1:8080")...))
	if _, err := d.Sync(t.Context(), tab); err != nil {
		t.Fatal(err)
	}
	answers := func(backend, node string, p dataplane.Protocol, flags uint8) {
		b, n := netip.MustParseAddrPort(backend), netip.MustParseAddrPort(node)
		k := bpf.FairleadTuple{Source: encodeAddress(b.Addr()), Destination: encodeAddress(n.Addr()),
			SourcePort: bits.ReverseBytes16(b.Port()), DestinationPort: bits.ReverseBytes16(n.Port()), Protocol: uint8(p)}
		e := bpf.FairleadConntrackEntry{Flags: flags, LastSeenSeconds: monotonicSeconds()}
		if err := d.maps["conntrack"].Update(&k, &e, 0); err != nil {
			t.Fatal(err)
		}
	}
	answers("10.244.1.1:8080", "192.0.2.1:1025", dataplane.TCP, conntrackReply|conntrackSeenReply|conntrackMasquerade)
	answers("10.244.1.1:8080", "192.0.2.1:1025", dataplane.UDP, conntrackReply|conntrackMasquerade)
	answers("[fd00::1]:8080", "[2001:db8::1]:1026", dataplane.TCP, conntrackReply|conntrackMasquerade|conntrackClosing)
	answers("10.244.1.1:8080", "10.244.1.2:1027", dataplane.TCP, conntrackReply|conntrackSeenReply)     // the client's own address
	answers("192.0.2.1:1025", "10.244.1.1:8080", dataplane.TCP, conntrackSeenReply|conntrackMasquerade) // the other half
	d.Close()

	old := NewDraining(l.options)
	if err := old.Begin(t.Context(), tab); err != nil {
		t.Fatal(err)
	}
	defer old.End(context.Background())
	var got []string
	for _, family := range []netlink.InetFamily{unix.AF_INET, unix.AF_INET6} {
		flows, err := netlink.ConntrackTableList(netlink.ConntrackTable, family)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range flows {
			got = append(got, fmt.Sprintf("%v %v:%d -> %v:%d, answers to %v:%d", dataplane.Protocol(f.Forward.Protocol),
				f.Forward.SrcIP, f.Forward.SrcPort, f.Forward.DstIP, f.Forward.DstPort, f.Reverse.DstIP, f.Reverse.DstPort))
		}
	}
	slices.Sort(got)
	want := []string{
		"TCP 192.0.2.1:1025 -> 10.244.1.1:8080, answers to 192.0.2.1:1025",
		"TCP 2001:db8::1:1026 -> fd00::1:8080, answers to 2001:db8::1:1026",
		"UDP 192.0.2.1:1025 -> 10.244.1.1:8080, answers to 192.0.2.1:1025",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("flows in the kernel's conntrack (-want +got):\n%s", diff)
	}
}

func TestPortsThatTheKernelMasqueradesWithAreNotTaken(t *testing.T) {
	l := newLab(t)
	d := l.open()
	flow := func(masquerade, protocol string) dataplane.ConntrackRow {
		return dataplane.ConntrackRow{Protocol: protocol, Backend: netip.MustParseAddrPort("10.244.1.1:8080"), Masquerade: masquerade}
	}
	if err := d.Reserve([]dataplane.ConntrackRow{flow("192.0.2.1:1030", "TCP"), flow("192.0.2.1:60000", "TCP"), flow("192.0.2.1:1031", "UDP")}); err != nil {
		t.Fatal(err)
	}
	var got []string
	err := eachEntry(d.maps["conntrack"], func(k bpf.FairleadTuple, e *bpf.FairleadConntrackEntry) {
		if k.Source != e.Source || k.Destination != e.Destination || k.SourcePort != e.SourcePort || k.DestinationPort != e.DestinationPort {
			t.Errorf("%+v would be translated to %+v", k, *e)
		}
		got = append(got, fmt.Sprintf("%v %v -> %v", dataplane.Protocol(k.Protocol), addrPort(k.Source, k.SourcePort), addrPort(k.Destination, k.DestinationPort)))
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(got)
	want := []string{
		"TCP 10.244.1.1:8080 -> 192.0.2.1:1030", "TCP 192.0.2.1:1030 -> 10.244.1.1:8080",
		"UDP 10.244.1.1:8080 -> 192.0.2.1:1031", "UDP 192.0.2.1:1031 -> 10.244.1.1:8080",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("reserved, one port is none of ours (-want +got):\n%s", diff)
	}
}
