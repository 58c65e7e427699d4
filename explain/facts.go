// SPDX-License-Identifier: Apache-2.0

package explain

import (
	"net/netip"
	"strings"

	"fairlead.dev/dataplane"
)

// Origin is the side from which a client's packets come.
type Origin string

// The origins.
const (
	// FromPod: by a device that does not lead out of the node.
	FromPod Origin = "pod"
	// FromNode: from a process in the node's own network namespace.
	FromNode Origin = "node"
	// FromOutside: by an uplink; a client beyond the node or another node's pod.
	FromOutside Origin = "outside"
)

// Facts are what a question is judged by.
type Facts struct {
	Inspection *dataplane.Inspection
	Origin     Origin
	// OriginHow is how Origin is known, a clause.
	OriginHow string
	// Device is the one by which the client's packets come in or, of a process
	// of the node, go out; empty where that is not known.
	Device string
	// PacketPath: the client's sockets are not decided by hooks, whatever could
	// be.
	PacketPath bool
	// Ways are the routes to the destination and to every Backend, as the
	// node's own routing table has them.
	Ways map[netip.Addr]Way
	// Flows are those to the destination, and Affinity the entries of its
	// Service port, both of this client or of all.
	Flows    []dataplane.ConntrackRow
	Affinity []dataplane.AffinityRow
	// Unknown are facts that could not be read, a clause each.
	Unknown []string
}

// Way is how the node reaches an address.
type Way struct {
	// Local: the address is the node's own.
	Local  bool
	Device string
	// Via is the next hop, invalid where the address is on the link.
	Via netip.Addr
	// Source is with which address the node's own processes go that way, Leaves
	// with which one traffic is masqueraded that leaves that way.
	Source, Leaves netip.Addr
	// Unreachable is why there is no way, empty where there is one.
	Unreachable string
}

func (w Way) String() string {
	switch {
	case w.Unreachable != "":
		return w.Unreachable
	case w.Local:
		return "the address is the node's own"
	case w.Via.IsValid():
		return "out by " + w.Device + " via " + w.Via.String()
	}
	return "out by " + w.Device
}

// IsUplink reports whether a device leads out.
func IsUplink(r *dataplane.Rules, device string) bool {
	for _, u := range r.Uplinks {
		if prefix, ok := strings.CutSuffix(u, "*"); ok && strings.HasPrefix(device, prefix) || u == device {
			return true
		}
	}
	return false
}
