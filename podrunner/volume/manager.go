// SPDX-License-Identifier: Apache-2.0

// Package volume makes Pods' volumes on disk, keeps their contents current
// and removes them. It is responsible for never showing a container what is
// outside of its volume, never showing it half an update, and never removing
// what was only mounted. It refuses to know when a Pod should run; what is on
// disk and in the mount table is its only state, in the kubelet's layout:
//
//	ROOT/pods/UID/volumes/kubernetes.io~KIND/NAME
//	ROOT/pods/UID/volume-subpaths/NAME/CONTAINER/INDEX
//	ROOT/pods/UID/containers/CONTAINER/RESTARTS    termination messages
//	ROOT/pods/UID/etc-hosts
package volume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"fairlead.dev/podrunner/objects"
	"fairlead.dev/podrunner/podspec"
)

// Manager keeps the volumes of all Pods of this node. Calls for one Pod wait
// for each other; calls for different Pods do not.
type Manager struct {
	root  string // ROOT/pods
	store objects.Store
	log   *slog.Logger

	mu    sync.Mutex
	locks map[types.UID]*podLock
}

type podLock struct {
	sync.Mutex
	users int
}

// New returns a Manager of the volumes below root/pods. root is absolute, in
// a mount namespace that the runtime shares.
func New(root string, store objects.Store, log *slog.Logger) *Manager {
	if log == nil {
		log = slog.Default()
	}
	return &Manager{root: filepath.Join(root, "pods"), store: store, log: log, locks: map[types.UID]*podLock{}}
}

// MountError is why one volume is not there.
type MountError struct {
	Volume string
	Err    error
}

// Error is in the words of the kubelet's FailedMount Events.
func (e *MountError) Error() string {
	return fmt.Sprintf("MountVolume.SetUp failed for volume %q : %v", e.Volume, e.Err)
}

// Unwrap returns Err.
func (e *MountError) Unwrap() error { return e.Err }

// SetUp makes all of a Pod's volumes, and brings those that are there up to
// date. It is idempotent. The error joins a *MountError for each volume that
// is not there; the others are.
func (m *Manager) SetUp(ctx context.Context, pod *corev1.Pod, f *podspec.Facts) error {
	dir, err := m.podDir(pod.UID)
	if err != nil {
		return err
	}
	defer m.lock(pod.UID)()
	m.store.Use(pod)
	if err := os.MkdirAll(filepath.Join(dir, "volumes"), 0o750); err != nil {
		return fmt.Errorf("make the directory of pod %s: %w", pod.UID, err)
	}
	return eachVolume(pod, dir, func(v *corev1.Volume, dir string) error {
		if err := m.setUp(ctx, pod, v, dir, f); err != nil {
			return &MountError{v.Name, err}
		}
		return nil
	})
}

// Refresh brings the contents of a Pod's volumes up to date with the objects
// they show, and renews tokens; called when an object changed, and about once
// a minute. Nothing is written where nothing changed. What fails keeps its
// last contents. A Pod that was not set up, or is torn down, has nothing to
// refresh.
func (m *Manager) Refresh(ctx context.Context, pod *corev1.Pod, f *podspec.Facts) error {
	dir, err := m.podDir(pod.UID)
	if err != nil {
		return err
	}
	defer m.lock(pod.UID)()
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return eachVolume(pod, dir, func(v *corev1.Volume, dir string) error {
		if !hasContent(v) {
			return nil
		}
		if err := m.fill(ctx, pod, v, dir, f); err != nil {
			return &MountError{v.Name, err}
		}
		return nil
	})
}

// eachVolume calls f for the Pod's volumes and joins what fails.
func eachVolume(pod *corev1.Pod, dir string, f func(v *corev1.Volume, dir string) error) error {
	var errs []error
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		if !safeName.MatchString(v.Name) {
			errs = append(errs, &MountError{v.Name, errors.New("the name is not a DNS label")})
			continue
		}
		if err := f(v, volumeDir(dir, v)); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func (m *Manager) setUp(ctx context.Context, pod *corev1.Pod, v *corev1.Volume, dir string, f *podspec.Facts) error {
	switch {
	case v.HostPath != nil:
		return checkHostPath(v.HostPath)
	case v.EmptyDir != nil || v.VolumeSource == (corev1.VolumeSource{}):
		return m.setUpEmptyDir(pod, v, dir, f)
	case hasContent(v):
		return m.fill(ctx, pod, v, dir, f)
	}
	return fmt.Errorf("no volume plugin matched: %s volumes are not supported", podspec.SourceName(&v.VolumeSource))
}

// safeName is what becomes one element of a path.
var safeName = regexp.MustCompile(`^[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$`)

func (m *Manager) podDir(uid types.UID) (string, error) {
	if !safeName.MatchString(string(uid)) {
		return "", fmt.Errorf("pod UID %q cannot be a directory", uid)
	}
	return filepath.Join(m.root, string(uid)), nil
}

// volumeDir is where a volume is below its Pod's directory; a hostPath is
// where it says.
func volumeDir(podDir string, v *corev1.Volume) string {
	kind := "empty-dir"
	switch {
	case v.HostPath != nil:
		return v.HostPath.Path
	case v.ConfigMap != nil:
		kind = "configmap"
	case v.Secret != nil:
		kind = "secret"
	case v.DownwardAPI != nil:
		kind = "downward-api"
	case v.Projected != nil:
		kind = "projected"
	}
	return filepath.Join(podDir, "volumes", "kubernetes.io~"+kind, v.Name)
}

// lock keeps others off a Pod; the returned function lets them in.
func (m *Manager) lock(uid types.UID) (unlock func()) {
	m.mu.Lock()
	l := m.locks[uid]
	if l == nil {
		l = new(podLock)
		m.locks[uid] = l
	}
	l.users++
	m.mu.Unlock()
	l.Lock()
	return func() {
		l.Unlock()
		m.mu.Lock()
		defer m.mu.Unlock()
		if l.users--; l.users == 0 {
			delete(m.locks, uid)
		}
	}
}

// Known returns the Pods that have something on disk: of those, who is not
// wanted any more is to be torn down.
func (m *Manager) Known() ([]types.UID, error) {
	entries, err := os.ReadDir(m.root)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list the directories of pods: %w", err)
	}
	var uids []types.UID
	for _, e := range entries {
		if e.IsDir() {
			uids = append(uids, types.UID(e.Name()))
		}
	}
	return uids, nil
}
