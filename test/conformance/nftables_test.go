// SPDX-License-Identifier: Apache-2.0

package conformance_test

import (
	"context"
	"testing"

	"fairlead.dev/dataplane"
	"fairlead.dev/dataplane/nftables"
	"fairlead.dev/test/conformance"
)

func TestNFTablesTreatsPacketsAsKubernetesDocuments(t *testing.T) {
	conformance.Run(t, conformance.Target{
		Name: "nftables",
		New: func(n *conformance.Node) (dataplane.Dataplane, error) {
			if err := unlimitICMP(); err != nil {
				return nil, err
			}
			return nftables.New(context.Background(), nftables.Options{Devices: n.Devices})
		},
		Unsupported: map[string]string{
			"nodeport-loopback/ipv6": "IPv6 has no route_localnet: what has ::1 for source is not routed off loopback, and its answer not back",
			"refused-unconnected":    "an ICMP error is not reported to an unconnected UDP socket, and netfilter has nothing else to say no with",
		},
	})
}
