// SPDX-License-Identifier: Apache-2.0

package explain

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"fairlead.dev/dataplane"
)

// backends chooses among the scope's set.
func (j *judge) backends(f *dataplane.Frontend) {
	set := f.Set(j.scope)
	eligible := set.Eligible()
	j.unread(dataplane.UnreadDraining)
	if len(eligible) == 0 {
		j.empty(&set)
		return
	}
	if eligible[0].State == dataplane.Terminating {
		j.because("policy", "no Backend is active: terminating ones get the new connections")
	}
	kept := j.affinity(f, eligible)
	share := 1 / float64(len(eligible))
	if len(eligible) > 1 {
		j.unread(dataplane.UnreadShares)
	}
	j.list(&set, func(b *Backend) {
		i := slices.IndexFunc(eligible, func(e dataplane.Backend) bool { return e.AddrPort() == b.AddrPort() })
		switch {
		case i < 0:
			return
		case !kept.IsValid():
			b.Share = share
		case kept == b.AddrPort():
			b.Share = 1
		}
		if b.Share > 0 {
			b.Source, b.Dropped = j.source(f, &eligible[i])
		}
	})
	j.conclude(eligible, kept)
}

// empty ends a judgement for a set that nobody is in.
func (j *judge) empty(set *dataplane.BackendSet) {
	j.list(set, nil)
	switch {
	case set.OnEmpty == dataplane.Drop && j.a.Path != "socket":
		j.end(Dropped, reasonNoLocal, "in silence, as no Backend is here: a load balancer's probe is to decide")
	case j.rules.Masquerade.NodeAsPrimary && j.q.Client.IsLoopback() && j.q.To.Protocol != dataplane.TCP:
		j.end(Dropped, reasonNoBackends, "as there is no Backend; the ICMP error that says so does not find the way back to a loopback address")
	default:
		j.end(Refused, reasonNoBackends, "at once, as there is no Backend for this client")
	}
}

// conclude ends a judgement with what those Backends come to that have a share.
func (j *judge) conclude(eligible []dataplane.Backend, kept netip.AddrPort) {
	var lost []string
	masqueraded, reached := 0, 0
	for i := range j.a.Backends {
		b := &j.a.Backends[i]
		switch {
		case b.Share == 0:
			continue
		case b.Dropped != "":
			lost = append(lost, b.Dropped)
			continue
		case b.Source.Masquerade:
			masqueraded++
		}
		reached++
	}
	switch {
	case reached == 0:
		j.end(Dropped, lost[0], "on its way to every Backend")
		return
	case masqueraded == reached:
		j.because("masquerade", "with SNAT: %s", j.sourceWhy(true))
	case masqueraded == 0:
		j.because("masquerade", "without SNAT: %s", j.sourceWhy(false))
	default:
		j.because("masquerade", "with SNAT to %d of %d Backends: %s; else %s", masqueraded, reached, j.sourceWhy(true), j.sourceWhy(false))
	}
	switch {
	case kept.IsValid():
		j.end(Forwarded, "", "to %s, which session affinity keeps the client on", kept)
	case len(eligible) == 1:
		j.end(Forwarded, "", "to the one Backend")
	default:
		j.end(Forwarded, "", "to one of %d Backends, each with a chance of %s", len(eligible), fraction(len(eligible)))
	}
}

// sourceWhy joins the reasons for one kind of source.
func (j *judge) sourceWhy(masquerade bool) string {
	var whys []string
	for _, b := range j.a.Backends {
		if b.Source != nil && b.Dropped == "" && b.Source.Masquerade == masquerade && !slices.Contains(whys, b.Source.Why) {
			whys = append(whys, b.Source.Why)
		}
	}
	return strings.Join(whys, ", or ")
}

// list puts the scope's set and the draining Backends into the answer, as edit
// changes them.
func (j *judge) list(set *dataplane.BackendSet, edit func(*Backend)) {
	add := func(b *dataplane.Backend, state string) {
		row := Backend{Address: b.Address, Port: b.Port, State: state, Local: b.Local, HostNetwork: b.HostNetwork}
		if edit != nil {
			edit(&row)
		}
		j.a.Backends = append(j.a.Backends, row)
	}
	for i := range set.Backends {
		add(&set.Backends[i], set.Backends[i].State.String())
	}
	for i := range j.in.Frontend.Draining {
		add(&j.in.Frontend.Draining[i], "draining")
	}
}

