// SPDX-License-Identifier: Apache-2.0

package conformance_test

import (
	"context"
	"maps"
	"slices"
	"strings"
	"testing"

	"fairlead.dev/dataplane"
	"fairlead.dev/dataplane/ebpf"
	"fairlead.dev/test/conformance"
)

func TestEBPFTreatsPacketsAsKubernetesDocuments(t *testing.T) {
	conformance.Run(t, conformance.Target{
		Name:        "ebpf",
		Unsupported: whatThisKernelCannot(),
		New: func(n *conformance.Node) (dataplane.Dataplane, error) {
			return ebpf.New(context.Background(), ebpf.Options{BPFFS: n.BPFFS, CgroupRoot: n.CgroupRoot, Devices: n.Devices})
		},
	})
}

// needs says which cases depend on what a kernel may lack, by the name of its
// check, and what is seen without.
var needs = map[string]struct {
	cases   []string
	without string
}{
	"bpf_sock_destroy": {[]string{
		"udp-backend-removed/client", "udp-backend-removed/host1", "udp-scaled-to-zero/client", "udp-scaled-to-zero/host1",
		"tcp-half-open-moved/client", "tcp-half-open-moved/host1",
	}, "a socket stays connected to the removed Backend that the socket hooks gave it"},
	"bpf_set_retval": {[]string{"refused-unconnected"}, "sendto() fails at once, but with EPERM"},
	"netns cookie": {[]string{"nodeport-loopback", "affinity-one-client-both-paths/client"},
		"it is not known which network namespace is the node's, nor which address a socket's has"},
}

// whatThisKernelCannot is Unsupported on this kernel.
func whatThisKernelCannot() map[string]string {
	unsupported := map[string]string{}
	for _, c := range ebpf.Check(ebpf.Options{}) {
		if c.OK {
			continue
		}
		for _, id := range needs[c.Name].cases {
			unsupported[id] = "this kernel lacks " + c.Name + ": " + needs[c.Name].without
		}
	}
	return unsupported
}

// among keeps what is about these cases.
func among(cases []conformance.Case, unsupported map[string]string) map[string]string {
	maps.DeleteFunc(unsupported, func(key, _ string) bool {
		id, _, _ := strings.Cut(key, "/")
		return !slices.ContainsFunc(cases, func(c conformance.Case) bool { return c.ID == id })
	})
	return unsupported
}

// Before kernel 6.6 the packet path is attached otherwise; that it is the same
// path is shown by the cases that leave the node.
func TestEBPFWithoutTCXTreatsPacketsTheSame(t *testing.T) {
	var cases []conformance.Case
	for _, c := range conformance.Cases() {
		if strings.HasPrefix(c.ID, "nodeport-") || strings.HasPrefix(c.ID, "path-") {
			cases = append(cases, c)
		}
	}
	conformance.RunCases(t, conformance.Target{
		Name:        "ebpf-clsact",
		Unsupported: among(cases, whatThisKernelCannot()),
		New: func(n *conformance.Node) (dataplane.Dataplane, error) {
			return ebpf.New(context.Background(), ebpf.Options{BPFFS: n.BPFFS, CgroupRoot: n.CgroupRoot, Devices: n.Devices, Clsact: true})
		},
	}, cases)
}
