// SPDX-License-Identifier: Apache-2.0

package explain

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"fairlead.dev/dataplane"
)

// The reasons of fairlead_drops_total that a question can end with.
const (
	reasonNoBackends   = "no_backends"
	reasonNoLocal      = "no_local_backends"
	reasonUnknownPort  = "unknown_port"
	reasonSourceRange  = "source_range"
	reasonNoMasquerade = "no_masquerade_address"
	reasonNoRoute      = "no_route"
)

// Judge answers a question. Where q has no client, f says what a process of the
// node would have as its address: q.Client is to be set by then.
func Judge(q Question, f Facts) Answer {
	j := judge{q: q, f: &f, in: f.Inspection, rules: &f.Inspection.Rules}
	j.a = Answer{
		Dataplane: f.Inspection.Dataplane, Client: q.Client, ClientPort: q.ClientPort,
		Address: q.To.Address, Port: q.To.Port, Protocol: q.To.Protocol.String(), From: f.Origin,
		Outcome: NotService, Backends: []Backend{}, Flows: []dataplane.ConntrackRow{}, Because: []Step{},
		Unknown: append([]string{}, f.Unknown...), Policy: Policy{SourceRanges: []netip.Prefix{}},
	}
	j.a.Flows = append(j.a.Flows, f.Flows...)
	j.decide()
	return j.a
}

// judge is one judgement.
type judge struct {
	q     Question
	f     *Facts
	in    *dataplane.Inspection
	rules *dataplane.Rules
	a     Answer
	scope dataplane.Scope
	flow  *dataplane.ConntrackRow
}

func (j *judge) because(topic, format string, args ...any) {
	j.a.Because = append(j.a.Because, Step{topic, fmt.Sprintf(format, args...)})
}

func (j *judge) end(o Outcome, reason, format string, args ...any) {
	j.a.Outcome, j.a.Reason = o, reason
	j.because("outcome", format, args...)
}

func (j *judge) passes(format string, args ...any) {
	way, known := j.f.Ways[j.q.To.Address]
	text := fmt.Sprintf(format, args...) + ": the packet goes on to the routing table"
	if known {
		text += ", which says: " + way.String()
	}
	j.end(NotService, "", "%s", text)
}

// decide follows a packet: where it is seen, what it meets, and so on.
func (j *judge) decide() {
	if j.in.Draining {
		j.passes("another dataplane has replaced %s, which decides nothing new", j.in.Dataplane)
		return
	}
	j.path()
	if why := j.unseen(); why != "" {
		j.passes("%s", why)
		return
	}
	f := j.in.Frontend
	if f == nil {
		if j.in.RefusedPort != "" {
			j.because("frontend", "none: no Service has port %d/%s here", j.q.To.Port, j.q.To.Protocol)
			j.end(Refused, reasonUnknownPort, "%s, and refuses ports that no Service has", j.in.RefusedPort)
			return
		}
		j.passes("not a Service")
		return
	}
	j.frontend(f)
	j.chooseScope()
	j.policy(f)
	if j.known() {
		return
	}
	set := f.Set(j.scope)
	if empty := len(set.Eligible()) == 0; empty && j.rules.EmptyFirst || j.allowed(f) {
		j.backends(f)
	}
}

// path says where the connection is decided.
func (j *judge) path() {
	h, f := &j.rules.Hooks, j.in.Frontend
	ranged := f != nil && len(f.SourceRanges) > 0
	j.a.Path = h.Packet
	switch {
	case h.Socket != "" && j.f.Origin != FromOutside && !j.f.PacketPath && !ranged:
		j.a.Path, j.a.Hook = "socket", h.Socket
		j.unread(dataplane.UnreadCgroup)
		j.because("path", "socket: %s%s; other processes take the packet path (ask with --path packet)", h.Socket, below(j.rules.CgroupRoot))
		return
	case j.f.Origin == FromNode:
		j.a.Hook = h.Node
	case j.f.Origin == FromPod:
		j.a.Hook = h.Pod
	default:
		j.a.Hook = h.Uplink
	}
	why := ""
	if h.Socket != "" && ranged && j.f.Origin != FromOutside {
		why = "; socket hooks do not know the source, so Frontends with source ranges are left to it"
	}
	j.because("path", "packet: %s%s", j.a.Hook, why)
}

func below(cgroup string) string {
	if cgroup == "" {
		return ""
	}
	return " of processes below " + cgroup
}

// unseen is why a packet never comes to where Services are decided, empty where
// it does.
func (j *judge) unseen() string {
	loopback := j.q.To.Address.IsLoopback()
	onPath := j.a.Path != "socket"
	switch {
	case loopback && j.f.Origin != FromNode:
		return "a loopback address is each network namespace's own"
	case loopback && !j.rules.LoopbackServed:
		return "Services on loopback addresses are not served here"
	case j.rules.Attached == nil || !onPath:
		return ""
	case loopback || j.q.Client.IsLoopback():
		return "the packet path does not see loopback"
	case j.f.Origin == FromNode && j.f.Ways[j.q.To.Address].Local:
		return "the packet path does not see what the node sends to itself"
	case j.f.Device != "" && !slices.Contains(j.rules.Attached, j.f.Device):
		return fmt.Sprintf("the packet path does not see device %s (no program is attached to it)", j.f.Device)
	}
	return ""
}

