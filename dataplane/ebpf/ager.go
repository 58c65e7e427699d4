// SPDX-License-Identifier: Apache-2.0

package ebpf

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"fairlead.dev/bpf"
	"fairlead.dev/dataplane"
)

// ager removes idle flows, a few buckets at a time: a whole round takes at
// least ageRound, however large the map.
type ager struct {
	conntrack *ebpf.Map
	timeouts  Timeouts
	cursor    ebpf.MapBatchCursor
	keys      []bpf.FairleadTuple
	values    []bpf.FairleadConntrackEntry

	end    *ebpf.Program // fairlead_age
	packet []byte        // what it is run over
	idle   []idleFlow    // the flows in there
	n      int           // and how many of them are to be ended
	log    *slog.Logger
	failed bool // said once

	looked func() // for tests: entries were read, and none was deleted yet
}

// idleFlow is struct idle_flow of bpf/age.h.
type idleFlow struct {
	half            [2]bpf.FairleadTuple
	lastSeenSeconds [2]uint32
	halves          uint32
}

func newAger(conntrack *ebpf.Map, end *ebpf.Program, t Timeouts, log *slog.Logger) *ager {
	packet := make([]byte, idleFlowsAt+idleFlowsMax*unsafe.Sizeof(idleFlow{}))
	return &ager{
		conntrack: conntrack, end: end, timeouts: t, log: log,
		keys: make([]bpf.FairleadTuple, ageBatch), values: make([]bpf.FairleadConntrackEntry, ageBatch),
		packet: packet, idle: sliceOf[idleFlow](packet[idleFlowsAt:], idleFlowsMax), looked: func() {},
	}
}

const (
	ageTick  = 250 * time.Millisecond
	ageBatch = 1024 // entries looked at per tick at most

	idleFlowsAt  = 16 // IDLE_FLOWS_AT
	idleFlowsMax = 32 // IDLE_FLOWS_MAX
)

// Flags of conntrack_entry (bpf/layout.h).
const (
	conntrackReply       = 1 << 0
	conntrackSeenReply   = 1 << 1
	conntrackClosing     = 1 << 2
	conntrackPeerClosing = 1 << 3
	conntrackMasquerade  = 1 << 4
	conntrackInternal    = 1 << 5
)

func (a *ager) run(ctx context.Context) {
	tick := time.NewTicker(ageTick)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			a.step()
		}
	}
}

// step looks at the next entries and deletes the flows that are over. At the end
// of the map it says so.
func (a *ager) step() (more bool) {
	n, err := a.conntrack.BatchLookup(&a.cursor, a.keys, a.values, nil)
	if err != nil { // at the end of the map, or a bucket that does not fit
		a.cursor = ebpf.MapBatchCursor{}
		if !errors.Is(err, ebpf.ErrKeyNotExist) {
			return false
		}
	}
	more = err == nil
	now := monotonicSeconds()
	a.looked()
	for i := range a.keys[:n] {
		if a.timeouts.expired(&a.keys[i], &a.values[i], now) {
			a.note(&a.keys[i], &a.values[i], now)
		}
	}
	a.endIdle()
	return more
}

// note has a flow ended, if its other direction is idle, too.
func (a *ager) note(key *bpf.FairleadTuple, e *bpf.FairleadConntrackEntry, now uint32) {
	f := idleFlow{half: [2]bpf.FairleadTuple{*key}, lastSeenSeconds: [2]uint32{e.LastSeenSeconds}, halves: 1}
	peerKey := conntrackPeer(key, e)
	var peer bpf.FairleadConntrackEntry
	if a.conntrack.Lookup(&peerKey, &peer) == nil && conntrackPeer(&peerKey, &peer) == *key {
		if !a.timeouts.expired(&peerKey, &peer, now) {
			return
		}
		f.half[1], f.lastSeenSeconds[1], f.halves = peerKey, peer.LastSeenSeconds, 2
	}
	a.idle[a.n] = f
	if a.n++; a.n == len(a.idle) {
		a.endIdle()
	}
}

// endIdle has a program delete them: only one sees to it that each is still
// what it was here, and no new flow has its place.
func (a *ager) endIdle() {
	if a.n == 0 {
		return
	}
	data := a.packet[:idleFlowsAt+a.n*int(unsafe.Sizeof(idleFlow{}))]
	a.n = 0
	if _, err := a.end.Run(&ebpf.RunOptions{Data: data}); err != nil && !a.failed {
		a.failed = true
		a.log.Warn("end idle flows: they stay until the map is full", "error", err)
	}
}

// conntrackPeer is the key of the other direction's entry.
func conntrackPeer(k *bpf.FairleadTuple, e *bpf.FairleadConntrackEntry) bpf.FairleadTuple {
	return bpf.FairleadTuple{
		Source: e.Destination, Destination: e.Source,
		SourcePort: e.DestinationPort, DestinationPort: e.SourcePort, Protocol: k.Protocol,
	}
}

// expired: what was seen after now was read is not.
func (t Timeouts) expired(k *bpf.FairleadTuple, e *bpf.FairleadConntrackEntry, now uint32) bool {
	return time.Duration(int32(now-e.LastSeenSeconds))*time.Second > t.of(dataplane.Protocol(k.Protocol), e)
}

// udpQuestionSeconds is UDP_QUESTION_SECONDS of bpf/conntrack.h.
const udpQuestionSeconds = 2

func (t Timeouts) of(p dataplane.Protocol, e *bpf.FairleadConntrackEntry) time.Duration {
	seenReply := e.Flags&conntrackSeenReply != 0
	switch {
	case p == dataplane.UDP && seenReply && e.LastSeenSeconds-e.CreatedSeconds > udpQuestionSeconds:
		return t.UDPStream
	case p == dataplane.UDP:
		return t.UDP
	case p == dataplane.SCTP:
		return t.SCTP
	case !seenReply || e.Flags&conntrackClosing != 0 && e.Flags&conntrackPeerClosing != 0:
		return t.TCPTransient
	}
	return t.TCPEstablished
}

// tell the programs those that they go by, too.
func (t Timeouts) tell(spec *ebpf.CollectionSpec) error {
	for name, of := range map[string]time.Duration{"udp_timeout_seconds": t.UDP, "udp_stream_timeout_seconds": t.UDPStream} {
		if err := spec.Variables[name].Set(uint32(min(of/time.Second, math.MaxInt32))); err != nil {
			return fmt.Errorf("set %s: %w", name, err)
		}
	}
	return nil
}

// monotonicSeconds is the programs' clock: bpf_ktime_get_ns is CLOCK_MONOTONIC.
func monotonicSeconds() uint32 { return uint32(monotonicNanoseconds() / 1e9) }

func monotonicNanoseconds() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		return 0
	}
	return ts.Nano()
}
