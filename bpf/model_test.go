// SPDX-License-Identifier: Apache-2.0

package bpf_test

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"fairlead.dev/bpf"
	"fairlead.dev/bpf/packetmodel"
)

// duel runs packets through the programs and the model side by side.
type duel struct {
	*state
	t     testing.TB
	model *packetmodel.State
	log   []string
}

const packetsMax = 24

// modelPorts are few, so that they run out.
const modelPortMin, modelPortMax = 40000, 40007

func newDuel(t testing.TB) *duel {
	d := &duel{state: newState(t), t: t, model: &packetmodel.State{
		Frontends: map[packetmodel.Endpoint]*packetmodel.Frontend{}, ClusterIPs: map[netip.Addr]bool{},
		InternalSources: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00:10:244::/48")},
		Node4:           addr("192.0.2.1"), Node6: addr("2001:db8:1::1"), PortMin: modelPortMin, PortMax: modelPortMax,
		Generations: map[uint32]uint32{}, Route: route, UntoldMTU: !tellsMTU, LinkAddress: map[string][6]byte{},
	}}
	for name, m := range linkMAC {
		d.model.LinkAddress[name] = m
	}
	d.masqueradePorts(modelPortMin, modelPortMax)
	id := uint32(0)
	for _, family := range []string{"IPv4", "IPv6"} {
		for _, proto := range []uint8{tcp, udp, sctp} {
			for _, f := range modelFrontends(worldOf(family, proto)) {
				id++
				f.id = id
				d.addBoth(f)
			}
		}
		vip := worldOf(family, tcp).vip
		d.add(frontend{id: 1, address: vip, flags: frontendAnyPort})
		d.model.ClusterIPs[vip] = true
	}
	d.reset()
	return d
}

// modelFrontends has one of each kind.
func modelFrontends(w world) []frontend {
	here := set{backends: []backend{{w.pod, 8080, slotLocal}, {w.thin, 8080, slotLocal}, {w.silent, 80, slotLocal}}}
	away := set{backends: []backend{{w.remote, 8080, 0}}}
	all := set{backends: append(slices.Clone(here.backends), away.backends...)}
	host := set{backends: []backend{{w.node, 8080, slotLocal | slotHostNetwork}}}
	f := func(port uint16, internal, external set, flags uint8) frontend {
		return frontend{address: w.vip, port: port, proto: w.proto, internal: internal, external: external, flags: flags}
	}
	sticky, port := f(85, all, here, 0), f(30080, all, all, frontendMasqueradeExternal)
	sticky.affinity, port.address = 3600, w.node
	return []frontend{
		f(80, here, here, 0), f(81, away, away, 0), f(82, set{}, set{}, 0), f(83, here, set{onEmpty: emptyDrop}, 0),
		f(84, host, host, frontendMasqueradeExternal), sticky, f(86, here, here, frontendSourceRanges),
		f(87, set{backends: []backend{{w.lost, 80, 0}}}, set{backends: []backend{{w.lost, 80, 0}}}, 0), port,
	}
}

func (d *duel) addBoth(f frontend) {
	d.add(f)
	m := &packetmodel.Frontend{Service: f.id, AffinitySeconds: f.affinity, MasqueradeExternal: f.flags&frontendMasqueradeExternal != 0}
	if f.flags&frontendSourceRanges != 0 {
		for _, p := range []string{"198.51.100.8/32", "2001:db8:7::8/128"} {
			m.Sources = append(m.Sources, netip.MustParsePrefix(p))
			d.allowSource(f.id, p)
		}
	}
	convert := func(s set) packetmodel.Set {
		out := packetmodel.Set{Silent: s.onEmpty == emptyDrop}
		for _, b := range s.backends {
			id := d.backendID(f.id, b)
			d.model.Generations[id] = 1
			out.Backends = append(out.Backends, packetmodel.Backend{ID: id, Address: b.address, Port: b.port, Local: b.flags&slotLocal != 0, HostNetwork: b.flags&slotHostNetwork != 0})
		}
		return out
	}
	m.Internal, m.External = convert(f.internal), convert(f.external)
	d.model.Frontends[packetmodel.Endpoint{Address: f.address, Port: f.port, Protocol: f.proto}] = m
}

