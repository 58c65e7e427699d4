// SPDX-License-Identifier: Apache-2.0

package dataplane

import "net/netip"

// Reader reads what a Dataplane's kernel state holds, without its agent. Rows
// are sorted by Service first.
type Reader interface {
	Table() (Dump, error)
	Conntrack() ([]ConntrackRow, error)
	Affinity() ([]AffinityRow, error)
	Counters() ([]CounterRow, []DropRow, error)
	Close() error
}

// ConntrackRow is one flow of the packet path.
type ConntrackRow struct {
	Service  string         `json:"service"`
	PortName string         `json:"portName"`
	Protocol string         `json:"protocol"`
	Client   netip.AddrPort `json:"client"`
	Frontend netip.AddrPort `json:"frontend"`
	Backend  netip.AddrPort `json:"backend"`
	// Masquerade is the address that the Backend sees; empty: the client's.
	Masquerade string `json:"masquerade"`
	Scope      string `json:"scope"`
	// State is new (no reply seen), established, closing, or stale (its
	// Backend is gone).
	State       string `json:"state"`
	IdleSeconds uint32 `json:"idleSeconds"`
	AgeSeconds  uint32 `json:"ageSeconds"`
}

// AffinityRow is a client that is kept on one Backend.
type AffinityRow struct {
	Service  string `json:"service"`
	PortName string `json:"portName"`
	// Client is an address or, where sockets of a network namespace with
	// several addresses are meant, "netns:" and its cookie.
	Client      string         `json:"client"`
	Backend     netip.AddrPort `json:"backend"`
	IdleSeconds uint32         `json:"idleSeconds"`
}

// CounterRow counts what went through one Service port, since its Service came.
type CounterRow struct {
	Service  string `json:"service"`
	PortName string `json:"portName"`
	// Connections are new flows, of sockets and of packets.
	Connections uint64 `json:"connections"`
	// Packets and bytes are those of the packet path alone: what is decided at
	// the socket costs nothing per packet, so nothing counts it.
	ForwardPackets uint64 `json:"forwardPackets"`
	ForwardBytes   uint64 `json:"forwardBytes"`
	ReversePackets uint64 `json:"reversePackets"`
	ReverseBytes   uint64 `json:"reverseBytes"`
}

// DropRow counts packets and connects that were not let through.
type DropRow struct {
	Reason string `json:"reason"`
	Count  uint64 `json:"count"`
}
