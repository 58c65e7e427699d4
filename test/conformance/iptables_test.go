// SPDX-License-Identifier: Apache-2.0

package conformance_test

import (
	"context"
	"os"
	"strings"
	"testing"

	"fairlead.dev/dataplane"
	"fairlead.dev/dataplane/iptables"
	"fairlead.dev/test/conformance"
)

// iptablesTarget is the Dataplane in one of its flavours.
func iptablesTarget(name string, f iptables.Flavour) conformance.Target {
	return conformance.Target{
		Name: name,
		New: func(n *conformance.Node) (dataplane.Dataplane, error) {
			if err := unlimitICMP(); err != nil {
				return nil, err
			}
			return iptables.New(context.Background(), iptables.Options{Flavour: f, Devices: n.Devices})
		},
		Unsupported: map[string]string{
			"refused-unconnected":    "the refusal is an ICMP error, which the kernel tells to connected sockets only (or with IP_RECVERR)",
			"nodeport-loopback/ipv6": "netfilter can't translate ::1: IPv6 has no route_localnet, so the packet never leaves loopback",
		},
	}
}

// unlimitICMP lets the thread's network namespace send any number of ICMP errors.
// The cases are refused more often, one after the other, than the one a second
// to a client that the kernel's REJECT is held to (net.ipv4.icmp_ratelimit).
func unlimitICMP() error {
	for _, sysctl := range []string{"ipv4/icmp_ratelimit", "ipv6/icmp/ratelimit"} {
		if err := os.WriteFile("/proc/sys/net/"+sysctl, []byte("0"), 0o644); err != nil {
			return err
		}
	}
	return nil
}

func TestIPTablesTreatsPacketsAsKubernetesDocuments(t *testing.T) {
	conformance.Run(t, iptablesTarget("iptables", iptables.NFT))
}

// The rules are the same; the legacy kernel interface has its own matches of
// masks, devices and counters, and its own way to commit.
func TestIPTablesLegacyTreatsPacketsTheSame(t *testing.T) {
	var cases []conformance.Case
	for _, c := range conformance.Cases() {
		for _, prefix := range []string{"nodeport-", "affinity-", "external", "clusterip-", "refused-"} {
			if strings.HasPrefix(c.ID, prefix) {
				cases = append(cases, c)
				break
			}
		}
	}
	conformance.RunCases(t, iptablesTarget("iptables-legacy", iptables.Legacy), cases)
}
