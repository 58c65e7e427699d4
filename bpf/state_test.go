// SPDX-License-Identifier: Apache-2.0

package bpf_test

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"fairlead.dev/bpf"
)

// Flags and enums of layout.h.
const (
	frontendSourceRanges       = 1 << 0
	frontendMasqueradeExternal = 1 << 1
	frontendAnyPort            = 1 << 2

	slotLocal       = 1 << 0
	slotHostNetwork = 1 << 1

	emptyReject = 0
	emptyDrop   = 1

	flowReply       = 1 << 0
	flowSeenReply   = 1 << 1
	flowClosing     = 1 << 2
	flowPeerClosing = 1 << 3
	flowMasquerade  = 1 << 4
	flowInternal    = 1 << 5
)

// dropNames are the reasons of layout.h's enum drop_reason, in order.
var dropNames = [...]string{"no_backends", "no_local_backends", "unknown_port", "source_range", "conntrack_full",
	"ports_exhausted", "no_masquerade_address", "fragment", "malformed", "no_conntrack", "no_route", "too_big", "sctp_checksum"}

// frontend is a Service port as a fixture states it.
type frontend struct {
	id       uint32 // of the Service port
	address  netip.Addr
	port     uint16
	proto    uint8
	affinity uint32 // seconds
	flags    uint8
	internal set
	external set
}

type set struct {
	backends []backend // all eligible
	onEmpty  uint8
}

type backend struct {
	address netip.Addr
	port    uint16
	flags   uint8
}

// state fills the rig's maps and reads them.
type state struct {
	*rig
	t        testing.TB
	slots    uint32
	backends map[string]uint32
}

func newState(t testing.TB) *state {
	return &state{rig: newRig(t), t: t, backends: map[string]uint32{}}
}

func (s *state) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

func word(a netip.Addr) (w bpf.FairleadAddress) {
	if !a.IsValid() {
		return w
	}
	b := a.As16()
	for i := range w.Word {
		w.Word[i] = binary.NativeEndian.Uint32(b[4*i:])
	}
	return w
}

func unword(w bpf.FairleadAddress) netip.Addr {
	var b [16]byte
	for i, v := range w.Word {
		binary.NativeEndian.PutUint32(b[4*i:], v)
	}
	return netip.AddrFrom16(b).Unmap()
}

func swap(p uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, p))
}

// clear empties every map and sets the node's facts.
func (r *rig) clear(t testing.TB) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	o := &r.objects
	for _, m := range []*ebpf.Map{o.Frontends, o.Conntrack, o.Affinity, o.SourceRanges, o.InternalSources, o.Fragments} {
		must(clearMap(m))
	}
	cpus := ebpf.MustPossibleCPU()
	for i := range uint32(len(dropNames)) {
		must(o.Drops.Put(i, make([]uint64, cpus)))
	}
	for i := range uint32(64) {
		must(o.Counters.Put(i, make([]bpf.FairleadServiceCounters, cpus)))
		must(o.Slots.Put(i, bpf.FairleadSlot{}))
		must(o.BackendStates.Put(i, bpf.FairleadBackendState{}))
	}
	must(o.Settings.Put(uint32(0), bpf.FairleadNodeSettings{
		NodeIpv4: word(addr("192.0.2.1")), NodeIpv6: word(addr("2001:db8:1::1")),
		MasqueradePortMin: 40000, MasqueradePortMax: 40999,
	}))
	for _, p := range []string{"10.244.0.0/16", "fd00:10:244::/48"} {
		must(o.InternalSources.Put(prefixKey(netip.MustParsePrefix(p)), uint8(1)))
	}
}

func clearMap(m *ebpf.Map) error {
	var keys [][]byte
	key := make([]byte, m.KeySize())
	value := make([]byte, m.ValueSize())
	for it := m.Iterate(); it.Next(&key, &value); {
		keys = append(keys, append([]byte(nil), key...))
	}
	for _, k := range keys {
		if err := m.Delete(k); err != nil {
			return fmt.Errorf("clear %s: %w", m, err)
		}
	}
	return nil
}

func prefixKey(p netip.Prefix) bpf.FairleadPrefixKey {
	bits := uint32(p.Bits())
	if p.Addr().Is4() {
		bits += 96
	}
	return bpf.FairleadPrefixKey{PrefixBits: bits, Address: word(p.Addr())}
}

// masqueradePorts sets the range, both inclusive.
func (s *state) masqueradePorts(first, last uint16) {
	s.t.Helper()
	var v bpf.FairleadNodeSettings
	s.must(s.objects.Settings.Lookup(uint32(0), &v))
	v.MasqueradePortMin, v.MasqueradePortMax = first, last
	s.must(s.objects.Settings.Put(uint32(0), v))
}

func (s *state) add(fs ...frontend) {
	s.t.Helper()
	for _, f := range fs {
		v := bpf.FairleadFrontend{Service: f.id, AffinitySeconds: f.affinity, Flags: f.flags, Kind: 1}
		v.Internal = s.addSet(f.id, 0, f.internal)
		v.External = s.addSet(f.id, 1, f.external)
		s.must(s.objects.Frontends.Put(bpf.FairleadFrontendKey{Address: word(f.address), Port: swap(f.port), Protocol: f.proto}, v))
	}
}

