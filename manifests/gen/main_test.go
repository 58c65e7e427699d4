// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"

	"fairlead.dev/controller/config"
)

func TestMadeManifestsAreUpToDate(t *testing.T) {
	files, err := generate("..")
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range files {
		got, err := os.ReadFile(filepath.Join("..", name))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(want), string(got)); diff != "" {
			t.Errorf("%s is not what its sources say, run `go run ./manifests/gen` (-want +got):\n%s", name, diff)
		}
	}
}

func TestAKustomizationWithTransformersIsNotFlattened(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "kustomization.yaml"), []byte("resources: [a.yaml]\nnamePrefix: x-\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := flatten(dir); err == nil || !strings.Contains(err.Error(), "namePrefix") {
		t.Errorf("error %v, want one that names namePrefix", err)
	}
}

func TestInstallIsWhatKustomizeMakes(t *testing.T) {
	kubectl, err := exec.LookPath("kubectl")
	if err != nil {
		t.Skip("kubectl is not installed")
	}
	made, err := exec.Command(kubectl, "kustomize", "../base").Output()
	if err != nil {
		t.Fatal(err)
	}
	install, err := os.ReadFile("../install.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(objects(t, made), objects(t, install)); diff != "" {
		t.Errorf("(-kustomize +install.yaml):\n%s", diff)
	}
}

// objects gives the documents in an order of their own, as JSON.
func objects(t *testing.T, text []byte) (out []string) {
	t.Helper()
	for _, doc := range bytes.SplitAfter(text, []byte("---\n")) {
		doc = bytes.TrimSuffix(doc, []byte("---\n"))
		j, err := yaml.YAMLToJSON(doc)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, string(j))
	}
	slices.Sort(out)
	return out
}

func TestTheConfigurationOfTheConfigMapIsValid(t *testing.T) {
	text, err := os.ReadFile("../base/config.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var m struct{ Data map[string]string }
	if err := yaml.Unmarshal(text, &m); err != nil {
		t.Fatal(err)
	}
	loadConfig(t, m.Data["config.yaml"])
}

// loadConfig checks a file of the agent's: valid, with nothing to warn of.
func loadConfig(t *testing.T, text string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	c, warnings, err := config.Load(file)
	if err != nil || len(warnings) != 0 {
		t.Fatalf("%v, warnings %v", err, warnings)
	}
	if err := c.Validate(); err != nil {
		t.Error(err)
	}
}

func TestAlertsHoldWhatTheirTestsSay(t *testing.T) {
	promtool, err := exec.LookPath("promtool")
	if err != nil {
		t.Skip("promtool is not installed")
	}
	for _, args := range [][]string{{"check", "rules", "rules.yaml"}, {"test", "rules", "rules_test.yaml"}} {
		cmd := exec.Command(promtool, args...)
		cmd.Dir = "../prometheus"
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("promtool %v: %v\n%s", args, err, out)
		}
	}
	rules, tests := read(t, "../prometheus/rules.yaml"), read(t, "../prometheus/rules_test.yaml")
	for _, m := range regexp.MustCompile(`alert: (\w+)`).FindAllStringSubmatch(rules, -1) {
		if !regexp.MustCompile(`alertname: ` + m[1] + `\n\s+eval_time: \w+\n\s+exp_alerts`).MatchString(tests) {
			t.Errorf("no test of rules_test.yaml raises %s", m[1])
		}
	}
}

// Names in alerts must be names that the agent has.
func TestAlertsNameMetricsOfTheAgent(t *testing.T) {
	code := read(t, "../../controller/metrics.go") + read(t, "../../dataplane/ebpf/metrics.go")
	for _, name := range regexp.MustCompile(`(?:fairlead|kubeproxy)_[a-z_]+`).FindAllString(read(t, "../prometheus/rules.yaml"), -1) {
		if !strings.Contains(code, `"`+strings.TrimSuffix(name, "_bucket")+`"`) {
			t.Errorf("no metric %s", name)
		}
	}
	drops := read(t, "../../dataplane/ebpf/drops.go")
	for _, m := range regexp.MustCompile(`reason=~?"([^"]+)"`).FindAllStringSubmatch(read(t, "../prometheus/rules.yaml"), -1) {
		for reason := range strings.SplitSeq(m[1], "|") {
			if !strings.Contains(drops, `"`+reason+`"`) {
				t.Errorf("no drop reason %s", reason)
			}
		}
	}
}

func read(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
