// SPDX-License-Identifier: Apache-2.0

package explain

import (
	"net/netip"

	"fairlead.dev/dataplane"
)

// Answer is what becomes of a connection. Its JSON form is a contract, the same
// for every Dataplane (docs/operations.md): fields are added, never changed or
// removed. Lists are never null.
type Answer struct {
	Dataplane string `json:"dataplane"`
	// Client is the address that was asked about or, without one, that a process
	// of this node would have; ClientPort is 0 for any new source port.
	Client     netip.Addr `json:"client"`
	ClientPort uint16     `json:"clientPort"`
	Address    netip.Addr `json:"address"`
	Port       uint16     `json:"port"`
	Protocol   string     `json:"protocol"`
	// From is the side the client's packets come from: pod, node or outside.
	From Origin `json:"from"`

	Outcome Outcome `json:"outcome"`
	// Reason is that of fairlead_drops_total for what is refused or dropped.
	Reason string `json:"reason"`

	// The Frontend; empty for notService.
	Service  string `json:"service"`
	PortName string `json:"portName"`
	Kind     string `json:"kind"`
	Scope    string `json:"scope"`

	// Path is where it is decided: socket, tc, netfilter or ipvs, and Hook the
	// place there.
	Path string `json:"path"`
	Hook string `json:"hook"`

	Policy   Policy    `json:"policy"`
	Backends []Backend `json:"backends"`
	// Affinity is the entry of this client, nil where there is none.
	Affinity *Affinity                `json:"affinity"`
	Flows    []dataplane.ConntrackRow `json:"flows"`

	// Because are the decisions in their order. Texts may change.
	Because []Step `json:"because"`
	// Unknown is what could not be read. Texts may change.
	Unknown []string `json:"unknown"`
}

// Outcome is what happens in the end.
type Outcome string

// The outcomes.
const (
	// Forwarded to one of the Backends whose share is not 0.
	Forwarded Outcome = "forwarded"
	// Refused: ECONNREFUSED, TCP RST or ICMP port unreachable, at once.
	Refused Outcome = "refused"
	// Dropped in silence.
	Dropped Outcome = "dropped"
	// NotService: the packet goes on to the routing table as it is.
	NotService Outcome = "notService"
)

// Policy is what a Table shows of the Service's fields.
type Policy struct {
	// Decides names the field that chose the set of Backends:
	// internalTrafficPolicy, externalTrafficPolicy or hostPort.
	Decides string `json:"decides"`
	// Cluster or Local; empty where the Table does not show it.
	InternalTrafficPolicy  string         `json:"internalTrafficPolicy"`
	ExternalTrafficPolicy  string         `json:"externalTrafficPolicy"`
	SessionAffinitySeconds uint32         `json:"sessionAffinitySeconds"`
	SourceRanges           []netip.Prefix `json:"sourceRanges"`
	// MasqueradeExternal: external clients are seen with a node's address.
	MasqueradeExternal bool `json:"masqueradeExternal"`
}

// Backend is one of the scope's set, or a draining one.
type Backend struct {
	Address netip.Addr `json:"address"`
	Port    uint16     `json:"port"`
	// State is active, terminating, or draining: it serves, and only the flows
	// that it has.
	State       string `json:"state"`
	Local       bool   `json:"local"`
	HostNetwork bool   `json:"hostNetwork"`
	// Share is the part of new connections that it gets of this client, 0 to 1.
	Share float64 `json:"share"`
	// Source is what it sees; null where the share is 0.
	Source *Source `json:"source"`
	// Dropped is the reason why what is sent there is dropped, usually empty.
	Dropped string `json:"dropped"`
}

// AddrPort is its address and port.
func (b Backend) AddrPort() netip.AddrPort { return netip.AddrPortFrom(b.Address, b.Port) }

// Source is the client's address as a Backend sees it.
type Source struct {
	// Address is null where only the kernel knows when it happens.
	Address    *netip.Addr `json:"address"`
	Masquerade bool        `json:"masquerade"`
	// Why is a clause, which may change.
	Why string `json:"why"`
}

// Affinity is what is remembered of the client.
type Affinity struct {
	Client           string         `json:"client"`
	Backend          netip.AddrPort `json:"backend"`
	RemainingSeconds uint32         `json:"remainingSeconds"`
	// Honoured: a new connection goes there.
	Honoured bool `json:"honoured"`
	// Why is a clause, empty where it is honoured.
	Why string `json:"why"`
}

// Step is one decision.
type Step struct {
	// Topic is frontend, path, scope, sourceRanges, policy, topology, affinity,
	// flow, masquerade or outcome.
	Topic string `json:"topic"`
	Text  string `json:"text"`
}
