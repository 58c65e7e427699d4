// SPDX-License-Identifier: Apache-2.0

package conformance_test

import (
	"context"
	"strings"
	"testing"

	"fairlead.dev/dataplane"
	"fairlead.dev/dataplane/ebpf"
	"fairlead.dev/test/conformance"
)

func TestEBPFTreatsPacketsAsKubernetesDocuments(t *testing.T) {
	conformance.Run(t, conformance.Target{
		Name: "ebpf",
		New: func(n *conformance.Node) (dataplane.Dataplane, error) {
			return ebpf.New(context.Background(), ebpf.Options{BPFFS: n.BPFFS, CgroupRoot: n.CgroupRoot, Devices: n.Devices})
		},
	})
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
		Name: "ebpf-clsact",
		New: func(n *conformance.Node) (dataplane.Dataplane, error) {
			return ebpf.New(context.Background(), ebpf.Options{BPFFS: n.BPFFS, CgroupRoot: n.CgroupRoot, Devices: n.Devices, Clsact: true})
		},
	}, cases)
}
