// SPDX-License-Identifier: Apache-2.0

package ebpf

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"fairlead.dev/bpf"
	"fairlead.dev/dataplane"
)

const (
	// reserveMost bounds the flows that are reserved, by the ports that there are
	// for each of some Backends.
	reserveMost = 1 << 17
	// reserveEstablished is how long an established connection's ports stay
	// reserved, a little more than it may drain (handover's default); reserveRest
	// how long those of others.
	reserveEstablished = 20 * time.Minute
	reserveRest        = 2 * time.Minute
)

// noNumber is that of no Service and no Backend.
const noNumber = ^uint32(0)

// Reserve keeps new flows from taking the ports of masqueraded flows that the
// kernel's conntrack carries, since answers to those would be taken for theirs.
// Both halves of each are entered so that they leave as they came; they age as
// flows do.
func (d *Dataplane) Reserve(flows []dataplane.ConntrackRow) error {
	n := 0
	for _, f := range flows {
		node, err := netip.ParseAddrPort(f.Masquerade)
		if err != nil || n >= reserveMost || node.Port() < d.options.MasqueradePortMin || node.Port() > d.options.MasqueradePortMax {
			continue // no flow of ours gets that port
		}
		p, err := dataplane.ParseProtocol(f.Protocol)
		if err != nil {
			continue
		}
		for _, half := range []struct {
			from, to netip.AddrPort
			flags    uint8
		}{{node, f.Backend, 0}, {f.Backend, node, conntrackReply}} {
			k := bpf.FairleadTuple{
				Source: encodeAddress(half.from.Addr()), Destination: encodeAddress(half.to.Addr()),
				SourcePort: swap16(half.from.Port()), DestinationPort: swap16(half.to.Port()), Protocol: uint8(p),
			}
			now := monotonicSeconds()
			e := bpf.FairleadConntrackEntry{
				Source: k.Source, Destination: k.Destination, SourcePort: k.SourcePort, DestinationPort: k.DestinationPort,
				Service: noNumber, Backend: noNumber, Flags: half.flags | conntrackSeenReply, LastSeenSeconds: now, CreatedSeconds: now,
			}
			if err := d.maps["conntrack"].Update(&k, &e, ebpf.UpdateNoExist); err != nil && !errors.Is(err, ebpf.ErrKeyExist) {
				return fmt.Errorf("reserve %s to %s: %w", node, f.Backend, err)
			}
		}
		n++
	}
	return nil
}

// reserve enters masqueraded flows into the kernel's conntrack, untranslated: a
// successor that masquerades there must not take their ports to the same
// Backend, since answers would be taken for those of the older flow. Entries end
// by their time; no packet meets them. It returns how many there are.
func (r *Draining) reserve() (n int, err error) {
	h, err := netlink.NewHandle(unix.NETLINK_NETFILTER)
	if err != nil {
		return 0, fmt.Errorf("open conntrack: %w", err)
	}
	defer h.Close()
	var failed error
	err = eachEntry(r.d.maps["conntrack"], func(k bpf.FairleadTuple, e *bpf.FairleadConntrackEntry) {
		if e.Flags&conntrackReply == 0 || e.Flags&conntrackMasquerade == 0 || n >= reserveMost || failed != nil {
			return
		}
		family := unix.AF_INET6
		backend, node := addrPort(k.Source, k.SourcePort), addrPort(k.Destination, k.DestinationPort)
		if backend.Addr().Is4() {
			family = unix.AF_INET
		}
		last := reserveRest
		if k.Protocol == uint8(dataplane.TCP) && e.Flags&(conntrackClosing|conntrackPeerClosing) == 0 {
			last = reserveEstablished
		}
		answer := netlink.IPTuple{
			SrcIP: net.IP(backend.Addr().AsSlice()), SrcPort: backend.Port(), DstIP: net.IP(node.Addr().AsSlice()), DstPort: node.Port(), Protocol: k.Protocol,
		}
		question := netlink.IPTuple{SrcIP: answer.DstIP, SrcPort: answer.DstPort, DstIP: answer.SrcIP, DstPort: answer.SrcPort, Protocol: k.Protocol}
		flow := &netlink.ConntrackFlow{FamilyType: uint8(family), Forward: question, Reverse: answer, TimeOut: uint32(last / time.Second)}
		if err := h.ConntrackCreate(netlink.ConntrackTable, netlink.InetFamily(family), flow); err != nil {
			failed = fmt.Errorf("reserve %s to %s: %w", node, backend, err)
			return
		}
		n++
	})
	return n, errors.Join(err, failed)
}
