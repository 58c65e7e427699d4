// SPDX-License-Identifier: Apache-2.0

package explain

import (
	"fmt"
	"slices"

	"fairlead.dev/dataplane"
)

const (
	policyCluster = "Cluster"
	policyLocal   = "Local"
)

// policy says which traffic policy chose the set, as far as the Table shows it:
// a Table has sets and not policies.
func (j *judge) policy(f *dataplane.Frontend) {
	p := &j.a.Policy
	p.SessionAffinitySeconds, p.MasqueradeExternal = f.AffinitySeconds, f.MasqueradeExternal
	p.SourceRanges = append(p.SourceRanges, f.SourceRanges...)
	switch f.Kind {
	case dataplane.ClusterIP:
		p.Decides = "internalTrafficPolicy"
		p.InternalTrafficPolicy = internalPolicy(f)
		switch p.InternalTrafficPolicy {
		case policyLocal:
			j.because("policy", "internalTrafficPolicy Local: Backends of this node alone")
		case policyCluster:
			j.because("policy", "internalTrafficPolicy Cluster: Backends wherever they are")
		default:
			j.because("policy", "internalTrafficPolicy: Cluster and Local come to the same here, so the Table does not tell which it is")
		}
	case dataplane.HostPort:
		p.Decides = "hostPort"
		j.because("policy", "hostPort: the Pod is the one Backend")
	default:
		p.Decides = "externalTrafficPolicy"
		p.ExternalTrafficPolicy = j.externalPolicy(f)
		switch {
		case p.ExternalTrafficPolicy == "":
			j.because("policy", "externalTrafficPolicy: the Table does not tell which it is")
		case p.ExternalTrafficPolicy == policyLocal && j.scope == dataplane.Internal:
			j.because("policy", "externalTrafficPolicy Local is for external clients: internal ones reach Backends wherever they are")
		case p.ExternalTrafficPolicy == policyLocal:
			j.because("policy", "externalTrafficPolicy Local: Backends of this node alone")
		default:
			j.because("policy", "externalTrafficPolicy Cluster: Backends wherever they are")
		}
	}
	if n := len(f.Draining); n > 0 {
		j.because("topology", "%s and %s no new connections: a topology hint or a Local policy keeps them away",
			count(n, "more Backend serves", "more Backends serve"), verb(n, "gets", "get"))
	}
}

func count(n int, one, many string) string { return fmt.Sprintf("%d %s", n, verb(n, one, many)) }

func verb(n int, one, many string) string {
	if n == 1 {
		return one
	}
	return many
}

// internalPolicy: under Local no Backend of another node is in the set, and those
// there are drain. Hints can have the same effect, so Local is said only where
// they can't: with no Backend here and some elsewhere.
func internalPolicy(f *dataplane.Frontend) string {
	remote := func(b dataplane.Backend) bool { return !b.Local }
	switch {
	case slices.ContainsFunc(f.Internal.Backends, remote):
		return policyCluster
	case len(f.Internal.Backends) == 0 && slices.ContainsFunc(f.Draining, remote):
		return policyLocal
	}
	return ""
}

// externalPolicy: Local is what keeps external clients' addresses.
func (j *judge) externalPolicy(f *dataplane.Frontend) string {
	switch {
	case f.External.OnEmpty == dataplane.Drop:
		return policyLocal
	case j.unread(dataplane.UnreadMasquerade):
		return ""
	case f.MasqueradeExternal:
		return policyCluster
	}
	return policyLocal
}

// unread reports whether the dataplane could not read a part, and says so in
// the answer.
func (j *judge) unread(part dataplane.UnreadPart) bool {
	why, is := j.in.Unreadable(part)
	if is {
		j.unknown("%s", why)
	}
	return is
}
