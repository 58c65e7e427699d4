// SPDX-License-Identifier: Apache-2.0

package ebpf

import (
	"encoding/binary"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"os"
	"sync"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"fairlead.dev/bpf"
	"fairlead.dev/dataplane"
)

// agedFlow is both halves of a flow that was silent for some seconds.
type agedFlow struct {
	forward, reply bpf.FairleadTuple
}

func enterAged(t testing.TB, conntrack *ebpf.Map, p dataplane.Protocol, flags uint8, ago, lasted uint32) agedFlow {
	t.Helper()
	return enterAgedOf(t, conntrack, 0, p, flags, ago, lasted)
}

// enterAgedOf enters one of several, by number.
func enterAgedOf(t testing.TB, conntrack *ebpf.Map, n uint32, p dataplane.Protocol, flags uint8, ago, lasted uint32) (f agedFlow) {
	t.Helper()
	client, service := netip.AddrFrom4([4]byte{192, 0, 2, 100 + byte(n>>14)}), netip.MustParseAddr("10.96.0.1")
	node, backend := netip.AddrFrom4([4]byte{192, 0, 2, 1 + byte(n>>14)}), netip.MustParseAddr("10.244.2.11")
	f.forward = bpf.FairleadTuple{Source: encodeAddress(client), Destination: encodeAddress(service), SourcePort: swap16(uint16(40000 + n&0x3fff)), DestinationPort: swap16(80), Protocol: uint8(p)}
	f.reply = bpf.FairleadTuple{Source: encodeAddress(backend), Destination: encodeAddress(node), SourcePort: swap16(8080), DestinationPort: swap16(uint16(1024 + n&0x3fff)), Protocol: uint8(p)}
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

// agerOf has a program of its own, on that map.
func agerOf(t *testing.T, conntrack *ebpf.Map, timeouts Timeouts) *ager {
	t.Helper()
	spec, err := bpf.LoadFairlead()
	if err != nil {
		t.Fatal(err)
	}
	spec.Maps["conntrack"].MaxEntries = conntrack.MaxEntries()
	end := loadAlone(spec, map[string]*ebpf.Map{"conntrack": conntrack}, "fairlead_age")
	if end == nil {
		t.Fatal("the kernel refuses the program")
	}
	t.Cleanup(func() { end.Close() })
	return newAger(conntrack, end, timeouts, slog.New(slog.DiscardHandler))
}

func reversed(k bpf.FairleadTuple) bpf.FairleadTuple {
	k.Source, k.Destination, k.SourcePort, k.DestinationPort = k.Destination, k.Source, k.DestinationPort, k.SourcePort
	return k
}

func entries(t testing.TB, m *ebpf.Map) (n int) {
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
		a := agerOf(t, conntrack, timeouts)
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
		a := agerOf(t, conntrack, timeouts)
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

const tcActShot = 2 // linux/pkt_cls.h

// synOf is the packet that begins f's connection anew, IPv4 over Ethernet.
func synOf(f agedFlow) []byte {
	b := make([]byte, 14+20+20)
	binary.BigEndian.PutUint16(b[12:], unix.ETH_P_IP)
	ip, tcp := b[14:], b[34:]
	ip[0], ip[3], ip[8], ip[9] = 0x45, 40, 64, unix.IPPROTO_TCP
	binary.NativeEndian.PutUint32(ip[12:], f.forward.Source.Word[3])
	binary.NativeEndian.PutUint32(ip[16:], f.forward.Destination.Word[3])
	binary.NativeEndian.PutUint16(tcp, f.forward.SourcePort)
	binary.NativeEndian.PutUint16(tcp[2:], f.forward.DestinationPort)
	tcp[12], tcp[13] = 5<<4, 0x02
	return b
}

// TestAgingNeverEndsAFlowThatHasJustBegun has clients take the ports of old
// connections again while these are being ended.
func TestAgingNeverEndsAFlowThatHasJustBegun(t *testing.T) {
	d := newLab(t).open()
	if _, err := d.Sync(t.Context(), table(clusterIP("a", "10.96.0.1:80", dataplane.TCP, backends("10.244.2.11:8080")...))); err != nil {
		t.Fatal(err)
	}
	conntrack := d.maps["conntrack"]
	a := newAger(conntrack, d.programs.FairleadAge, d.options.Timeouts, d.options.Logger)
	const rounds, flows = 400, 64
	begun, ended, refused := 0, 0, 0
	for range rounds {
		var old [flows]agedFlow
		for n := range old {
			old[n] = enterAgedOf(t, conntrack, uint32(n), dataplane.TCP, conntrackSeenReply|conntrackClosing|conntrackPeerClosing, 70, 1)
		}
		var clients sync.WaitGroup
		var dropped [flows]bool
		a.looked = func() {
			a.looked = func() {}
			clients.Go(func() {
				for _, n := range rand.Perm(flows) {
					verdict, err := d.programs.FairleadFromPod.Run(&ebpf.RunOptions{Data: synOf(old[n])})
					if err != nil {
						t.Error(err)
					}
					dropped[n] = verdict == tcActShot
				}
			})
		}
		a.step()
		clients.Wait()
		for n, f := range old {
			var e bpf.FairleadConntrackEntry
			begun++
			if dropped[n] { // its old one was just being ended: it asks again
				refused++
			} else if conntrack.Lookup(f.forward, &e) != nil {
				ended++
			} else if e.Flags&conntrackClosing != 0 {
				t.Fatal("a connection that began anew is still the old one")
			}
			conntrack.Delete(conntrackPeer(&f.forward, &e)) // else all ports are soon taken
		}
	}
	t.Logf("of %d new flows, %d are gone, and %d had to ask again", begun, ended, refused)
	if ended > 0 || refused > begun/100 {
		t.Error("want none gone, and next to none to ask again")
	}
}

// setTurns takes or gives back the turn of every key, in the place of a program
// that is at it.
func setTurns(t *testing.T, p *ebpf.Program, taken uint32) {
	t.Helper()
	info, err := p.Info()
	if err != nil {
		t.Fatal(err)
	}
	ids, _ := info.MapIDs()
	for _, id := range ids {
		m, err := ebpf.NewMapFromID(id)
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		if about, err := m.Info(); err != nil || about.Name != "conntrack_turns" {
			continue
		}
		for i := range m.MaxEntries() {
			if err := m.Put(i, [2]uint32{0, taken}); err != nil {
				t.Fatal(err)
			}
		}
		return
	}
	t.Fatal("the program has no turns")
}

// Nobody takes an entry away while it is another's turn.
func TestAnEntryIsTakenAwayInItsTurnOnly(t *testing.T) {
	d := newLab(t).open()
	if _, err := d.Sync(t.Context(), table(clusterIP("a", "10.96.0.1:80", dataplane.TCP, backends("10.244.2.11:8080")...))); err != nil {
		t.Fatal(err)
	}
	d.stop() // its own aging
	d.workers.Wait()
	conntrack := d.maps["conntrack"]
	f := enterAged(t, conntrack, dataplane.TCP, conntrackSeenReply|conntrackClosing|conntrackPeerClosing, 70, 1)
	a := newAger(conntrack, d.programs.FairleadAge, d.options.Timeouts, d.options.Logger)
	begin := func() uint32 {
		verdict, err := d.programs.FairleadFromPod.Run(&ebpf.RunOptions{Data: synOf(f)})
		if err != nil {
			t.Fatal(err)
		}
		return verdict
	}
	setTurns(t, d.programs.FairleadAge, 1)
	verdict := begin()
	a.step()
	var e bpf.FairleadConntrackEntry
	if err := conntrack.Lookup(f.forward, &e); verdict != tcActShot || err != nil || e.Flags&conntrackClosing == 0 {
		t.Errorf("in another's turn: verdict %d, flags %#x, %v; want the packet dropped and the old entry there", verdict, e.Flags, err)
	}
	setTurns(t, d.programs.FairleadAge, 0)
	verdict = begin()
	if err := conntrack.Lookup(f.forward, &e); verdict == tcActShot || err != nil || e.Flags&conntrackClosing != 0 {
		t.Errorf("in its turn: verdict %d, flags %#x, %v; want a new flow", verdict, e.Flags, err)
	}
}

// BenchmarkAging is a whole round over 100,000 flows.
func BenchmarkAging(b *testing.B) {
	for name, ago := range map[string]uint32{"of live flows": 1, "of flows that are over": 70} {
		b.Run(name, func(b *testing.B) {
			l := newLab(b)
			l.options.ConntrackMax = 1 << 19
			d := l.open()
			d.stop() // its own aging
			d.workers.Wait()
			a := newAger(d.maps["conntrack"], d.programs.FairleadAge, d.options.Timeouts, d.options.Logger)
			const flows = 100_000
			for b.Loop() {
				b.StopTimer()
				for n := range uint32(flows) {
					enterAgedOf(b, a.conntrack, n, dataplane.TCP, conntrackSeenReply|conntrackClosing|conntrackPeerClosing, ago, 1)
				}
				b.StartTimer()
				for a.step() {
				}
				b.StopTimer()
				if left := entries(b, a.conntrack); left != map[uint32]int{1: 2 * flows, 70: 0}[ago] {
					b.Fatalf("%d entries are left", left)
				}
				b.StartTimer()
			}
			b.ReportMetric(float64(b.Elapsed().Microseconds())/1000/float64(b.N), "ms/round")
		})
	}
}
