// SPDX-License-Identifier: Apache-2.0

// Package dataplane holds the Table, what the kernel of this node should hold,
// and the interface of the technologies that make the kernel equal it. It
// knows no Kubernetes objects and no kernel: compile fills a Table, a package
// below this one programs it.
package dataplane

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// ServiceName is the namespace and name of a Kubernetes Service.
type ServiceName struct {
	Namespace string
	Name      string
}

// String gives "namespace/name", as the JSON contract of dump has it.
func (n ServiceName) String() string { return n.Namespace + "/" + n.Name }

// ParseServiceName is the inverse of String.
func ParseServiceName(s string) (ServiceName, error) {
	ns, name, ok := strings.Cut(s, "/")
	if !ok || ns == "" || name == "" {
		return ServiceName{}, fmt.Errorf("service name %q: want namespace/name", s)
	}
	return ServiceName{Namespace: ns, Name: name}, nil
}

// Compare orders by namespace, then name.
func (n ServiceName) Compare(o ServiceName) int {
	return cmp.Or(strings.Compare(n.Namespace, o.Namespace), strings.Compare(n.Name, o.Name))
}

// Protocol is an IANA protocol number (the IPv4 protocol field).
type Protocol uint8

// The protocols a Service port can have.
const (
	TCP  Protocol = 6
	UDP  Protocol = 17
	SCTP Protocol = 132
)

func (p Protocol) String() string {
	switch p {
	case TCP:
		return "TCP"
	case UDP:
		return "UDP"
	case SCTP:
		return "SCTP"
	}
	return fmt.Sprintf("Protocol(%d)", uint8(p))
}

// ParseProtocol takes the Kubernetes spelling: TCP, UDP or SCTP.
func ParseProtocol(s string) (Protocol, error) {
	switch s {
	case "TCP":
		return TCP, nil
	case "UDP":
		return UDP, nil
	case "SCTP":
		return SCTP, nil
	}
	return 0, fmt.Errorf("protocol %q: want TCP, UDP or SCTP", s)
}

// Kind says which field of a Service (or Pod) a Frontend comes from. The
// values are stored in kernel maps and must not be renumbered.
type Kind uint8

// The kinds of Frontend.
const (
	ClusterIP Kind = iota + 1
	NodePort
	ExternalIP
	LoadBalancer
	HostPort
)

var kindNames = [...]string{ClusterIP: "ClusterIP", NodePort: "NodePort", ExternalIP: "ExternalIP", LoadBalancer: "LoadBalancer", HostPort: "HostPort"}

func (k Kind) String() string {
	if k >= ClusterIP && int(k) < len(kindNames) {
		return kindNames[k]
	}
	return fmt.Sprintf("Kind(%d)", uint8(k))
}

// Scope separates internal traffic (from this node and the cluster's pods)
// from external traffic.
type Scope uint8

// The scopes.
const (
	Internal Scope = iota
	External
)

func (s Scope) String() string {
	if s == Internal {
		return "internal"
	}
	return "external"
}

// BackendState says whether a Backend is to get new connections.
type BackendState uint8

// The states of a Backend. The values are stored in kernel maps.
const (
	// Active Backends get new connections.
	Active BackendState = iota
	// Terminating Backends still serve: they keep their established flows, and
	// get new connections only where their BackendSet has no Active one
	// (KEP-1669).
	Terminating
)

func (s BackendState) String() string {
	if s == Active {
		return "active"
	}
	return "terminating"
}

// Backend is an endpoint of a Service port. Within one BackendSet the pair
// Address, Port is unique.
type Backend struct {
	// Address is never IPv4-mapped and has no zone.
	Address netip.Addr
	// Port is in host byte order, 1 to 65535.
	Port  uint16
	State BackendState
	// Local: the endpoint runs on this node.
	Local bool
	// HostNetwork: Address is one of this node's own addresses, so traffic to
	// it is delivered locally and never forwarded.
	HostNetwork bool
	// Zone is the endpoint's topology zone, empty where unknown.
	Zone string
}

// AddrPort is the address and port of the Backend.
func (b Backend) AddrPort() netip.AddrPort { return netip.AddrPortFrom(b.Address, b.Port) }

// CompareBackends orders Active before Terminating, then by address and port.
// BackendSets are kept in this order.
func CompareBackends(a, b Backend) int {
	return cmp.Or(cmp.Compare(a.State, b.State), a.Address.Compare(b.Address), cmp.Compare(a.Port, b.Port))
}

// EmptyAction says what happens to traffic for a BackendSet with no Backend.
type EmptyAction uint8

// The actions. The values are stored in kernel maps.
const (
	// Reject answers at once: ECONNREFUSED, TCP RST or ICMP port unreachable.
	Reject EmptyAction = iota
	// Drop is silent, for externalTrafficPolicy Local with no Backend here, so
	// that a load balancer's probe decides and not a client's refused connection.
	Drop
)

// BackendSet is what one scope of a Frontend can reach.
type BackendSet struct {
	// Backends in the order of CompareBackends. New connections go to the
	// Active ones or, where there is none, to the Terminating ones.
	Backends []Backend
	OnEmpty  EmptyAction
}

