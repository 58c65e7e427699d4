// SPDX-License-Identifier: Apache-2.0

// Package cluster tests fairlead as both the proxy and the kubelet of a whole
// cluster: a real control plane with its scheduler and controllers, and nodes
// that are namespaces of this machine, each with its own containerd and its own
// `fairlead run --pods cri --pod-network host-gw`. All tests share the cluster.
//
// Everything is in namespaces of the test's own and ends with them. FAIRLEAD_LOG
// names a directory for the logs of all processes.
package cluster

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"fairlead.dev/podrunner/containerdtest"
)

// roleVariable makes this binary one of the processes around the tests.
const roleVariable = "FAIRLEAD_CLUSTER_ROLE"

// cgroupVariable is the cgroup of the whole cluster, as "/name".
const cgroupVariable = "FAIRLEAD_CLUSTER_CGROUP"

// scratch holds all files of the cluster, shared by tests and nodes: a tmpfs of
// the test's own mount namespace.
const scratch = "/mnt"

func TestMain(m *testing.M) {
	switch os.Getenv(roleVariable) {
	case "janitor":
		janitorMain()
	case "node":
		nodeMain()
	}
	if os.Getuid() != 0 {
		os.Exit(m.Run()) // all skip
	}
	if os.Getenv(cgroupVariable) == "" {
		// The outermost process: what follows runs in namespaces.
		cgroup := fmt.Sprintf("/fairlead-cluster-%d", os.Getpid())
		os.Setenv(cgroupVariable, cgroup)
		if err := startJanitor(cgroup); err != nil {
			fmt.Fprintln(os.Stderr, "cluster:", err)
			os.Exit(1)
		}
		containerdtest.Main(m)
	}
	if os.Getpid() == 1 { // the namespaces' first process: it starts the tests
		containerdtest.Main(m)
	}
	os.Exit(runTests(m))
}

func runTests(m *testing.M) int {
	if err := unix.Mount("fairlead", scratch, "tmpfs", 0, "mode=755"); err != nil {
		fmt.Fprintln(os.Stderr, "cluster: mount a tmpfs:", err)
		return 1
	}
	os.Setenv("TMPDIR", filepath.Join(scratch, "tmp"))
	if err := os.Mkdir(os.TempDir(), 0o755); err != nil {
		fmt.Fprintln(os.Stderr, "cluster:", err)
		return 1
	}
	code := m.Run()
	if shared != nil {
		shared.keepLogs()
		shared.close()
	}
	return code
}
