// SPDX-License-Identifier: Apache-2.0

// Command gen writes the manifests that are made from others:
//
//   - install.yaml, what `kubectl apply -k manifests/base` would create, in one
//     file that keeps the comments: the resources of base one after another;
//   - prometheus/prometheusrule.yaml, the rules of prometheus/rules.yaml as an
//     object of the Prometheus operator.
//
// Run it as `go run ./manifests/gen`. With -render DIR it writes nothing but
// prints what that kustomization creates, for whom has no kubectl.
package main

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"sigs.k8s.io/yaml"
)

const header = "# Made by `go run ./manifests/gen` from %s. Do not edit.\n"

const ruleHeader = `apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: fairlead
  namespace: kube-system
  labels:
    app.kubernetes.io/name: fairlead
spec:
`

func main() {
	kustomization := flag.String("render", "", "print what the kustomization in `DIR` creates")
	flag.Parse()
	err := error(nil)
	if *kustomization == "" {
		err = run("manifests")
	} else {
		err = printRendered(*kustomization)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "gen:", err)
		os.Exit(1)
	}
}

func printRendered(dir string) error {
	text, err := render(dir)
	if err != nil {
		return err
	}
	_, err = os.Stdout.Write(text)
	return err
}

func run(dir string) error {
	files, err := generate(dir)
	if err != nil {
		return err
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// generate gives the made files by name.
func generate(dir string) (map[string][]byte, error) {
	install, err := flatten(filepath.Join(dir, "base"))
	if err != nil {
		return nil, err
	}
	rules, err := os.ReadFile(filepath.Join(dir, "prometheus", "rules.yaml"))
	if err != nil {
		return nil, err
	}
	return map[string][]byte{"install.yaml": install, "prometheus/prometheusrule.yaml": wrapRules(rules)}, nil
}

// flatten joins the resources of a kustomization that has nothing else: only
// then are they what kustomize would make of it.
func flatten(dir string) ([]byte, error) {
	text, err := os.ReadFile(filepath.Join(dir, "kustomization.yaml"))
	if err != nil {
		return nil, err
	}
	var k struct {
		APIVersion string   `json:"apiVersion"`
		Kind       string   `json:"kind"`
		Resources  []string `json:"resources"`
	}
	if err := yaml.UnmarshalStrict(text, &k); err != nil {
		return nil, fmt.Errorf("%s: only resources can be joined to one file: %w", dir, err)
	}
	if len(k.Resources) == 0 {
		return nil, errors.New(dir + ": no resources")
	}
	var out bytes.Buffer
	fmt.Fprintf(&out, header, "base")
	for i, name := range k.Resources {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return nil, err
		}
		if i > 0 {
			out.WriteString("---\n")
		}
		out.Write(bytes.TrimSpace(text))
		out.WriteByte('\n')
	}
	return out.Bytes(), nil
}

// wrapRules puts the groups of a rule file under spec.
func wrapRules(rules []byte) []byte {
	var out bytes.Buffer
	fmt.Fprintf(&out, header+ruleHeader, "prometheus/rules.yaml")
	for line := range strings.Lines(string(rules)) {
		if strings.HasPrefix(line, "# SPDX") {
			continue
		}
		if strings.TrimSpace(line) != "" {
			out.WriteString("  ")
		}
		out.WriteString(line)
	}
	return out.Bytes()
}