// Eligible returns the Backends that get new connections.
func (s BackendSet) Eligible() []Backend {
	n := 0
	for n < len(s.Backends) && s.Backends[n].State == Active {
		n++
	}
	if n == 0 {
		return s.Backends
	}
	return s.Backends[:n]
}

// Equal reports whether both sets mean the same to a kernel (Zone is ignored:
// no Dataplane stores it).
func (s BackendSet) Equal(o BackendSet) bool {
	return s.OnEmpty == o.OnEmpty && slices.EqualFunc(s.Backends, o.Backends, sameBackend)
}

func sameBackend(a, b Backend) bool {
	a.Zone, b.Zone = "", ""
	return a == b
}

// FrontendKey is where traffic arrives. It is unique in a Table.
type FrontendKey struct {
	// Address is never IPv4-mapped and has no zone.
	Address netip.Addr
	// Port is in host byte order, 1 to 65535.
	Port     uint16
	Protocol Protocol
}

func (k FrontendKey) String() string {
	return netip.AddrPortFrom(k.Address, k.Port).String() + "/" + k.Protocol.String()
}

// Compare orders by address, port, protocol.
func (k FrontendKey) Compare(o FrontendKey) int {
	return cmp.Or(k.Address.Compare(o.Address), cmp.Compare(k.Port, o.Port), cmp.Compare(k.Protocol, o.Protocol))
}

// Frontend is one address, port and protocol at which traffic for a Service
// arrives, with a BackendSet for each scope.
type Frontend struct {
	FrontendKey
	Kind Kind
	// PortName is the name of the Service port, empty where it has none.
	PortName string
	// Internal and External may share one Backends slice. For ClusterIP they
	// are equal, and dump prints the internal row only.
	Internal BackendSet
	External BackendSet
	// Draining Backends exist and serve but are not in either set (a topology
	// hint or a policy moved new connections elsewhere): flows they have stay.
	// A flow to a Backend in no set and not here is stale.
	Draining []Backend
	// AffinitySeconds is the sessionAffinity ClientIP timeout, 0 for none,
	// at most 86400. Clients are one per (client address, Service, PortName).
	AffinitySeconds uint32
	// SourceRanges limits the clients (loadBalancerSourceRanges), masked and
	// sorted. Empty allows every client; what is not allowed is dropped.
	SourceRanges []netip.Prefix
	// MasqueradeExternal: external clients are seen by the Backend with an
	// address of this node (unless the Backend is HostNetwork).
	MasqueradeExternal bool
}

// Set returns the BackendSet of a scope.
func (f *Frontend) Set(s Scope) BackendSet {
	if s == Internal {
		return f.Internal
	}
	return f.External
}

// Equal reports whether two Frontends mean the same to a kernel.
func (f *Frontend) Equal(o *Frontend) bool {
	return f.FrontendKey == o.FrontendKey && f.Kind == o.Kind && f.PortName == o.PortName &&
		f.AffinitySeconds == o.AffinitySeconds && f.MasqueradeExternal == o.MasqueradeExternal &&
		slices.Equal(f.SourceRanges, o.SourceRanges) &&
		f.Internal.Equal(o.Internal) && f.External.Equal(o.External) &&
		slices.EqualFunc(f.Draining, o.Draining, sameBackend)
}

// Service is all that a Table holds of one Service. It is not changed after
// compile returned it, so Dataplanes may keep it.
type Service struct {
	Name ServiceName
	// Frontends are sorted by Kind, then FrontendKey.
	Frontends []Frontend
}

// Equal reports whether two Services mean the same to a kernel.
func (s *Service) Equal(o *Service) bool {
	return s.Name == o.Name && slices.EqualFunc(s.Frontends, o.Frontends, func(a, b Frontend) bool { return a.Equal(&b) })
}

// Table is what the kernel should hold: every Service with Frontends here.
type Table struct {
	Services map[ServiceName]*Service
	Node     Node
}

// Node is what Dataplanes have to know of the node itself.
type Node struct {
	// Addresses are all addresses of this node (its network namespace),
	// sorted. Loopback ones are not included.
	Addresses []netip.Addr
	// PrimaryIPv4 and PrimaryIPv6 are used as source where traffic is
	// masqueraded. Invalid where the node lacks the family.
	PrimaryIPv4, PrimaryIPv6 netip.Addr
	// InternalSources are the prefixes whose traffic is internal wherever it
	// enters (the cluster CIDRs or, without them, the node's pod CIDRs), sorted.
	InternalSources []netip.Prefix
	// ServiceCIDRs are the ranges of ClusterIPs where known, sorted.
	ServiceCIDRs []netip.Prefix
}

// Equal reports whether both are the same.
func (n Node) Equal(o Node) bool {
	return slices.Equal(n.Addresses, o.Addresses) && n.PrimaryIPv4 == o.PrimaryIPv4 && n.PrimaryIPv6 == o.PrimaryIPv6 &&
		slices.Equal(n.InternalSources, o.InternalSources) && slices.Equal(n.ServiceCIDRs, o.ServiceCIDRs)
}
