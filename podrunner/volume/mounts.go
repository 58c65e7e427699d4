// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"context"
	"fmt"
	"path/filepath"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"fairlead.dev/podrunner/podspec"
)

// Mounts returns what is mounted into a container: its volumes and subPaths,
// /etc/hosts and the file for its termination message. It is called before
// each start of the container, restarts being its RestartCount then, and after
// SetUp. Errors are *podspec.Refused.
func (m *Manager) Mounts(ctx context.Context, pod *corev1.Pod, c *corev1.Container, restarts int, f *podspec.Facts) ([]*runtimeapi.Mount, error) {
	dir, err := m.podDir(pod.UID)
	if err != nil {
		return nil, refused(err)
	}
	defer m.lock(pod.UID)()
	b := mounter{ctx: ctx, manager: m, pod: pod, container: c, facts: f, dir: dir}
	list, err := b.mounts()
	if err != nil {
		return nil, refused(err)
	}
	hosts, err := m.hostsMount(pod, c, dir, f)
	if err != nil {
		return nil, refused(err)
	}
	termination, err := m.terminationMount(pod, c, restarts)
	if err != nil {
		return nil, refused(err)
	}
	return append(append(list, hosts...), termination...), nil
}

func refused(err error) error {
	return &podspec.Refused{Reason: podspec.ReasonContainerConfig, Message: err.Error(), Err: err}
}

type mounter struct {
	ctx       context.Context
	manager   *Manager
	pod       *corev1.Pod
	container *corev1.Container
	facts     *podspec.Facts
	dir       string
	env       []podspec.EnvVar // where a subPathExpr needs it
}

func (b *mounter) mounts() ([]*runtimeapi.Mount, error) {
	var list []*runtimeapi.Mount
	for i := range b.container.VolumeMounts {
		m, err := b.mount(i, &b.container.VolumeMounts[i])
		if err != nil {
			return nil, err
		}
		list = append(list, m)
	}
	return list, nil
}

func (b *mounter) mount(index int, vm *corev1.VolumeMount) (*runtimeapi.Mount, error) {
	v := findVolume(b.pod, vm.Name)
	if v == nil {
		return nil, fmt.Errorf("cannot find volume %q to mount into container %q", vm.Name, b.container.Name)
	}
	m := &runtimeapi.Mount{
		ContainerPath:  vm.MountPath,
		HostPath:       volumeDir(b.dir, v),
		Readonly:       vm.ReadOnly || hasContent(v),
		SelinuxRelabel: v.HostPath == nil && selinuxEnabled(),
		MountOptions:   vm.BindMountOptions,
	}
	if !filepath.IsAbs(m.ContainerPath) {
		m.ContainerPath = "/" + m.ContainerPath
	}
	var err error
	if m.Propagation, err = propagation(vm.MountPropagation); err != nil {
		return nil, err
	}
	if m.RecursiveReadOnly, err = b.recursiveReadOnly(vm); err != nil {
		return nil, fmt.Errorf("failed to resolve recursive read-only mode: %w", err)
	}
	if len(vm.BindMountOptions) > 0 && !b.facts.Features.MountOptions {
		return nil, fmt.Errorf("volume %q requested bind mount options, but they are not supported by the runtime", vm.Name)
	}
	sub, err := b.subPath(vm)
	if sub == "" || err != nil {
		return m, err
	}
	m.HostPath, err = b.bindSubPath(index, vm.Name, m.HostPath, sub)
	return m, err
}

// subPath of a mount, "" for the whole volume.
func (b *mounter) subPath(vm *corev1.VolumeMount) (string, error) {
	if vm.SubPathExpr == "" {
		return vm.SubPath, nil
	}
	if b.env == nil {
		env, err := podspec.Env(b.ctx, b.pod, b.container, b.facts, b.manager.store, b.manager.EnvFile(b.pod))
		if err != nil {
			return "", err
		}
		b.env = env
	}
	return podspec.ExpandSubPath(vm.SubPathExpr, b.env)
}

// bindSubPath mounts a subPath where only root reaches it, so that what the
// runtime is given is not a path that a container can change.
func (b *mounter) bindSubPath(index int, name, volume, sub string) (string, error) {
	if !safeName.MatchString(b.container.Name) {
		return "", fmt.Errorf("container name %q cannot be a directory", b.container.Name)
	}
	// What the host has where is not the Pod's to know: no details.
	f, err := openSubPath(volume, sub)
	if err != nil {
		b.manager.log.Warn("subPath not opened", "pod", b.pod.Namespace+"/"+b.pod.Name, "volume", name, "err", err)
		return "", fmt.Errorf("failed to prepare subPath for volumeMount %q of container %q", name, b.container.Name)
	}
	defer f.Close()
	target := filepath.Join(b.dir, "volume-subpaths", name, b.container.Name, strconv.Itoa(index))
	if err := bind(f, target); err != nil {
		b.manager.log.Warn("subPath not mounted", "pod", b.pod.Namespace+"/"+b.pod.Name, "volume", name, "err", err)
		return "", fmt.Errorf("failed to prepare subPath for volumeMount %q of container %q", name, b.container.Name)
	}
	return target, nil
}

func (b *mounter) recursiveReadOnly(vm *corev1.VolumeMount) (bool, error) {
	if vm.RecursiveReadOnly == nil || *vm.RecursiveReadOnly == corev1.RecursiveReadOnlyDisabled {
		return false, nil
	}
	if !vm.ReadOnly {
		return false, fmt.Errorf("volume %q requested recursive read-only mode, but it is not read-only", vm.Name)
	}
	if p := vm.MountPropagation; p != nil && *p != corev1.MountPropagationNone {
		return false, fmt.Errorf("volume %q requested recursive read-only mode, but it is not compatible with propagation %q", vm.Name, *p)
	}
	handler, err := podspec.Handler(b.pod, b.facts)
	if err != nil {
		return false, err
	}
	can := b.facts.Features.RecursiveReadOnly[handler]
	switch *vm.RecursiveReadOnly {
	case corev1.RecursiveReadOnlyIfPossible:
		return can, nil
	case corev1.RecursiveReadOnlyEnabled:
		if !can {
			return false, fmt.Errorf("volume %q requested recursive read-only mode, but it is not supported by the runtime", vm.Name)
		}
		return true, nil
	}
	return false, fmt.Errorf("unknown recursive read-only mode %q", *vm.RecursiveReadOnly)
}

func propagation(mode *corev1.MountPropagationMode) (runtimeapi.MountPropagation, error) {
	switch {
	case mode == nil || *mode == corev1.MountPropagationNone:
		return runtimeapi.MountPropagation_PROPAGATION_PRIVATE, nil
	case *mode == corev1.MountPropagationHostToContainer:
		return runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER, nil
	case *mode == corev1.MountPropagationBidirectional:
		return runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL, nil
	}
	return 0, fmt.Errorf("invalid MountPropagation mode: %q", *mode)
}

func findVolume(pod *corev1.Pod, name string) *corev1.Volume {
	for i := range pod.Spec.Volumes {
		if pod.Spec.Volumes[i].Name == name {
			return &pod.Spec.Volumes[i]
		}
	}
	return nil
}
