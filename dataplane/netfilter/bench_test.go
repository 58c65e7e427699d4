// SPDX-License-Identifier: Apache-2.0

package netfilter

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"fairlead.dev/dataplane"
	"fairlead.dev/dataplane/nfnetlink"
)

// fakeFlow is a flow that a test tells the kernel, without packets.
type fakeFlow struct {
	orig, reply tuple
	zone        uint16
	assured     bool
}

const (
	commandNew         = 0 // IPCTNL_MSG_CT_NEW
	statusConfirmed    = 1 << 3
	fakeTimeoutSeconds = 600
)

func createFlow(s *socket, f fakeFlow) error {
	var b []byte
	for kind, t := range map[uint16]tuple{ctaTupleOrig: f.orig, ctaTupleReply: f.reply} {
		b = nested(b, kind, encodeTuple(t))
	}
	b = nfnetlink.AppendAttribute(b, ctaTimeout, binary.BigEndian.AppendUint32(nil, fakeTimeoutSeconds))
	if f.assured {
		b = nfnetlink.AppendAttribute(b, ctaStatus, binary.BigEndian.AppendUint32(nil, statusConfirmed|statusSeenReply|statusAssured))
	}
	if f.orig.protocol == dataplane.TCP {
		state := nfnetlink.AppendAttribute(nil, ctaProtoState, []byte{tcpEstablished})
		b = nested(b, ctaProtoInfo, nested(nil, ctaProtoInfoTCP, state))
	}
	if f.zone != 0 {
		b = nfnetlink.AppendAttribute(b, ctaZone, binary.BigEndian.AppendUint16(nil, f.zone))
	}
	err := s.ask(commandNew, unix.NLM_F_ACK|unix.NLM_F_CREATE|unix.NLM_F_EXCL, familyOf(f.orig.to.Addr()), b, nil)
	if err != nil {
		return fmt.Errorf("create flow %s -> %s: %w", f.orig.from, f.orig.to, err)
	}
	return nil
}

func encodeTuple(t tuple) []byte {
	src, dst := uint16(ctaIPv4Src), uint16(ctaIPv4Dst)
	if t.to.Addr().Is6() {
		src, dst = ctaIPv6Src, ctaIPv6Dst
	}
	ip := nfnetlink.AppendAttribute(nfnetlink.AppendAttribute(nil, src, t.from.Addr().AsSlice()), dst, t.to.Addr().AsSlice())
	proto := nfnetlink.AppendAttribute(nil, ctaProtoNum, []byte{uint8(t.protocol)})
	proto = nfnetlink.AppendAttribute(proto, ctaProtoSrcPort, binary.BigEndian.AppendUint16(nil, t.from.Port()))
	proto = nfnetlink.AppendAttribute(proto, ctaProtoDstPort, binary.BigEndian.AppendUint16(nil, t.to.Port()))
	return nested(nested(nil, ctaTupleIP, ip), ctaTupleProto, proto)
}

// fill makes flows of a busy node: half UDP (DNS), half established TCP.
func fill(b *testing.B, l *lab, flows int) {
	b.Helper()
	for i := range flows {
		from := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 244, byte(i >> 15), byte(i >> 7)}), uint16(20000+i%128))
		f := fakeFlow{assured: true}
		f.orig = tuple{from, addrPortOf(udpFrontend(53)), dataplane.UDP}
		f.reply = tuple{at(backendA), from, dataplane.UDP}
		if i%2 == 1 {
			f.orig.to, f.orig.protocol, f.reply.protocol = addrPortOf(tcpFrontend(80)), dataplane.TCP, dataplane.TCP
		}
		must(b, createFlow(l.ct.deletes, f))
	}
}

// BenchmarkEndStale is the time to end one stale UDP flow in a table of 120,000
// with rules for so many Frontends.
func BenchmarkEndStale(b *testing.B) {
	l := newLab(b)
	fill(b, l, 120_000)
	for _, protocol := range []dataplane.Protocol{dataplane.UDP, dataplane.TCP} {
		for _, way := range []string{"filtered", "whole"} {
			for _, count := range []int{1, 2, 3, 1024} {
				b.Run(fmt.Sprintf("%s/%s/rules=%d", protocol, way, count), func(b *testing.B) {
					l.ct.unfiltered = way == "whole"
					l.endOne(b, protocol, count)
				})
			}
		}
	}
}

// endOne ends one flow again and again, among rules for many Frontends.
func (l *lab) endOne(b *testing.B, protocol dataplane.Protocol, count int) {
	var rules []FlowRule
	for i := range count {
		rules = append(rules, FlowRule{Frontend: dataplane.FrontendKey{Address: frontend, Port: uint16(1000 + i), Protocol: protocol}})
	}
	from := netip.AddrPortFrom(client, 999)
	f := fakeFlow{
		orig:  tuple{from, addrPortOf(udpFrontend(1000)), dataplane.UDP},
		reply: tuple{at(backendB), from, dataplane.UDP},
	}
	want := 0
	if protocol == dataplane.UDP {
		want = 1
	}
	b.ReportAllocs()
	for b.Loop() {
		if want == 1 {
			must(b, createFlow(l.ct.deletes, f))
		}
		if n, err := l.ct.EndStale(rules); n != want || err != nil {
			b.Fatalf("ended %d flows: %v, want %d", n, err, want)
		}
	}
}
