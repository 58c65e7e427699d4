// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"bufio"
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"

	"fairlead.dev/test/e2e/controlplane"
)

// notHere are Kubernetes' conformance tests that cannot pass, each with why. The
// rest must.
var notHere = []struct{ names, why string }{
	{`ImageVolume`, "volumes of images need containerd 2, and are not among those that the pod runner does"},
	{`Windows|\[Feature:|\[Flaky\]`, "not conformance on Linux"},
	{`\[Serial\]|\[Disruptive\]`, "these want the cluster for themselves: see FAIRLEAD_CONFORMANCE"},
}

// TestKubernetesOwnConformanceTests runs those about Pods, volumes and Services
// against the cluster, three groups side by side. FAIRLEAD_CONFORMANCE is yes, or
// an expression for the tests to run instead.
func TestKubernetesOwnConformanceTests(t *testing.T) {
	wanted := os.Getenv("FAIRLEAD_CONFORMANCE")
	if wanted == "" {
		t.Skip("SKIPPED: takes half an hour: make kubernetes-conformance")
	}
	k := newCase(t)
	k.installDNS()
	k.importConformanceImages()
	groups := map[string]string{"focus": wanted}
	if wanted == "yes" {
		groups = map[string]string{}
		for _, sig := range []string{"node", "network", "storage"} {
			groups[sig] = `\[sig-` + sig + `\].*\[Conformance\]`
		}
	}
	var skip []string
	for _, s := range notHere {
		if wanted == "yes" || !strings.Contains(s.names, "Serial") {
			skip = append(skip, s.names)
			t.Logf("not run: %s: %s", s.names, s.why)
		}
	}
	var all sync.WaitGroup
	for name, focus := range groups {
		all.Go(func() { k.conformance(name, focus, strings.Join(skip, "|")) })
	}
	all.Wait()
}

// worthTelling are the lines of a group's report that say what failed.
var worthTelling = regexp.MustCompile(`^\s*\[FAIL\]|^Ran \d|^FAIL!|^SUCCESS!`)

func (k *testCase) conformance(name, focus, skip string) {
	program, _ := k.program(controlplane.Conformance)
	kubectl, _ := k.program(controlplane.Kubectl)
	cmd := exec.CommandContext(k.Context(), program, "-test.timeout=0", "--ginkgo.timeout=24h", "--ginkgo.focus="+focus, "--ginkgo.skip="+skip,
		"--ginkgo.no-color", "--ginkgo.silence-skips", "-kubeconfig", k.Kubeconfig, "-provider=skeleton", "-kubectl-path", kubectl,
		"-num-nodes=2", "-dump-logs-on-failure=false", "-disable-log-dump=true")
	cmd.Dir = k.TempDir()
	cmd.Env = append(os.Environ(), "HOME="+filepath.Join(scratch, "tmp"))
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.CombinedOutput()
	if dir := os.Getenv("FAIRLEAD_LOG"); dir != "" {
		_ = os.MkdirAll(dir, 0o755)
		_ = os.WriteFile(filepath.Join(dir, "conformance-"+name+".log"), out, 0o644)
	}
	for s := bufio.NewScanner(bytes.NewReader(out)); s.Scan(); {
		if worthTelling.MatchString(s.Text()) {
			k.Logf("%s: %s", name, strings.TrimSpace(s.Text()))
		}
	}
	if err != nil {
		k.Errorf("%s: %v; FAIRLEAD_LOG names a directory for what was said", name, err)
	}
}
