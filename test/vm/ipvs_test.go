// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"regexp"
	"slices"
	"strings"
	"testing"
)

var (
	// The guest has no modprobe: what the Dataplane needs is loaded beforehand.
	// Not sctp: the servers of the table speak it themselves, and the kernel
	// would abort their associations, which conntrack believes.
	ipvsModules = strings.Fields(`veth bridge
		ip_vs ip_vs_rr ip_vs_wrr ip_vs_lc ip_vs_wlc ip_vs_sh ip_vs_mh ip_vs_sed ip_vs_nq
		nf_tables nft_ct nft_reject_inet nft_nat nft_masq nft_chain_nat nft_objref
		nf_conntrack_netlink dummy`)

	ipvsPassed    = regexp.MustCompile(`(?m)^ipvs: [1-9]\d* passed, 0 failed, `)
	ipvsDumped    = regexp.MustCompile(`(?m)^ *--- PASS: TestEveryDataplaneDumpsTheSameTable/ipvs `)
	ipvsGone      = regexp.MustCompile(`(?m)^--- PASS: TestOfIPVSOnlyKubeProxysIsRemovedOnceItsConnectionsHaveEnded `)
	ipvsExplained = regexp.MustCompile(`(?m)^ *--- PASS: TestExplainAgreesWithPackets/ipvs `)
	ipvsOwn       = regexp.MustCompile(`(?m)^--- PASS: TestKernelFollowsAnyChangeAndSurvivesAnyRestart `)
)

// ipvsRuns are what is played in every run of the tests; ipvsTable is the whole
// table in their stead.
var (
	ipvsRuns = []run{
		{"own tests", Debian12, "fairlead.dev/dataplane/ipvs", ".", "", ipvsModules, ipvsOwn},
		{"dump", Debian12, "fairlead.dev/test/conformance", "TestEveryDataplaneDumpsTheSameTable/ipvs", "", ipvsModules, ipvsDumped},
		{"what kube-proxy left", Debian12, "fairlead.dev/migrate", "IPVS", "", slices.Concat(ipvsModules, kubeProxyModules), ipvsGone},
		{"explain", Debian12, "fairlead.dev/test/conformance", "TestExplainAgreesWithPackets/ipvs", "", ipvsModules, ipvsExplained},
		{"one variant of each case", Debian12, "fairlead.dev/test/conformance", "TestIPVSTreats", "one", ipvsModules, ipvsPassed},
	}
	ipvsTable = []run{
		{"table, first half", Debian12, "fairlead.dev/test/conformance", "TestIPVSTreats", "1/2", ipvsModules, ipvsPassed},
		{"table, second half", Debian12, "fairlead.dev/test/conformance", "TestIPVSTreats", "2/2", ipvsModules, ipvsPassed},
	}
)

// TestIPVSOnDebiansKernel is where IPVS is tested at all: kernels of development
// machines often lack it. FAIRLEAD_KERNEL_MATRIX asks for it as for the others.
func TestIPVSOnDebiansKernel(t *testing.T) {
	playMatrix(t, ipvsRuns, slices.Concat(ipvsRuns[:4], ipvsTable))
}