// affinity finds the client's entry, and gives the Backend that it keeps the
// client on; invalid where there is none.
func (j *judge) affinity(f *dataplane.Frontend, eligible []dataplane.Backend) (kept netip.AddrPort) {
	if f.AffinitySeconds == 0 {
		return kept
	}
	client := j.affinityClient()
	for _, row := range j.f.Affinity {
		// What a hook does not know the address of yet, it knows by number.
		if j.f.Origin == FromPod && j.a.Path == "socket" && row.Service == j.a.Service && row.PortName == f.PortName && strings.HasPrefix(row.Client, "netns:") {
			j.unknown("whose entry that of %s is, to %s: maybe this client's", row.Client, row.Backend)
		}
		if row.Client != client || row.Service != j.a.Service || row.PortName != f.PortName {
			continue
		}
		entry := &Affinity{Client: row.Client, Backend: row.Backend}
		if row.IdleSeconds <= f.AffinitySeconds {
			entry.RemainingSeconds = f.AffinitySeconds - row.IdleSeconds
		} else {
			entry.Why = "it is over"
		}
		if !slices.ContainsFunc(eligible, func(b dataplane.Backend) bool { return b.AddrPort() == row.Backend }) {
			entry.Why = "its Backend gets no new connections of this scope"
		}
		entry.Honoured = entry.Why == ""
		// Where a technology has an entry for each Backend, one that holds wins.
		if j.a.Affinity == nil || entry.Honoured && !j.a.Affinity.Honoured {
			j.a.Affinity = entry
		}
	}
	switch a := j.a.Affinity; {
	case a == nil:
		j.because("affinity", "sessionAffinity ClientIP, %ds, and no entry for %s: the Backend that is chosen is remembered", f.AffinitySeconds, client)
	case !a.Honoured:
		j.because("affinity", "the entry for %s leads to %s, but %s: chosen anew", client, a.Backend, a.Why)
	default:
		j.because("affinity", "%s is kept on %s for %ds more, and again by each connection", client, a.Backend, a.RemainingSeconds)
		kept = a.Backend
	}
	return kept
}

// unknown says what is not known, once.
func (j *judge) unknown(format string, args ...any) {
	if text := fmt.Sprintf(format, args...); !slices.Contains(j.a.Unknown, text) {
		j.a.Unknown = append(j.a.Unknown, text)
	}
}

// affinityClient is whom affinity takes the client for.
func (j *judge) affinityClient() string {
	if j.f.Origin == FromNode {
		i := 0
		if j.q.To.Address.Is6() {
			i = 1
		}
		if name := j.rules.NodeClients[i]; name != "" && j.a.Path == "socket" {
			return name
		}
		if j.rules.Masquerade.NodeAsPrimary && j.q.Client.IsLoopback() {
			return j.rules.Masquerade.Address(j.q.To.Address.Is6()).String()
		}
	}
	return j.q.Client.String()
}

// source is what a Backend sees, and why what is sent there is dropped.
func (j *judge) source(f *dataplane.Frontend, b *dataplane.Backend) (*Source, string) {
	if j.a.Path == "socket" {
		return j.socketSource(b), ""
	}
	if j.f.Origin == FromNode && b.HostNetwork && j.rules.Masquerade.NodeMustLeave {
		return j.unchanged("it never arrives"), reasonNoRoute
	}
	if m := &j.rules.Masquerade; m.LoopbackLost && !b.HostNetwork && j.q.Client.Is6() && j.q.Client.IsLoopback() {
		return j.unchanged("it never arrives: IPv6 lets nothing from ::1 leave the node"), reasonNoRoute
	}
	why, keep := j.masquerade(f, b)
	if why == "" {
		return j.unchanged(keep), ""
	}
	m := &j.rules.Masquerade
	s := &Source{Masquerade: true, Why: why}
	address := m.Address(b.Address.Is6())
	switch {
	case m.ByDevice:
		if a := j.f.Ways[b.Address].Leaves; a.IsValid() {
			s.Address = &a
		} else {
			s.Why += " (with an address of the device that it leaves by)"
		}
	case address.IsValid():
		s.Address = &address
	default:
		return j.unchanged("it never arrives"), reasonNoMasquerade
	}
	return s, ""
}

func (j *judge) unchanged(why string) *Source {
	client := j.q.Client
	return &Source{Address: &client, Why: why}
}

// socketSource: the socket is connected to the Backend itself, so the routes of
// its own network namespace choose its address.
func (j *judge) socketSource(b *dataplane.Backend) *Source {
	if j.f.Origin == FromPod {
		return j.unchanged("the pod's socket is connected to the Backend itself")
	}
	s := &Source{Why: "the socket is connected to the Backend itself, from the address of the node's route unless the process bound another"}
	if a := j.f.Ways[b.Address].Source; a.IsValid() {
		s.Address = &a
	}
	return s
}

// masquerade is why the client's address is replaced or, where why is empty, why
// it is kept.
func (j *judge) masquerade(f *dataplane.Frontend, b *dataplane.Backend) (why, keep string) {
	r := j.rules
	m := &r.Masquerade
	node := j.f.Origin == FromNode
	uplink := j.f.Origin == FromOutside
	inside := slices.ContainsFunc(r.InternalSources, func(p netip.Prefix) bool { return p.Contains(j.q.Client) })
	switch {
	case node && m.NodeAsPrimary && j.q.Client.IsLoopback():
		return "loopback addresses stay on the node", ""
	case b.HostNetwork:
		return "", "the Backend is in the node's own network and answers through it anyway"
	case j.q.Client == b.Address && b.Local:
		return "the client is its own Backend, and would be answering itself", ""
	case node && m.Loopback && j.q.Client.IsLoopback():
		return "loopback addresses stay on the node", ""
	case node && m.NodeAsPrimary && j.q.Client != m.Address(b.Address.Is6()):
		return "processes of the node are seen with its primary address", ""
	case node:
		return "", "the node's own address"
	case uplink && !b.Local:
		return "in by an uplink and on to another node: the answer would not come back this way", ""
	case r.DevicesDecide && !uplink:
		return "", "the client is behind this node, so the answer comes back this way"
	case inside:
		return "", fmt.Sprintf("%s is in a range of pods, which keep their address", j.q.Client)
	case f.MasqueradeExternal:
		return "external clients are masked, as the policy is not Local", ""
	}
	return "", "external clients keep their address, as the policy is Local"
}
