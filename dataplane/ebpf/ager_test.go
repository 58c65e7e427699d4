// SPDX-License-Identifier: Apache-2.0

package ebpf

import (
	"net/netip"
	"os"
	"testing"

	"github.com/cilium/ebpf"

	"fairlead.dev/bpf"
	"fairlead.dev/dataplane"
)

// agedFlow is both halves of a flow that was silent for some seconds.
type agedFlow struct {
	forward, reply bpf.FairleadTuple
}

func enterAged(t *testing.T, conntrack *ebpf.Map, p dataplane.Protocol, flags uint8, ago, lasted uint32) (f agedFlow) {
	t.Helper()
	client, service := netip.MustParseAddr("192.0.2.100"), netip.MustParseAddr("10.96.0.1")
	node, backend := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("10.244.2.11")
	f.forward = bpf.FairleadTuple{Source: encodeAddress(client), Destination: encodeAddress(service), SourcePort: swap16(40000), DestinationPort: swap16(80), Protocol: uint8(p)}
	f.reply = bpf.FairleadTuple{Source: encodeAddress(backend), Destination: encodeAddress(node), SourcePort: swap16(8080), DestinationPort: swap16(1024), Protocol: uint8(p)}
	seen := monotonicSeconds() - ago
	for _, half := range []struct {
		key, becomes bpf.FairleadTuple
		flags        uint8
	}{{f.forward, reversed(f.reply), flags}, {f.reply, reversed(f.forward), flags | conntrackReply}} {
		e := bpf.FairleadConntrackEntry{
			Source: half.becomes.Source, Destination: half.becomes.Destination, SourcePort: half.becomes.SourcePort, DestinationPort: half.becomes.DestinationPort,
			Service: noNumber, Backend: noNumber, Flags: half.flags, LastSeenSeconds: seen, CreatedSeconds: seen - lasted,
		}
		if err := conntrack.Put(half.key, e); err != nil {
			t.Fatal(err)
		}
	}
	return f
}

// newConntrack is a map of nobody else's.
func newConntrack(t *testing.T) *ebpf.Map {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: it makes eBPF maps")
	}
	spec, err := bpf.LoadFairlead()
	if err != nil {
		t.Fatal(err)
	}
	m := spec.Maps["conntrack"]
	m.MaxEntries = 1024
	conntrack, err := ebpf.NewMap(m)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conntrack.Close() })
	return conntrack
}

func reversed(k bpf.FairleadTuple) bpf.FairleadTuple {
	k.Source, k.Destination, k.SourcePort, k.DestinationPort = k.Destination, k.Source, k.DestinationPort, k.SourcePort
	return k
}

func entries(t *testing.T, m *ebpf.Map) (n int) {
	t.Helper()
	if err := eachEntry(m, func(bpf.FairleadTuple, *bpf.FairleadConntrackEntry) { n++ }); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestFlowsAreForgottenByTheirKind(t *testing.T) {
	conntrack := newConntrack(t)
	timeouts := Options{}.withDefaults().Timeouts
	closed := uint8(conntrackSeenReply | conntrackClosing | conntrackPeerClosing)
	for _, c := range []struct {
		what        string
		protocol    dataplane.Protocol
		flags       uint8
		ago, lasted uint32
		want        int
	}{
		{"a question of 20 s ago", dataplane.UDP, conntrackSeenReply, 20, 0, 2},
		{"a question of 40 s ago", dataplane.UDP, conntrackSeenReply, 40, 0, 0},
		{"a stream, silent for 40 s", dataplane.UDP, conntrackSeenReply, 40, 10, 2},
		{"a stream, silent for 200 s", dataplane.UDP, conntrackSeenReply, 200, 10, 0},
		{"a closed connection of 40 s ago", dataplane.TCP, closed, 40, 1, 2},
		{"a closed connection of 70 s ago", dataplane.TCP, closed, 70, 1, 0},
		{"an established connection, silent for an hour", dataplane.TCP, conntrackSeenReply, 3600, 1, 2},
		{"a flow seen in a second that has just begun", dataplane.UDP, conntrackSeenReply, ^uint32(0), 10, 2},
	} {
		f := enterAged(t, conntrack, c.protocol, c.flags, c.ago, c.lasted)
		a := newAger(conntrack, timeouts)
		for range 4 {
			a.step()
		}
		if got := entries(t, conntrack); got != c.want {
			t.Errorf("%s: %d entries are left, want %d", c.what, got, c.want)
		}
		conntrack.Delete(f.forward)
		conntrack.Delete(f.reply)
	}
}

// TestANewFlowInThePlaceOfAnOldOneStays has a client take the port of an old
// flow again between the look at its entries and their end.
func TestANewFlowInThePlaceOfAnOldOneStays(t *testing.T) {
	conntrack := newConntrack(t)
	timeouts := Options{}.withDefaults().Timeouts
	for name, again := range map[string]func(agedFlow) bpf.FairleadTuple{
		"the client's side":  func(f agedFlow) bpf.FairleadTuple { return f.forward },
		"the Backend's side": func(f agedFlow) bpf.FairleadTuple { return f.reply },
	} {
		f := enterAged(t, conntrack, dataplane.TCP, conntrackSeenReply|conntrackClosing|conntrackPeerClosing, 70, 1)
		a := newAger(conntrack, timeouts)
		a.looked = func() {
			var e bpf.FairleadConntrackEntry
			if err := conntrack.Lookup(again(f), &e); err != nil {
				t.Fatal(err)
			}
			e.Flags &^= conntrackClosing | conntrackPeerClosing
			e.LastSeenSeconds = monotonicSeconds()
			if err := conntrack.Put(again(f), e); err != nil {
				t.Fatal(err)
			}
		}
		a.step()
		var e bpf.FairleadConntrackEntry
		if err := conntrack.Lookup(again(f), &e); err != nil {
			t.Errorf("%s of the new flow: %v", name, err)
		}
		conntrack.Delete(f.forward)
		conntrack.Delete(f.reply)
	}
}
