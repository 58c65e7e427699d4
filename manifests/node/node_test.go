// SPDX-License-Identifier: Apache-2.0

// Package node tests the unit of a node whose agent runs Pods.
package node

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// boundingSet is what the unit leaves the agent.
func boundingSet(t *testing.T) (capabilities []string) {
	t.Helper()
	text, err := os.ReadFile("fairlead.service")
	if err != nil {
		t.Fatal(err)
	}
	line := regexp.MustCompile(`(?m)^CapabilityBoundingSet=(.+)$`).FindSubmatch(text)
	if line == nil {
		t.Fatal("the unit bounds no capabilities")
	}
	for name := range strings.FieldsSeq(string(line[1])) {
		name = strings.TrimPrefix(name, "CAP_")
		if !regexp.MustCompile(`(?m)^# (\w+, )*` + name + `[,:]`).Match(text) {
			t.Errorf("the unit does not say what %s is for", name)
		}
		capabilities = append(capabilities, strings.ToLower(name))
	}
	return capabilities
}

// The demo of Pods, with every fairlead in it held to what the unit allows.
func TestTheUnitsCapabilitiesSufficeToRunPods(t *testing.T) {
	capabilities := boundingSet(t)
	if os.Getuid() != 0 {
		t.Skip("SKIPPED: needs root, for namespaces and containerd")
	}
	for _, tool := range []string{"containerd", "runc", "setpriv", "curl"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("SKIPPED: %v", err)
		}
	}
	dir := t.TempDir()
	for name, pkg := range map[string]string{"fairlead-all": "fairlead.dev/cmd/fairlead", "responder": "fairlead.dev/examples/responder"} {
		cmd := exec.Command("go", "build", "-trimpath", "-o", filepath.Join(dir, name), pkg)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("build %s: %v\n%s", pkg, err, out)
		}
	}
	bounded := fmt.Sprintf("#!/bin/sh\nexec setpriv --bounding-set=-all,+%s --inh-caps=-all --no-new-privs %s/fairlead-all \"$@\"\n",
		strings.Join(capabilities, ",+"), dir)
	if err := os.WriteFile(filepath.Join(dir, "fairlead"), []byte(bounded), 0o755); err != nil {
		t.Fatal(err)
	}
	demo, err := filepath.Abs("../../examples/web-demo.sh")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, demo, filepath.Join(dir, "fairlead"), filepath.Join(dir, "responder"))
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) } // it cleans up
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v:\n%s", err, out)
	}
}
