// SPDX-License-Identifier: Apache-2.0

// Package packetmodel says what the packet path has to do with a packet, as
// plainly as can be: no byte order tricks, no incremental maps, no speed. Tests
// run the programs beside it. It is written from what is documented (the RFCs
// it names, layout.h, Kubernetes' Service semantics), knows nothing of eBPF,
// and leaves what is random to the one who asks.
package packetmodel

import (
	"net/netip"
	"slices"
)

// Side is where a packet meets the path.
type Side uint8

// The sides.
const (
	FromUplink Side = iota // enters by a device that leads out of the node
	FromPod                // enters by any other device
	FromHost               // leaves the node that made it
)

// Verdict is what becomes of a packet.
type Verdict uint8

// The verdicts.
const (
	Stack    Verdict = iota // goes on to the stack, changed or not
	Redirect                // is sent on by the path itself
	Drop
)

func (v Verdict) String() string { return [...]string{"stack", "redirect", "drop"}[v] }

// Reason is why a packet was not let through, as layout.h counts it.
type Reason uint8

// The reasons.
const (
	NoBackends Reason = iota
	NoLocalBackends
	UnknownPort
	SourceRange
	ConntrackFull
	PortsExhausted
	NoMasqueradeAddress
	FragmentUnknown
	Malformed
	NoConntrack
	NoRoute
	TooBig
	SCTPChecksum
	none
)

// Tuple is a packet's addresses and ports. Ports in host byte order.
type Tuple struct {
	Source, Destination         netip.Addr
	SourcePort, DestinationPort uint16
	Protocol                    uint8
}

func (t Tuple) reversed() Tuple {
	return Tuple{t.Destination, t.Source, t.DestinationPort, t.SourcePort, t.Protocol}
}

// Backend is where a Frontend's traffic may go. Generation changes when it is
// removed and made anew.
type Backend struct {
	ID          uint32
	Address     netip.Addr
	Port        uint16
	Local       bool
	HostNetwork bool
}

// Set is the Backends of one scope; all get new flows.
type Set struct {
	Backends []Backend
	Silent   bool // when empty: drop instead of reject
}

// Frontend is a Service port.
type Frontend struct {
	Service            uint32
	AffinitySeconds    uint32
	MasqueradeExternal bool
	Sources            []netip.Prefix // nil: all
	Internal, External Set
}

// Endpoint is where a Frontend is found.
type Endpoint struct {
	Address  netip.Addr
	Port     uint16
	Protocol uint8
}

// Flow is one direction of a flow: what looks like its key leaves as To.
type Flow struct {
	To         Tuple
	Service    uint32
	Backend    uint32
	Generation uint32
	Reply      bool
	SeenReply  bool
	Closing    bool
	PeerClose  bool
}

// Client names who has affinity.
type Client struct {
	Address netip.Addr
	Service uint32
}

// Sticky is the Backend that a client returns to.
type Sticky struct {
	Backend    Backend
	Generation uint32
}

// Datagram names what fragments belong to. Protocol is what the header that
// tells of fragments says is next (RFC 8200, 4.5), not always the last.
type Datagram struct {
	Source, Destination netip.Addr
	ID                  uint32
	Protocol            uint8
}

// L4 is what only a datagram's first fragment tells.
type L4 struct {
	SourcePort, DestinationPort uint16
	Protocol                    uint8
}

// Hop is where the routing table sends a packet.
type Hop struct {
	Kind   HopKind
	Device string
	To     [6]byte // the neighbour's
	From   [6]byte // the device's
	MTU    int     // bytes of IP packet
}

// HopKind says how.
type HopKind uint8

// The kinds of Hop.
const (
	ToStack   HopKind = iota // the node's own, or nothing the path forwards
	Forward                  // to a known neighbour
	Resolve                  // the neighbour is yet to be found
	Blackhole                // no way
)

// Chooser settles what the path leaves to chance.
type Chooser interface {
	// Backend picks one of those a new flow may go to.
	Backend(t Tuple, among []Backend) Backend
	// Port picks one of the free ports a new flow may leave with.
	Port(t Tuple, among []uint16) uint16
}

// State is everything the path knows.
type State struct {
	Frontends        map[Endpoint]*Frontend
	ClusterIPs       map[netip.Addr]bool
	InternalSources  []netip.Prefix
	Node4, Node6     netip.Addr
	PortMin, PortMax uint16
	Generations      map[uint32]uint32 // of each Backend
	Route            func(destination netip.Addr) Hop
	UntoldMTU        bool // the kernel does not tell what fits a path (before 5.12)
	LinkAddress      map[string][6]byte

	Flows     map[Tuple]*Flow
	Affinity  map[Client]Sticky
	Fragments map[Datagram]L4
	Drops     map[Reason]int
}

