// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"fmt"
	"os"
	"strings"
)

// CheckResult is one thing that a Dataplane would like to find on a machine.
type CheckResult struct {
	Name string
	OK   bool
	// Detail is what was found.
	Detail string
	// Cost is what goes without it.
	Cost string
	// Required: without it the Dataplane can't work at all.
	Required bool
}

// Checked is the CheckResult of a probe: detail where err is nil, else the error
// and what the lack costs.
func Checked(name, detail string, err error, cost string, required bool) CheckResult {
	r := CheckResult{Name: name, OK: err == nil, Detail: detail, Required: required}
	if err != nil {
		r.Detail, r.Cost = err.Error(), cost
	}
	return r
}

// CheckForwarding looks whether the kernel forwards packets of both families.
func CheckForwarding() (results []CheckResult) {
	for _, name := range []string{"net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"} {
		b, err := os.ReadFile("/proc/sys/" + strings.ReplaceAll(name, ".", "/"))
		value := strings.TrimSpace(string(b))
		if err == nil && value == "0" {
			err = fmt.Errorf("%s is 0: set it with `sysctl -w %s=1`", name, name)
		}
		results = append(results, Checked(name, value, err, "nothing is forwarded to pods and other nodes", false))
	}
	return results
}

// Usable reports whether nothing that is required is missing and, if not, what
// the first such thing is.
func Usable(checks []CheckResult) (ok bool, reason string) {
	for _, c := range checks {
		if c.Required && !c.OK {
			return false, c.Name + ": " + c.Detail
		}
	}
	return true, ""
}
