// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"os"

	"fairlead.dev/podrunner/containerdtest"
)

// workloadImage is the image of all Pods, sandboxes too: the program workload
// and nothing else.
const workloadImage = "fairlead.test/workload:1"

// writeImage writes the image's archive.
func writeImage(path, workload string) error {
	program, err := os.ReadFile(workload)
	if err != nil {
		return err
	}
	image, err := containerdtest.ProgramTar(workloadImage, "workload", program)
	if err != nil {
		return err
	}
	return os.WriteFile(path, image, 0o644)
}