// Outcome is a verdict and the frame that goes on.
type Outcome struct {
	Verdict Verdict
	Frame   []byte
	// Checksums are the offsets in Frame of 16-bit one's complement checksums,
	// in which 0 and 0xffff mean the same.
	Checksums []int
}

// Handle takes a frame at a device and says what becomes of it.
func (s *State) Handle(side Side, device string, frame []byte, choose Chooser) Outcome {
	p, ok := s.parse(side, device, frame)
	if !ok {
		return Outcome{Verdict: Stack, Frame: frame}
	}
	h := handling{s, side, device, p, choose}
	t := &h.p.tuple
	switch {
	case p.later:
		l4, known := s.Fragments[p.datagram]
		if !known {
			return h.unknownFragment()
		}
		t.SourcePort, t.DestinationPort, t.Protocol = l4.SourcePort, l4.DestinationPort, l4.Protocol
	case p.isICMPError():
		return h.icmpError()
	case !isBalanced(t.Protocol):
		return h.leave()
	case p.first:
		s.Fragments[p.datagram] = L4{t.SourcePort, t.DestinationPort, t.Protocol}
	}
	return h.balanced()
}

// handling is one packet's way.
type handling struct {
	*State
	side   Side
	device string
	p      packet
	choose Chooser
}

func (h *handling) leave() Outcome { return Outcome{Verdict: Stack, Frame: h.p.frame} }

func (h *handling) drop(r Reason) Outcome {
	h.Drops[r]++
	return Outcome{Verdict: Drop}
}

// A fragment whose ports are unknown is never guessed at. To a ClusterIP it
// leads nowhere else.
func (h *handling) unknownFragment() Outcome {
	if h.ClusterIPs[h.p.tuple.Destination] {
		return h.drop(FragmentUnknown)
	}
	return h.leave()
}

func (h *handling) balanced() Outcome {
	t := h.p.tuple
	f := h.Flows[t]
	if f != nil && h.isOver(f) {
		h.forget(t, f)
		f = nil
	}
	if f != nil && !h.isWhole(t, f) {
		delete(h.Flows, t)
		f = nil
	}
	if f == nil {
		return h.newFlow()
	}
	h.note(t, f)
	return h.translate(f)
}

// isOver: a flow gives way where its packet begins a new connection on the
// tuple of an ended one, or would go to a Backend that is gone and never
// answered (UDP never waits for an answer).
func (h *handling) isOver(f *Flow) bool {
	gone := h.Generations[f.Backend] != f.Generation
	switch {
	case f.Reply:
		return false
	case h.p.tuple.Protocol == udp:
		return gone
	case h.p.tuple.Protocol == sctp:
		return gone && !f.SeenReply
	}
	begins := h.p.flags&(syn|ack) == syn
	return begins && (f.Closing || f.PeerClose || gone && !f.SeenReply)
}

// isWhole: the table may lose half a flow, which is put back unless another
// flow has its place. (The programs look once a second; whoever takes a half
// away beside them has to let that second pass.)
func (h *handling) isWhole(t Tuple, f *Flow) bool {
	at := f.To.reversed()
	if h.Flows[at] != nil {
		return h.peer(t, f) != nil
	}
	other := *f
	other.To, other.Reply = t.reversed(), !f.Reply
	other.Closing, other.PeerClose = f.PeerClose, f.Closing
	h.Flows[at] = &other
	return true
}

// forget removes a flow, and its other half where that is still its own.
func (h *handling) forget(t Tuple, f *Flow) {
	if peer := h.peer(t, f); peer != nil {
		delete(h.Flows, f.To.reversed())
	}
	delete(h.Flows, t)
}

func (h *handling) peer(t Tuple, f *Flow) *Flow {
	if peer := h.Flows[f.To.reversed()]; peer != nil && peer.To == t.reversed() {
		return peer
	}
	return nil
}

// note is what a packet tells of its flow: that there is an answer, that a
// direction ended (FIN), that all did (RST).
func (h *handling) note(t Tuple, f *Flow) {
	both := []*Flow{f}
	peer := h.peer(t, f)
	if peer != nil {
		both = append(both, peer)
	}
	if f.Reply {
		for _, x := range both {
			x.SeenReply = true
		}
	}
	if t.Protocol != tcp || h.p.flags&(fin|rst) == 0 {
		return
	}
	f.Closing = true
	if peer != nil {
		peer.PeerClose = true
	}
	if h.p.flags&rst != 0 {
		for _, x := range both {
			x.Closing, x.PeerClose = true, true
		}
	}
}