// reset forgets what packets left behind, in both.
func (d *duel) reset() {
	o := &d.objects
	d.must(clearMap(o.Conntrack))
	d.must(clearMap(o.Fragments))
	d.must(clearMap(o.Affinity))
	d.log = nil
	d.model.Flows, d.model.Affinity = map[packetmodel.Tuple]*packetmodel.Flow{}, map[packetmodel.Client]packetmodel.Sticky{}
	d.model.Fragments, d.model.Drops = map[packetmodel.Datagram]packetmodel.L4{}, map[packetmodel.Reason]int{}
}

// route is the rig's routing table, as the kernel uses it: where it tells no
// MTU it does not look at one before the neighbour is known, and allows for a
// VLAN's four bytes.
func route(a netip.Addr) packetmodel.Hop {
	hop := table(a)
	switch {
	case tellsMTU:
	case hop.Kind == packetmodel.Forward:
		hop.MTU += 4
	case hop.Kind == packetmodel.Resolve:
		hop.MTU = 1 << 16
	}
	return hop
}

func table(a netip.Addr) packetmodel.Hop {
	hop := func(device string, to mac, mtu int) packetmodel.Hop {
		return packetmodel.Hop{Kind: packetmodel.Forward, Device: device, To: to, From: linkMAC[device], MTU: mtu}
	}
	in := func(list ...string) bool { return slices.Contains(list, a.String()) }
	within := func(p string) bool { return netip.MustParsePrefix(p).Contains(a) }
	switch {
	case in("192.0.2.1", "192.0.2.0", "192.0.2.255", "2001:db8:1::1", "2001:db8:1::", "255.255.255.255"), a.IsLoopback(), a.IsMulticast(), a.IsUnspecified():
		return packetmodel.Hop{Kind: packetmodel.ToStack}
	case in("10.244.1.11", "fd00:10:244:1::11"):
		return hop(podLink, podMAC, 1500)
	case in("10.244.1.12", "fd00:10:244:1::12"):
		return hop(thinLink, thinMAC, thinMTU)
	case in("10.244.1.13", "fd00:10:244:1::13"):
		return packetmodel.Hop{Kind: packetmodel.Resolve, Device: podLink, MTU: 1500}
	case in("192.0.2.2", "2001:db8:1::2"), within("10.244.2.0/24"), within("fd00:10:244:2::/64"):
		return hop(uplink, remoteMAC, 1500)
	case in("192.0.2.254", "2001:db8:1::254"):
		return hop(uplink, gatewayMAC, 1500)
	case within("192.0.2.0/24"), within("2001:db8:1::/64"), within("fe80::/10"):
		return packetmodel.Hop{Kind: packetmodel.Resolve, Device: uplink, MTU: 1500}
	case within("10.244.9.0/24"), within("fd00:10:244:9::/64"):
		return packetmodel.Hop{Kind: packetmodel.Blackhole}
	}
	return hop(uplink, gatewayMAC, 1500)
}

// observed is the Chooser that reads what the programs chose, and refuses what
// they may not choose.
type observed struct{ *duel }

func (o observed) entry(t packetmodel.Tuple) (packetmodel.Tuple, bool) {
	e, ok := o.conntrack(flow{t.Source, t.Destination, t.SourcePort, t.DestinationPort, t.Protocol})
	return packetmodel.Tuple{Source: unword(e.Source), Destination: unword(e.Destination), SourcePort: swap(e.SourcePort), DestinationPort: swap(e.DestinationPort), Protocol: t.Protocol}, ok
}

