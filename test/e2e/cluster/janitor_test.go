// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"fairlead.dev/podrunner/containerdtest"
)

// startJanitor starts a process that removes the cluster's cgroups, which no
// namespace takes along, when this process has ended, however it did.
func startJanitor(cgroup string) error {
	cmd := exec.Command("/proc/self/exe")
	cmd.Args[0] = "fairlead-cluster-janitor"
	cmd.Env = append(os.Environ(), roleVariable+"=janitor")
	cmd.Stderr = os.Stderr // `go test` waits for it
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if _, err := cmd.StdinPipe(); err != nil { // open as long as this process lives
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
		if err := removeCgroups(top + os.Getenv(cgroupVariable)); err != nil {
			fmt.Fprintln(os.Stderr, "cluster: remove cgroups:", err)
			code = 1
		}
	}
	os.Exit(code)
}

// removeCgroups removes a tree, whose processes are about to end.
func removeCgroups(root string) error {
	var dirs []string
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append(dirs, path)
		}
		return nil
	})
	for _, dir := range slices.Backward(dirs) {
		for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
			err = os.Remove(dir)
			if err == nil || os.IsNotExist(err) {
				err = nil
				break
			}
			if time.Now().After(deadline) {
				return err
			}
		}
	}
	return err
}
