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
			return nftables.New(context.Background(), nftables.Options{Devices: n.Devices})
		},
	})
}