func (o observed) Backend(t packetmodel.Tuple, among []packetmodel.Backend) packetmodel.Backend {
	e, ok := o.entry(t)
	for _, b := range among {
		if b.Address == e.Destination && b.Port == e.DestinationPort {
			return b
		}
	}
	if ok {
		o.fail("%v went to %v:%d, not one of %v", t, e.Destination, e.DestinationPort, among)
	}
	// Without an entry there was no port for it, so it was the busiest.
	return slices.MaxFunc(among, func(a, b packetmodel.Backend) int { return cmp.Compare(o.busy(a), o.busy(b)) })
}

// busy is how many flows a Backend has at most from one address.
func (o observed) busy(b packetmodel.Backend) int {
	flows := map[netip.Addr]int{}
	most := 0
	for t := range o.model.Flows {
		if t.Source == b.Address && t.SourcePort == b.Port {
			flows[t.Destination]++
			most = max(most, flows[t.Destination])
		}
	}
	return most
}

func (o observed) Port(t packetmodel.Tuple, among []uint16) uint16 {
	e, ok := o.entry(t)
	if !ok || !slices.Contains(among, e.SourcePort) {
		o.fail("%v has source port %d (conntrack %v), not one of %v", t, e.SourcePort, ok, among)
	}
	return e.SourcePort
}

func (d *duel) fail(format string, args ...any) {
	d.t.Helper()
	for _, l := range d.log {
		d.t.Log(l)
	}
	d.t.Fatalf(format, args...)
}

// play takes a script's packets, and between them Backends made anew.
func (d *duel) play(data []byte) {
	d.reset()
	s := &script{b: data}
	for n := 0; n < packetsMax && len(s.b) > 0; n++ {
		if s.one(16) {
			d.renew(1 + uint32(s.byte())%uint32(len(d.model.Generations)))
			continue
		}
		if flows := d.flows(); s.one(16) && len(flows) > 0 {
			t := pick(s, flows...)
			back := d.model.Flows[t].To
			d.evict(t)
			for _, frame := range s.usurp(back) {
				d.packet(arriving, frame)
			}
		}
		s.flows = d.flows()
		at, frame := s.step()
		d.packet(at, frame)
	}
	d.compareState()
}

// flows are the model's, in an order that a script can rely on.
func (d *duel) flows() []packetmodel.Tuple {
	return slices.SortedFunc(maps.Keys(d.model.Flows), func(a, b packetmodel.Tuple) int {
		return cmp.Or(a.Source.Compare(b.Source), a.Destination.Compare(b.Destination), cmp.Compare(a.SourcePort, b.SourcePort),
			cmp.Compare(a.DestinationPort, b.DestinationPort), cmp.Compare(a.Protocol, b.Protocol))
	})
}

// renew removes a Backend and makes it anew: its old flows are stale.
func (d *duel) renew(id uint32) {
	d.model.Generations[id] += 2
	var st bpf.FairleadBackendState
	d.must(d.objects.BackendStates.Lookup(id, &st))
	st.Generation += 2
	d.must(d.objects.BackendStates.Put(id, st))
	d.log = append(d.log, fmt.Sprintf("Backend %d made anew", id))
}

// evict takes half a flow out of the table, and lets a second pass: what is
// left looks for it then.
func (d *duel) evict(t packetmodel.Tuple) {
	delete(d.model.Flows, t)
	d.must(d.objects.Conntrack.Delete(flow{t.Source, t.Destination, t.SourcePort, t.DestinationPort, t.Protocol}.key()))
	d.log = append(d.log, fmt.Sprintf("%v evicted", t))
	now := monotonic()
	for _, t := range d.flows() {
		key := flow{t.Source, t.Destination, t.SourcePort, t.DestinationPort, t.Protocol}.key()
		var e entry
		d.must(d.objects.Conntrack.Lookup(key, &e))
		e.LastSeenSeconds = now - 2 // the clock of the programs is a coarse one
		d.must(d.objects.Conntrack.Put(key, e))
	}
}

