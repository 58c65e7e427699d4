// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"regexp"
	"slices"
	"strings"
	"testing"
)

var (
	nftablesModules = strings.Fields(`veth bridge sctp nf_tables nft_ct nft_reject_inet nft_nat nft_masq nft_chain_nat nft_objref
		nft_numgen nft_hash nft_fib_inet nft_redir nft_limit nft_reject_ipv4 nft_reject_ipv6 nf_conntrack_netlink`)
	nftablesPassed = regexp.MustCompile(`(?m)^nftables: [1-9]\d* passed, 0 failed, `)
)

// nftablesRuns are one variant of each case on kernels that lack what newer ones
// allow in rules.
var nftablesRuns = []run{
	{"conformance on 6.1", Debian12, "fairlead.dev/test/conformance", "TestNFTablesTreats", "one", nftablesModules, nftablesPassed},
	{"conformance on 5.10", Debian11, "fairlead.dev/test/conformance", "TestNFTablesTreats", "one", slices.Concat(nftablesModules, []string{"nft_counter"}), nftablesPassed},
}

// TestNFTablesOnDebiansKernels is asked for as the others are.
func TestNFTablesOnDebiansKernels(t *testing.T) { playMatrix(t, nftablesRuns, nftablesRuns) }
