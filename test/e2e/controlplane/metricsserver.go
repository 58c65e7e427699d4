// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

const metricsServerModule = "sigs.k8s.io/metrics-server"

// MetricsServerManifests is the directory with the kustomization that
// metrics-server's release has for its own installation, kept where the program
// is: tests run without the module cache.
func MetricsServerManifests() (string, error) {
	program, err := MetricsServer.Path()
	if err != nil {
		return "", err
	}
	return manifestsOf(program), nil
}

func manifestsOf(program string) string { return program + "-manifests" }

// copyManifests keeps those of the module that the program was built from.
func copyManifests(ctx context.Context, dir, program string) error {
	cmd := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", metricsServerModule)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), "GOWORK=off")
	out, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("find module %s: %w", metricsServerModule, err)
	}
	to := manifestsOf(program)
	if err := os.RemoveAll(to); err != nil {
		return err
	}
	return os.CopyFS(to, os.DirFS(filepath.Join(strings.TrimSpace(string(out)), "manifests", "base")))
}