func (d *duel) packet(at hook, frame []byte) {
	d.t.Helper()
	// A test run takes no frame that ends within its IP header, and no device
	// gives one beyond its MTU.
	if len(frame) > 1514 || len(frame) < 34 || frame[12] == 0x86 && len(frame) < 54 {
		return
	}
	got, out, err := d.run(at, frame)
	if got != stack || !bytes.Equal(out, frame) {
		d.log = append(d.log, fmt.Sprintf("%s on %s: %q\n-> %v %q", at.side, at.device, brief(frame), got, brief(out)))
	}
	if err != nil {
		d.fail("run: %v", err)
	}
	want := d.model.Handle(packetmodel.Side(at.side), at.device, frame, observed{d})
	if v := map[packetmodel.Verdict]verdict{packetmodel.Stack: stack, packetmodel.Redirect: redirect, packetmodel.Drop: drop}[want.Verdict]; v != got {
		d.fail("%s on %s: %q\n%v, the model says %v", at.side, at.device, describe(frame), got, v)
	}
	if got == drop {
		return
	}
	if a, b := normal(want.Frame, want.Checksums), normal(out, want.Checksums); !bytes.Equal(a, b) {
		d.fail("another packet (-model +programs):\n%s", diffFrames(a, b))
	}
}

// normal writes checksums one way where one's complement has two, but for
// UDP's 0, which stands for none.
func normal(b []byte, checksums []int) []byte {
	b = slices.Clone(b)
	for _, at := range checksums {
		if at+2 <= len(b) && binary.BigEndian.Uint16(b[at:]) == 0xffff {
			binary.BigEndian.PutUint16(b[at:], 0)
		}
	}
	return b
}

// compareState compares the flows that the packets left.
func (d *duel) compareState() {
	d.t.Helper()
	var k bpf.FairleadTuple
	var e bpf.FairleadConntrackEntry
	n := 0
	for it := d.objects.Conntrack.Iterate(); it.Next(&k, &e); n++ {
		t := packetmodel.Tuple{Source: unword(k.Source), Destination: unword(k.Destination), SourcePort: swap(k.SourcePort), DestinationPort: swap(k.DestinationPort), Protocol: k.Protocol}
		got := packetmodel.Flow{
			To:      packetmodel.Tuple{Source: unword(e.Source), Destination: unword(e.Destination), SourcePort: swap(e.SourcePort), DestinationPort: swap(e.DestinationPort), Protocol: k.Protocol},
			Service: e.Service, Backend: e.Backend, Generation: e.Generation,
			Reply: e.Flags&flowReply != 0, SeenReply: e.Flags&flowSeenReply != 0, Closing: e.Flags&flowClosing != 0, PeerClose: e.Flags&flowPeerClosing != 0,
		}
		if want := d.model.Flows[t]; want == nil {
			d.fail("conntrack has %v %+v, the model does not", t, got)
		} else if *want != got {
			d.fail("conntrack of %v: %+v, the model says %+v", t, got, *want)
		}
	}
	if n != len(d.model.Flows) {
		d.fail("conntrack has %d entries, the model %d: %v", n, len(d.model.Flows), d.model.Flows)
	}
}

func TestProgramsAgreeWithTheModel(t *testing.T) {
	d := newDuel(t)
	rapid.Check(t, func(rt *rapid.T) {
		// Evenly spread bytes, which rapid's own are not: a script's bytes are
		// choices among equals.
		b := make([]byte, rapid.IntRange(0, 1200).Draw(rt, "length"))
		rand.NewChaCha8([32]byte{0: rapid.Byte().Draw(rt, "a"), 1: rapid.Byte().Draw(rt, "b"), 2: rapid.Byte().Draw(rt, "c")}).Read(b)
		d.play(b)
	})
}

func FuzzPacketPath(f *testing.F) {
	for n := range byte(64) {
		b := make([]byte, 800)
		rand.NewChaCha8([32]byte{n}).Read(b)
		f.Add(b)
	}
	var d *duel
	f.Fuzz(func(t *testing.T, data []byte) {
		if d == nil {
			d = newDuel(t)
		}
		d.t, d.state.t = t, t
		d.play(data)
	})
}

// brief is the headers, as far as they fit a line.
func brief(b []byte) []string {
	d := describe(b)
	return d[:min(7, len(d))]
}
