// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"slices"
	"strings"
)

// Case is one row of the table: a clause of Kubernetes' Service semantics, and
// the packets that prove it.
type Case struct {
	// ID names the case in test names and in Target.Unsupported.
	ID string
	// Clause is what the case proves, in a sentence.
	Clause string

	// Each case runs once for each combination of these. Families (default
	// IPv4 and IPv6) and Protocols (default TCP and UDP) are those of the
	// Service; Clients are who asks where a step names nobody else (default
	// the pod "client").
	Families  []Family
	Protocols []string
	Clients   []string
	// BothNodes: node2 has a Dataplane too.
	BothNodes bool

	// Steps applies objects and asks. It stops at the first expectation that
	// is not met.
	Steps func(*Story)
}

// Family is "ipv4" or "ipv6".
type Family string

// The families.
const (
	IPv4 Family = "ipv4"
	IPv6 Family = "ipv6"
)

// Who asks. Pods are on node1 unless their name says otherwise.
var (
	// near are those whose node has the Dataplane: a pod that the socket hooks
	// see, one that they don't, and a process of the node.
	near = []string{"client", "bypass", "host1"}
	// pods are the ones of near that are pods.
	pods = []string{"client", "bypass"}
	// hooked are those that the socket hooks see.
	hooked = []string{"client", "host1"}
	// anywhere adds a client beyond the cluster and a pod of another node.
	anywhere = append(slices.Clone(near), "outside", "pod2")
	// beyond are outside the node: they come in by its uplink.
	beyond = []string{"outside", "pod2"}
)

var (
	tcpOnly  = []string{"TCP"}
	udpOnly  = []string{"UDP"}
	sctpOnly = []string{"SCTP"}
	ipv4Only = []Family{IPv4}
	ipv6Only = []Family{IPv6}
)

// variant is one combination.
type variant struct {
	family   Family
	protocol string
	client   string
}

func (v variant) String() string {
	return string(v.family) + "-" + strings.ToLower(v.protocol) + "-" + v.client
}

// has reports whether the variant's name has the parts of a name such as
// "ipv6", "udp" or "ipv6-udp", one after the other.
func (v variant) has(part string) bool {
	return strings.Contains("-"+v.String()+"-", "-"+part+"-")
}

func (c Case) variants() []variant {
	or := func(have, standard []string) []string {
		if len(have) == 0 {
			return standard
		}
		return have
	}
	families := c.Families
	if len(families) == 0 {
		families = []Family{IPv4, IPv6}
	}
	var out []variant
	for _, f := range families {
		for _, p := range or(c.Protocols, []string{"TCP", "UDP"}) {
			for _, client := range or(c.Clients, []string{"client"}) {
				out = append(out, variant{f, p, client})
			}
		}
	}
	return out
}

// Cases is the whole table.
func Cases() []Case {
	return slices.Concat(
		clusterIPCases, refusalCases, endpointCases, topologyCases, nodePortCases, policyCases,
		externalCases, affinityCases, changeCases, udpFlowCases, tcpFlowCases, pathCases, twoNodeCases,
	)
}
