// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"testing"
)

// Who calls a method by a name that is only known at run time, as
// text/template does, has the linker keep every method of every type. The
// binary, and the memory of each agent, grows by more than half.
func TestNothingInTheBinaryCallsMethodsByName(t *testing.T) {
	cmd := exec.Command("go", "build", "-tags", "grpcnotrace", "-trimpath", "-ldflags", "-s -w -dumpdep", "-o", filepath.Join(t.TempDir(), "fairlead"), "./cmd/fairlead")
	cmd.Dir, cmd.Env = "..", append(cmd.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+runtime.GOARCH)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%.2000s", err, out)
	}
	callers := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^(\S+) <ReflectMethod> ->`).FindAllSubmatch(out, -1) {
		callers[string(m[1])] = true
	}
	if len(callers) > 0 {
		t.Errorf("methods are called by name in %v: who imports it?", callers)
	}
}

// The clientset of client-go has the types of all API groups: a quarter of the
// binary, which each agent has in memory.
func TestTheBinaryKnowsOnlyTheKindsThatItAsksFor(t *testing.T) {
	cmd := exec.Command("go", "list", "-tags", "grpcnotrace", "-deps", "./cmd/fairlead")
	cmd.Dir, cmd.Env = "..", append(cmd.Environ(), "CGO_ENABLED=0", "GOOS=linux")
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	known := []string{
		"k8s.io/api/authentication/v1", "k8s.io/api/authorization/v1", "k8s.io/api/certificates/v1", "k8s.io/api/coordination/v1",
		"k8s.io/api/core/v1", "k8s.io/api/discovery/v1", "k8s.io/api/node/v1",
	}
	for _, p := range regexp.MustCompile(`(?m)^k8s\.io/(api/\S+|client-go/kubernetes\S*|client-go/informers\S*)$`).FindAllString(string(out), -1) {
		if !slices.Contains(known, p) {
			t.Errorf("the binary has %s: use podrunner/apiclient, or say there what is asked for", p)
		}
	}
}
