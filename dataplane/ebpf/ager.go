// SPDX-License-Identifier: Apache-2.0

package ebpf

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

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
	looked    func() // for tests: entries were read, and none was deleted yet
}

func newAger(conntrack *ebpf.Map, t Timeouts) *ager {
	return &ager{
		conntrack: conntrack, timeouts: t,
		keys: make([]bpf.FairleadTuple, ageBatch), values: make([]bpf.FairleadConntrackEntry, ageBatch), looked: func() {},
	}
}

const (
	ageTick  = 250 * time.Millisecond
	ageBatch = 1024 // entries looked at per tick at most
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

// step looks at the next entries and deletes the flows that are over.
func (a *ager) step() {
	n, err := a.conntrack.BatchLookup(&a.cursor, a.keys, a.values, nil)
	if err != nil { // at the end of the map, or a bucket that does not fit
		a.cursor = ebpf.MapBatchCursor{}
		if !errors.Is(err, ebpf.ErrKeyNotExist) {
			return
		}
	}
	now := monotonicSeconds()
	a.looked()
	for i := range a.keys[:n] {
		if a.timeouts.expired(&a.keys[i], &a.values[i], now) {
			a.forget(&a.keys[i], &a.values[i])
		}
	}
}

// forget deletes both halves of a flow. Each is read once more right before: a
// new flow may have its place since it was looked at.
func (a *ager) forget(key *bpf.FairleadTuple, e *bpf.FairleadConntrackEntry) {
	peerKey := conntrackPeer(key, e)
	var peer bpf.FairleadConntrackEntry
	whole := a.conntrack.Lookup(&peerKey, &peer) == nil && conntrackPeer(&peerKey, &peer) == *key
	if whole && !a.timeouts.expired(&peerKey, &peer, monotonicSeconds()) {
		return
	}
	a.deleteExpired(key)
	if whole {
		a.deleteExpired(&peerKey)
	}
}

func (a *ager) deleteExpired(key *bpf.FairleadTuple) {
	var e bpf.FairleadConntrackEntry
	if a.conntrack.Lookup(key, &e) == nil && a.timeouts.expired(key, &e, monotonicSeconds()) {
		a.conntrack.Delete(key)
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
