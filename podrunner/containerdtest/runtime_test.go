// SPDX-License-Identifier: Apache-2.0

package containerdtest

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestMain(m *testing.M) { Main(m) }

func TestAContainerRunsAndLeavesNothing(t *testing.T) {
	r := Start(t)
	conn, err := r.Dial()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	client := runtimeapi.NewRuntimeServiceClient(conn)
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()

	sandbox := &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: "p", Namespace: "default", Uid: "u"},
		LogDirectory: filepath.Join(r.LogRoot, "p"),
		Linux:        &runtimeapi.LinuxPodSandboxConfig{CgroupParent: r.CgroupRoot},
	}
	run, err := client.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: sandbox})
	if err != nil {
		t.Fatalf("run the sandbox: %v; %s", err, r.Log(2000))
	}
	created, err := client.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{
		PodSandboxId: run.PodSandboxId, SandboxConfig: sandbox,
		Config: &runtimeapi.ContainerConfig{
			Metadata: &runtimeapi.ContainerMetadata{Name: "c"}, Image: &runtimeapi.ImageSpec{Image: Image},
			Args: []string{"sleep"}, LogPath: "c.log",
		},
	})
	if err != nil {
		t.Fatalf("create the container: %v", err)
	}
	if _, err := client.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: created.ContainerId}); err != nil {
		t.Fatalf("start the container: %v; %s", err, r.Log(2000))
	}
	left := strings.Join(r.leftovers(), "\n")
	for _, want := range []string{"mount ", "link veth", "network namespace ", "cgroup ", "process containerd-shim", "process guest"} {
		if !strings.Contains(left, want) {
			t.Errorf("the leak check does not see the running Pod's %q; it sees:\n%s", want, left)
		}
	}

	r.Kill()
	if err := r.Launch(); err != nil {
		t.Fatal(err)
	}
	status, err := client.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: created.ContainerId})
	if err != nil || status.Status.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Errorf("after a restart of containerd: %v, %v, want a running container", status.GetStatus().GetState(), err)
	}
	for _, err := range r.Close() {
		t.Errorf("close: %v", err)
	}
	if _, err := os.Stat(r.Dir); !os.IsNotExist(err) {
		t.Errorf("%s is left: %v", r.Dir, err)
	}
	if err := r.writeBack(); err != nil {
		t.Fatal(err)
	}
}

// writeBack makes the directory that Start's cleanup expects.
func (r *Runtime) writeBack() error {
	if err := os.MkdirAll(r.Dir, 0o755); err != nil {
		return err
	}
	if err := r.writeConfig(); err != nil {
		return err
	}
	return r.Launch()
}
