// SPDX-License-Identifier: Apache-2.0

package conformance_test

import (
	"context"
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