func (h *handling) newFlow() Outcome {
	t := h.p.tuple
	f := h.Frontends[Endpoint{t.Destination, t.DestinationPort, t.Protocol}]
	begins := t.Protocol != tcp || h.p.flags&(syn|ack) == syn
	switch {
	case isNoHost(t.Source): // neither could an answer go there
		return h.leave()
	case h.p.later: // the first would have begun a flow
		if f != nil {
			return h.drop(FragmentUnknown)
		}
		return h.leave()
	case f != nil:
		return h.toFrontend(f)
	case !begins:
		return h.leave()
	case h.ClusterIPs[t.Destination]:
		return h.reject(UnknownPort)
	}
	return h.keepApart()
}

func (h *handling) toFrontend(f *Frontend) Outcome {
	t := h.p.tuple
	within := func(p netip.Prefix) bool { return p.Contains(t.Source) }
	if f.Sources != nil && !slices.ContainsFunc(f.Sources, within) {
		return h.drop(SourceRange)
	}
	if t.Protocol == tcp && h.p.flags&(syn|ack|rst) != syn {
		return h.reject(NoConntrack)
	}
	internal := h.side != FromUplink || slices.ContainsFunc(h.InternalSources, within)
	set := f.External
	if internal {
		set = f.Internal
	}
	if len(set.Backends) == 0 {
		if set.Silent {
			return h.drop(NoLocalBackends)
		}
		return h.reject(NoBackends)
	}
	b := h.backend(f, set)
	to := Tuple{t.Source, b.Address, t.SourcePort, b.Port, t.Protocol}
	if h.mustMasquerade(f, b, internal) {
		if to.Source = h.Node4; t.Source.Is6() {
			to.Source = h.Node6
		}
		if !to.Source.IsValid() {
			return h.drop(NoMasqueradeAddress)
		}
	}
	return h.enter(to, Flow{Service: f.Service, Backend: b.ID, Generation: h.Generations[b.ID]})
}

// backend honours affinity where the client's Backend still gets new flows.
func (h *handling) backend(f *Frontend, set Set) Backend {
	c := Client{h.p.tuple.Source, f.Service}
	if f.AffinitySeconds > 0 {
		if s, ok := h.Affinity[c]; ok && s.Generation == h.Generations[s.Backend.ID] && slices.Contains(set.Backends, s.Backend) {
			return s.Backend
		}
	}
	b := h.choose.Backend(h.p.tuple, set.Backends)
	if f.AffinitySeconds > 0 {
		h.Affinity[c] = Sticky{b, h.Generations[b.ID]}
	}
	return b
}

// mustMasquerade: where the Backend would otherwise answer itself or past this
// node, and where the Service asks for it.
func (h *handling) mustMasquerade(f *Frontend, b Backend, internal bool) bool {
	switch {
	case b.HostNetwork:
		return false
	case b.Address == h.p.tuple.Source:
		return true
	case h.side != FromUplink:
		return false
	}
	return !b.Local || !internal && f.MasqueradeExternal
}

// enter records both halves of a new flow, with a source port that tells it
// from every other flow to that Backend.
func (h *handling) enter(to Tuple, f Flow) Outcome {
	t := h.p.tuple
	free := func(port uint16) bool {
		to.SourcePort = port
		other := h.Flows[to.reversed()]
		return other == nil || other.To == t.reversed()
	}
	var ports []uint16
	if t.SourcePort < 1024 && free(t.SourcePort) { // it means something to NFS
		ports = []uint16{t.SourcePort}
	} else {
		for port := h.PortMin; port <= h.PortMax; port++ {
			if free(port) {
				ports = append(ports, port)
			}
		}
	}
	if len(ports) == 0 {
		return h.drop(PortsExhausted)
	}
	to.SourcePort = h.choose.Port(t, ports)
	forward, reply := f, f
	forward.To, reply.To, reply.Reply = to, t.reversed(), true
	h.Flows[to.reversed()], h.Flows[t] = &reply, &forward
	return h.translate(&forward)
}

// isOurs: ports that flows leave with.
func (h *handling) isOurs(port uint16) bool {
	return port < 1024 || port >= h.PortMin && port <= h.PortMax
}

// keepApart makes a direct connection a flow of its own where one of ours has
// its tuple at the Backend already.
func (h *handling) keepApart() Outcome {
	t := h.p.tuple
	taken := h.Flows[t.reversed()]
	if !h.isOurs(t.SourcePort) || taken == nil || !taken.Reply {
		return h.leave()
	}
	if taken.Closing && taken.PeerClose {
		h.forget(t.reversed(), taken)
		return h.leave()
	}
	return h.enter(t, Flow{Service: taken.Service, Backend: taken.Backend, Generation: taken.Generation})
}