func (j *judge) frontend(f *dataplane.Frontend) {
	j.a.Service, j.a.PortName, j.a.Kind = j.in.Service.String(), f.PortName, f.Kind.String()
	j.because("frontend", "%s of Service %s%s", f.Kind, j.in.Service, ofPort(f.PortName))
}

func ofPort(name string) string {
	if name == "" {
		return ""
	}
	return ", port " + name
}

// chooseScope says whether the traffic is internal, and why.
func (j *judge) chooseScope() {
	j.scope = dataplane.Internal
	if j.rules.DevicesDecide && j.f.Origin != FromNode {
		j.unread(dataplane.UnreadUplinks)
	}
	c := j.q.Client
	within := slices.IndexFunc(j.rules.InternalSources, func(p netip.Prefix) bool { return p.Contains(c) })
	switch {
	case j.f.Origin == FromNode:
		j.because("scope", "internal: %s", j.f.OriginHow)
	case j.rules.DevicesDecide && j.f.Origin == FromPod:
		j.because("scope", "internal: %s", j.f.OriginHow)
	case within >= 0:
		j.because("scope", "internal: %s is in %s, a range of pods", c, j.rules.InternalSources[within])
	case j.rules.DevicesDecide:
		j.scope = dataplane.External
		j.because("scope", "external: %s, and is in no range of pods (%s)", j.f.OriginHow, j.pods())
	default:
		j.scope = dataplane.External
		j.because("scope", "external: %s is in no range of pods (%s)", c, j.pods())
	}
	j.a.Scope = j.scope.String()
}

// pods are the ranges of pods of the client's family.
func (j *judge) pods() string {
	ranges := slices.DeleteFunc(slices.Clone(j.rules.InternalSources), func(p netip.Prefix) bool { return p.Addr().Is4() != j.q.Client.Is4() })
	if len(ranges) == 0 {
		return "none is known"
	}
	return prefixes(ranges)
}

func prefixes(ps []netip.Prefix) string {
	words := make([]string, len(ps))
	for i, p := range ps {
		words[i] = p.String()
	}
	return strings.Join(words, ", ")
}

// allowed checks the source ranges.
func (j *judge) allowed(f *dataplane.Frontend) bool {
	if len(f.SourceRanges) == 0 {
		return true
	}
	for _, p := range f.SourceRanges {
		if p.Contains(j.q.Client) {
			j.because("sourceRanges", "%s is in %s of loadBalancerSourceRanges", j.q.Client, p)
			return true
		}
	}
	j.because("sourceRanges", "%s is in none of loadBalancerSourceRanges (%s)", j.q.Client, prefixes(f.SourceRanges))
	j.end(Dropped, reasonSourceRange, "in silence, as loadBalancerSourceRanges do not allow the client")
	return false
}

// known finds the flow that the question's source port has already: then nothing
// is chosen any more.
func (j *judge) known() bool {
	if j.q.ClientPort == 0 || j.a.Path == "socket" {
		return false
	}
	for i := range j.a.Flows {
		r := &j.a.Flows[i]
		if r.Client != netip.AddrPortFrom(j.q.Client, j.q.ClientPort) {
			continue
		}
		if r.State != "new" && r.State != "established" {
			j.because("flow", "its flow to %s is %s: a new connection is chosen for anew", r.Backend, r.State)
			return false
		}
		j.flow = r
	}
	if j.flow == nil {
		return false
	}
	j.because("flow", "conntrack has a flow from this source port to %s: it decides, and not the policies", j.flow.Backend)
	seen := &Source{Why: "the flow keeps it"}
	address := j.q.Client
	if masquerade, err := netip.ParseAddrPort(j.flow.Masquerade); err == nil {
		address = masquerade.Addr()
	}
	seen.Address, seen.Masquerade = &address, address != j.q.Client
	set := j.in.Frontend.Set(j.scope)
	j.list(&set, func(b *Backend) {
		if b.AddrPort() == j.flow.Backend {
			b.Share, b.Source = 1, seen
		}
	})
	if !slices.ContainsFunc(j.a.Backends, func(b Backend) bool { return b.Share > 0 }) {
		j.a.Backends = append(j.a.Backends, Backend{
			Address: j.flow.Backend.Addr(), Port: j.flow.Backend.Port(), State: dataplane.Active.String(), Share: 1, Source: seen,
		})
		j.because("flow", "%s is in the Frontend's set no more", j.flow.Backend)
	}
	j.end(Forwarded, "", "to %s, as a flow of this source port goes on", j.flow.Backend)
	return true
}
