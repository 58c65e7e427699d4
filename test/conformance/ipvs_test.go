// SPDX-License-Identifier: Apache-2.0

package conformance_test

import (
	"context"
	"testing"

	"fairlead.dev/dataplane"
	"fairlead.dev/dataplane/ipvs"
	"fairlead.dev/test/conformance"
)

// The development machines have no IPVS: this runs in a virtual machine
// (test/vm), where the test binary needs no other program.
func TestIPVSTreatsPacketsAsKubernetesDocuments(t *testing.T) {
	if ok, reason := dataplane.Usable(ipvs.Check(ipvs.Options{})); !ok {
		t.Skip("this machine can't do IPVS: " + reason)
	}
	const oneFlow = "IPVS knows the answers of a flow by the addresses and ports of client and Backend alone, so two such flows are one"
	conformance.Run(t, conformance.Target{
		Name: "ipvs",
		New: func(n *conformance.Node) (dataplane.Dataplane, error) {
			if err := unlimitICMP(); err != nil {
				return nil, err
			}
			return ipvs.New(context.Background(), ipvs.Options{Devices: n.Devices})
		},
		Unsupported: map[string]string{
			"path-fragments/ipv6-udp-host1": "IPVS refuses an IPv6 datagram of the node's own that does not fit the path: it is fragmented only later (EMSGSIZE)",
			"refused-unconnected":           "a refusal is an ICMP error, which Linux does not tell to UDP sockets that are not connected",
			"path-one-port-two-flows":       oneFlow,
			"path-two-flows-at-once":        oneFlow,
			"path-two-flows-chosen-port":    oneFlow,
		},
	})
}