func (s *state) addSet(id uint32, index uint8, b set) bpf.FairleadBackendSet {
	v := bpf.FairleadBackendSet{Base: s.slots, Eligible: uint16(len(b.backends)), Total: uint16(len(b.backends)), Index: index, OnEmpty: b.onEmpty}
	for _, x := range b.backends {
		n := s.backendID(id, x)
		var st bpf.FairleadBackendState
		s.must(s.objects.BackendStates.Lookup(n, &st))
		st.Generation, st.EligibleSets = 1, st.EligibleSets|1<<index
		s.must(s.objects.BackendStates.Put(n, st))
		s.must(s.objects.Slots.Put(s.slots, bpf.FairleadSlot{Address: word(x.address), Port: swap(x.port), Flags: x.flags, Backend: n}))
		s.slots++
	}
	return v
}

// backendID numbers a Service port's Backends from 1 on.
func (s *state) backendID(id uint32, b backend) uint32 {
	k := fmt.Sprint(id, b.address, b.port)
	n, ok := s.backends[k]
	if !ok {
		n = uint32(len(s.backends)) + 1
		s.backends[k] = n
	}
	return n
}

// removeBackend makes a Backend one that no longer exists.
func (s *state) removeBackend(id uint32, b backend) {
	s.t.Helper()
	s.must(s.objects.BackendStates.Put(s.backendID(id, b), bpf.FairleadBackendState{Generation: 2}))
}

// retireBackend takes a Backend out of every set: it only keeps what it has.
func (s *state) retireBackend(id uint32, b backend) {
	s.t.Helper()
	s.must(s.objects.BackendStates.Put(s.backendID(id, b), bpf.FairleadBackendState{Generation: 1}))
}

func (s *state) allowSource(id uint32, prefix string) {
	s.t.Helper()
	k := prefixKey(netip.MustParsePrefix(prefix))
	s.must(s.objects.SourceRanges.Put(bpf.FairleadSourceRangeKey{PrefixBits: 32 + k.PrefixBits, Service: id, Address: k.Address}, uint8(1)))
}

// flow is a conntrack entry in words a test can print.
type flow struct {
	src, dst     netip.Addr
	sport, dport uint16
	proto        uint8
}

func flowOf(p packet) flow { return flow{p.src, p.dst, p.sport, p.dport, p.proto} }

func (f flow) reversed() flow { return flow{f.dst, f.src, f.dport, f.sport, f.proto} }

func (f flow) key() bpf.FairleadTuple {
	return bpf.FairleadTuple{Source: word(f.src), Destination: word(f.dst), SourcePort: swap(f.sport), DestinationPort: swap(f.dport), Protocol: f.proto}
}

func (s *state) conntrack(f flow) (e bpf.FairleadConntrackEntry, ok bool) {
	return e, s.objects.Conntrack.Lookup(f.key(), &e) == nil
}

func (s *state) conntrackCount() (n int) {
	var k bpf.FairleadTuple
	var v bpf.FairleadConntrackEntry
	for it := s.objects.Conntrack.Iterate(); it.Next(&k, &v); {
		n++
	}
	return n
}

// putConntrack enters one direction: what looks like from leaves like to.
func (s *state) putConntrack(from, to flow, change func(*bpf.FairleadConntrackEntry)) {
	s.t.Helper()
	now := monotonic()
	e := bpf.FairleadConntrackEntry{Source: word(to.src), Destination: word(to.dst), SourcePort: swap(to.sport), DestinationPort: swap(to.dport), LastSeenSeconds: now, CreatedSeconds: now}
	if change != nil {
		change(&e)
	}
	s.must(s.objects.Conntrack.Put(from.key(), e))
}

// drops are the counts that are not 0.
func (s *state) drops() map[string]uint64 {
	s.t.Helper()
	out := map[string]uint64{}
	for i, name := range dropNames {
		var v []uint64
		s.must(s.objects.Drops.Lookup(uint32(i), &v))
		for _, n := range v {
			if n > 0 {
				out[name] += n
			}
		}
	}
	return out
}

func (s *state) counters(id uint32) (sum bpf.FairleadServiceCounters) {
	s.t.Helper()
	var v []bpf.FairleadServiceCounters
	s.must(s.objects.Counters.Lookup(id, &v))
	for _, c := range v {
		sum.ForwardPackets += c.ForwardPackets
		sum.ForwardBytes += c.ForwardBytes
		sum.ReversePackets += c.ReversePackets
		sum.ReverseBytes += c.ReverseBytes
		sum.Connections += c.Connections
	}
	return sum
}

// monotonic is CLOCK_MONOTONIC in seconds, the programs' clock.
func monotonic() uint32 {
	var ts unix.Timespec
	unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts)
	return uint32(ts.Sec)
}
