// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"fairlead.dev/podrunner/podspec"
)

// hostsMount writes the Pod's /etc/hosts, in place so that running containers
// see it; none where the container mounts its own.
func (m *Manager) hostsMount(pod *corev1.Pod, c *corev1.Container, dir string, f *podspec.Facts) ([]*runtimeapi.Mount, error) {
	for _, vm := range c.VolumeMounts {
		if path.Clean("/"+vm.MountPath) == "/etc/hosts" {
			return nil, nil
		}
	}
	content, err := podspec.Hosts(pod, f)
	if content == nil || err != nil {
		return nil, err
	}
	file := filepath.Join(dir, "etc-hosts")
	if old, err := os.ReadFile(file); err != nil || !bytes.Equal(old, content) {
		if err := os.MkdirAll(dir, 0o750); err != nil {
			return nil, err
		}
		if err := os.WriteFile(file, content, 0o644); err != nil {
			return nil, fmt.Errorf("write the hosts file: %w", err)
		}
		if err := os.Chmod(file, 0o644); err != nil {
			return nil, err
		}
	}
	return []*runtimeapi.Mount{{ContainerPath: "/etc/hosts", HostPath: file, SelinuxRelabel: selinuxEnabled()}}, nil
}

// TerminationLog returns the host path of the file that a container writes
// its termination message to; restarts is its RestartCount.
func (m *Manager) TerminationLog(uid types.UID, container string, restarts int) string {
	return filepath.Join(m.root, string(uid), "containers", container, strconv.Itoa(restarts))
}

// terminationMount makes the file empty, and open to any user of the
// container; it is reached through no directory of others.
func (m *Manager) terminationMount(pod *corev1.Pod, c *corev1.Container, restarts int) ([]*runtimeapi.Mount, error) {
	if c.TerminationMessagePath == "" {
		return nil, nil
	}
	if !safeName.MatchString(c.Name) {
		return nil, fmt.Errorf("container name %q cannot be a directory", c.Name)
	}
	file := m.TerminationLog(pod.UID, c.Name, restarts)
	if err := os.MkdirAll(filepath.Dir(file), 0o750); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(file, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o666)
	if err != nil {
		return nil, fmt.Errorf("make the termination log: %w", err)
	}
	if err := errors.Join(f.Chmod(0o666), f.Close()); err != nil {
		return nil, fmt.Errorf("make the termination log: %w", err)
	}
	return []*runtimeapi.Mount{{ContainerPath: c.TerminationMessagePath, HostPath: file, SelinuxRelabel: selinuxEnabled()}}, nil
}

// ForgetTerminationLog removes the file of a container that is gone; it is
// not an error where there is none.
func (m *Manager) ForgetTerminationLog(uid types.UID, container string, restarts int) error {
	if _, err := m.podDir(uid); err != nil || !safeName.MatchString(container) {
		return err
	}
	if err := os.Remove(m.TerminationLog(uid, container, restarts)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// maxEnvFile is the most that is read of a file of environment variables.
const maxEnvFile = 1 << 20 // bytes

// EnvFile returns what reads a file of one of the Pod's volumes, for
// fileKeyRef. Containers may have written it: no link leads out of the volume,
// and what is no regular file or over 1 MiB is an error.
func (m *Manager) EnvFile(pod *corev1.Pod) podspec.EnvFile {
	return func(name, path string) ([]byte, error) {
		dir, err := m.podDir(pod.UID)
		if err != nil {
			return nil, err
		}
		v := findVolume(pod, name)
		if v == nil {
			return nil, fmt.Errorf("cannot find the volume %q referenced by FileKeyRef", name)
		}
		root, err := os.OpenFile(volumeDir(dir, v), unix.O_PATH|unix.O_DIRECTORY, 0)
		if err != nil {
			return nil, fmt.Errorf("open volume %q: %w", name, errors.Unwrap(err))
		}
		defer root.Close()
		f, err := openIn(root, strings.TrimLeft(path, "/"), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, beneath)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() || info.Size() > maxEnvFile {
			return nil, fmt.Errorf("%s is not a regular file of at most %d bytes", path, maxEnvFile)
		}
		return io.ReadAll(io.LimitReader(f, maxEnvFile))
	}
}

// selinuxEnabled says whether files must be labelled for containers.
var selinuxEnabled = sync.OnceValue(func() bool {
	var s unix.Statfs_t
	return unix.Statfs("/sys/fs/selinux", &s) == nil && s.Type == unix.SELINUX_MAGIC
})
