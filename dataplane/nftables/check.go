// SPDX-License-Identifier: Apache-2.0

package nftables

import "fairlead.dev/dataplane"

// Check probes what this machine has.
func Check(o Options) []dataplane.CheckResult {
	_, err := Present(o)
	r := dataplane.CheckResult{Name: "nf_tables", OK: err == nil, Detail: "netlink", Required: true}
	if err != nil {
		r.Detail, r.Cost = err.Error(), "Services can't be programmed"
	}
	return []dataplane.CheckResult{r}
}
