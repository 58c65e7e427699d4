// SPDX-License-Identifier: Apache-2.0

package containerdtest

import (
	"context"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Bare starts Pods with the least calls that a runtime needs, for benchmarks: a
// sandbox, a container, its start.
type Bare struct {
	rt     *Runtime
	client runtimeapi.RuntimeServiceClient
}

// NewBare connects to the Runtime until the end of the test.
func (r *Runtime) NewBare(t testing.TB) *Bare {
	t.Helper()
	conn, err := r.Dial()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return &Bare{r, runtimeapi.NewRuntimeServiceClient(conn)}
}

// Start starts a Pod of one container of Image that sleeps. It says what the
// calls took, and gives the sandbox for Remove.
func (b *Bare) Start(ctx context.Context, name string) (sandbox string, took time.Duration, err error) {
	config := &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: name, Namespace: "default", Uid: name}, LogDirectory: filepath.Join(b.rt.Dir, name),
		Linux: &runtimeapi.LinuxPodSandboxConfig{CgroupParent: b.rt.CgroupRoot + "/kubepods/burstable"},
	}
	return b.StartAs(ctx, config, &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: "c"}, Image: &runtimeapi.ImageSpec{Image: Image},
		Args: []string{"sleep"}, LogPath: "c.log", Linux: &runtimeapi.LinuxContainerConfig{Resources: &runtimeapi.LinuxContainerResources{CpuShares: 10}},
	})
}

// StartAs starts what the configurations say, by the same calls.
func (b *Bare) StartAs(ctx context.Context, config *runtimeapi.PodSandboxConfig, c *runtimeapi.ContainerConfig) (sandbox string, took time.Duration, err error) {
	name := config.Metadata.Name
	begin := time.Now()
	run, err := b.client.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: config})
	if err != nil {
		return "", 0, fmt.Errorf("run the sandbox of %s: %w", name, err)
	}
	created, err := b.client.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: run.PodSandboxId, SandboxConfig: config, Config: c})
	if err != nil {
		return run.PodSandboxId, 0, fmt.Errorf("create the container of %s: %w", name, err)
	}
	if _, err := b.client.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: created.ContainerId}); err != nil {
		return run.PodSandboxId, 0, fmt.Errorf("start the container of %s: %w", name, err)
	}
	return run.PodSandboxId, time.Since(begin), nil
}

// Remove ends what Start started.
func (b *Bare) Remove(ctx context.Context, sandbox string) error {
	if _, err := b.client.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: sandbox}); err != nil {
		return fmt.Errorf("stop a sandbox: %w", err)
	}
	if _, err := b.client.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: sandbox}); err != nil {
		return fmt.Errorf("remove a sandbox: %w", err)
	}
	return nil
}
