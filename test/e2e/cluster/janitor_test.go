// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"
	"time"

	"fairlead.dev/podrunner/containerdtest"
	"fairlead.dev/test/internal/cgroup"
)

// untilTheEnd is open as long as this process lives: a file that nothing refers
// to is closed by the next garbage collection.
var untilTheEnd io.Closer

// startJanitor starts a process that removes the cluster's cgroups, which no
// namespace takes along, when this process has ended, however it did.
func startJanitor(cgroup string) error {
	cmd := exec.Command("/proc/self/exe")
	cmd.Args[0] = "fairlead-cluster-janitor"
	cmd.Env = append(os.Environ(), roleVariable+"=janitor")
	cmd.Stderr = os.Stderr // `go test` waits for it
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	var err error
	if untilTheEnd, err = cmd.StdinPipe(); err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start the janitor of %s: %w", cgroup, err)
	}
	return nil
}

func janitorMain() {
	_, _ = io.Copy(io.Discard, os.Stdin)
	code := 0
	for _, top := range containerdtest.CgroupMounts() {
		if err := cgroup.Remove(top+os.Getenv(cgroupVariable), time.Minute); err != nil {
			fmt.Fprintln(os.Stderr, "cluster: remove cgroups:", err)
			code = 1
		}
	}
	os.Exit(code)
}
