// SPDX-License-Identifier: Apache-2.0

package dataplane

import "net/netip"

// Inspector is a Reader that tells all that decides about one destination, and
// not only what a Dump prints.
type Inspector interface {
	Reader
	// Inspect reads what the kernel holds about a destination, at one instant
	// as far as the technology allows. What it can't read it says in Unread.
	Inspect(at FrontendKey) (*Inspection, error)
	// Flows are those to one destination, sorted by client. Their names and
	// scope may be empty.
	Flows(to FrontendKey) ([]ConntrackRow, error)
}

// Inspection is what decides about new connections to one destination.
type Inspection struct {
	// Dataplane is the value of --dataplane.
	Dataplane string
	// Frontend is what is at the destination, nil where nothing is, with the
	// Service it belongs to. OnEmpty means nothing in sets that have Backends.
	Frontend *Frontend
	Service  ServiceName
	// RefusedPort is why other ports of the destination's address are refused,
	// empty where they are not.
	RefusedPort string
	// Draining: another Dataplane has replaced this one, which decides nothing
	// new.
	Draining bool
	Rules    Rules
	// Unread are parts of the Frontend that this Dataplane does not keep in the
	// kernel.
	Unread []Unread
}

// Unread is something that can't be read from the kernel.
type Unread struct {
	Part UnreadPart
	// Why is a sentence without its end, such as "not readable from iptables: ...".
	Why string
}

// Unreadable tells why a part could not be read, if that is so.
func (i *Inspection) Unreadable(part UnreadPart) (why string, is bool) {
	for _, u := range i.Unread {
		if u.Part == part {
			return u.Why, true
		}
	}
	return "", false
}

// UnreadPart names what is not known of an Inspection.
type UnreadPart string

// The parts.
const (
	// UnreadDraining: Frontend.Draining is empty whatever is true.
	UnreadDraining UnreadPart = "draining"
	// UnreadMasquerade: so is Frontend.MasqueradeExternal.
	UnreadMasquerade UnreadPart = "masquerade"
	// UnreadCgroup: so is Rules.CgroupRoot.
	UnreadCgroup UnreadPart = "cgroup"
	// UnreadUplinks: so is Rules.Uplinks.
	UnreadUplinks UnreadPart = "uplinks"
	// UnreadShares: eligible Backends need not get equal shares.
	UnreadShares UnreadPart = "shares"
)

// Rules are what a Dataplane decides by, beside the Frontend.
type Rules struct {
	Hooks Hooks
	// CgroupRoot is the cgroup below which processes pass Hooks.Socket.
	CgroupRoot string
	// InternalSources are the prefixes whose traffic is internal wherever it
	// enters.
	InternalSources []netip.Prefix
	// DevicesDecide: what a device brings that is no uplink is internal, and
	// keeps its source unless it is its own Backend. Else its source alone says
	// what is internal.
	DevicesDecide bool
	// Uplinks are the names of the devices that lead out; a trailing '*' stands
	// for any suffix.
	Uplinks []string
	// Attached are the names of the devices whose packets are seen. nil: all.
	Attached []string
	// LoopbackServed: Frontends on loopback addresses are for processes of the
	// node.
	LoopbackServed bool
	// EmptyFirst: a set without Backends decides before source ranges are asked.
	EmptyFirst bool
	Masquerade MasqueradeRules
	// NodeClients are whom affinity takes the node's processes for, by family
	// (IPv4, IPv6), where that is not the address they speak from.
	NodeClients [2]string
}

// Hooks are where in the kernel decisions are made.
type Hooks struct {
	// Packet is the technology of the packet path: tc, netfilter or ipvs.
	Packet string
	// Socket is where sockets are decided, empty where they are not.
	Socket string
	// Pod, Uplink and Node are where packets are decided that come by a device
	// that is no uplink, by an uplink, and from processes of the node.
	Pod, Uplink, Node string
}

// MasqueradeRules say with which address masqueraded traffic leaves.
type MasqueradeRules struct {
	// ByDevice: with one of the device it leaves by. Else with IPv4 or IPv6,
	// and where that is invalid it is dropped.
	ByDevice   bool
	IPv4, IPv6 netip.Addr
	// Loopback: sources on loopback addresses are replaced where they leave.
	// LoopbackLost: but of IPv6 they never leave.
	Loopback, LoopbackLost bool
	// NodeAsPrimary: processes of the node are always seen with IPv4 or IPv6. Of
	// those on loopback an ICMP error does not find the way back.
	NodeAsPrimary bool
	// NodeMustLeave: what processes of the node send by the packet path to
	// Backends in the node's own network is dropped.
	NodeMustLeave bool
}

// Address is the fixed masquerade address for a Backend's family.
func (m MasqueradeRules) Address(ipv6 bool) netip.Addr {
	if ipv6 {
		return m.IPv6
	}
	return m.IPv4
}
