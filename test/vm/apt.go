// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"fmt"
	"strings"

	"fairlead.dev/image/debian"
)

// newestKernel is the name and the version of the suite's newest kernel package.
func newestKernel(a *debian.Archive) (pkg, version string, err error) {
	out, err := a.Show("linux-image-amd64")
	if err != nil {
		return "", "", err
	}
	for line := range strings.Lines(out) {
		// Depends: linux-image-6.1.0-50-amd64 (= 6.1.192-2)
		deps, ok := strings.CutPrefix(line, "Depends: ")
		if !ok {
			continue
		}
		for dep := range strings.SplitSeq(deps, ",") {
			var p, v string
			if n, _ := fmt.Sscanf(dep, "%s (= %s", &p, &v); n == 2 && strings.HasPrefix(p, "linux-image-") {
				return p, strings.TrimSuffix(v, ")"), nil
			}
		}
	}
	return "", "", fmt.Errorf("linux-image-amd64 names no kernel package:\n%s", out)
}
