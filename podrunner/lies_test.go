// SPDX-License-Identifier: Apache-2.0

package podrunner

import (
	"context"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestWhatTheRuntimeLosesIsMadeAgain(t *testing.T) {
	g := newRig(t)
	conn, err := g.rt.Dial()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	client := runtimeapi.NewRuntimeServiceClient(conn)
	key := g.pod(`
metadata: {name: p}
spec:
  terminationGracePeriodSeconds: 2
  initContainers: [{name: i, image: IMAGE, args: [exit, "0"]}]
  containers: [{name: c, image: IMAGE, args: [sleep]}]`)
	never := g.pod(`
metadata: {name: never}
spec: {restartPolicy: Never, terminationGracePeriodSeconds: 2, containers: [{name: c, image: IMAGE, args: [sleep]}]}`)
	g.await(key, "ready", ready)
	g.await(never, "ready", ready)

	sandbox := func() string {
		id, err := g.r.SandboxID(key)
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	gone := func(old string) func(*corev1.PodStatus) bool {
		return func(s *corev1.PodStatus) bool {
			id, err := g.r.SandboxID(key)
			return err == nil && id != old && ready(s)
		}
	}
	first := sandbox()
	insist(t, func() error {
		_, err := client.RemovePodSandbox(context.Background(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: first})
		return err
	})
	s := g.await(key, "it runs again after its sandbox was removed, with all in it", gone(first))
	// The runtime removes a sandbox step by step; a container may have been
	// started in it again meanwhile: each restart is one that was made. The first
	// that were made of both are none.
	made := func() int32 { return int32(len(g.order("p", "Created"))) - 2 }
	restarts := s.ContainerStatuses[0].RestartCount
	if restarts < 1 || restarts > made() {
		t.Errorf("%d restarts, want 1 to %d", restarts, made())
	}
	second := sandbox()
	insist(t, func() error {
		_, err := client.StopPodSandbox(context.Background(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: second})
		return err
	})
	s = g.await(key, "it runs again after its sandbox was stopped", gone(second))
	if n := s.ContainerStatuses[0].RestartCount; n <= restarts || n > made() {
		t.Errorf("%d restarts after %d, want more, and %d at most", n, restarts, made())
	}
	id, _, err := g.r.Container(key, "", "c", false)
	if err != nil {
		t.Fatal(err)
	}
	insist(t, func() error {
		_, err := client.RemoveContainer(context.Background(), &runtimeapi.RemoveContainerRequest{ContainerId: id})
		return err
	})
	g.await(key, "it runs again after its container was removed", func(s *corev1.PodStatus) bool {
		now, _, err := g.r.Container(key, "", "c", false)
		return err == nil && now != id && ready(s)
	})

	other, err := g.r.SandboxID(never)
	if err != nil {
		t.Fatal(err)
	}
	insist(t, func() error {
		_, err := client.StopPodSandbox(context.Background(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: other})
		return err
	})
	g.await(never, "what is never restarted has failed", func(s *corev1.PodStatus) bool { return s.Phase == corev1.PodFailed })
}

// insist repeats what the runtime refuses while it works on the same container
// ("is in starting state"), or takes the same network apart ("no such device"):
// the Runner is faster than this test.
func insist(t *testing.T, call func() error) {
	t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		err := call()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
	}
}
