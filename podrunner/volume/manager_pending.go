// SPDX-License-Identifier: Apache-2.0

// Package volume makes Pods' volumes on disk.
package volume

import (
	"context"
	"log/slog"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"fairlead.dev/podrunner/objects"
	"fairlead.dev/podrunner/podspec"
)

// Manager keeps the volumes of all Pods of this node. It holds no state that
// is not on disk: everything is found again after a restart.
type Manager struct {
	root    string
	objects objects.Store
	log     *slog.Logger
}

// New returns a Manager of the volumes below root/pods.
func New(root string, store objects.Store, log *slog.Logger) *Manager {
	return &Manager{root: root, objects: store, log: log}
}

// SetUp makes all of a Pod's volumes. It is idempotent; the error says why in
// the words of the kubelet's FailedMount Events.
func (m *Manager) SetUp(ctx context.Context, pod *corev1.Pod, f *podspec.Facts) error { return nil }

// Refresh brings the contents of a Pod's volumes up to date with the objects
// they show and renews tokens. It is cheap where nothing changed.
func (m *Manager) Refresh(ctx context.Context, pod *corev1.Pod, f *podspec.Facts) error { return nil }

// Mounts returns what is mounted into a container: its volumes, subPaths,
// /etc/hosts and the termination log. It is called for each start of it.
func (m *Manager) Mounts(ctx context.Context, pod *corev1.Pod, c *corev1.Container, restarts int, f *podspec.Facts) ([]*runtimeapi.Mount, error) {
	return nil, nil
}

// TerminationLog returns the host path of a container's termination message.
func (m *Manager) TerminationLog(uid types.UID, container string, restarts int) string { return "" }

// EnvFile reads a file of one of the Pod's volumes (fileKeyRef), for
// podspec.ContainerInput.
func (m *Manager) EnvFile(pod *corev1.Pod) func(volume, path string) ([]byte, error) { return nil }

// TearDown unmounts and removes all that a Pod has on disk. No container of
// it may run. It is idempotent, and never removes what is mounted from
// elsewhere: a mount that cannot be ended is an error.
func (m *Manager) TearDown(ctx context.Context, uid types.UID) error { return nil }

// Known returns the Pods that have something on disk.
func (m *Manager) Known() ([]types.UID, error) { return nil, nil }

// Usage returns the bytes used of each volume that lives on this node's disk
// or memory (emptyDir and what is written from objects), by volume name.
func (m *Manager) Usage(uid types.UID) (map[string]int64, error) { return nil, nil }
