// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"fairlead.dev/podrunner/podspec"
)

// setUpEmptyDir makes an emptyDir, or finds it as it was: what containers put
// there stays.
func (m *Manager) setUpEmptyDir(pod *corev1.Pod, v *corev1.Volume, dir string, f *podspec.Facts) error {
	e := v.EmptyDir
	if e == nil {
		e = new(corev1.EmptyDirVolumeSource)
	}
	made, err := makeDir(dir)
	if err != nil {
		return err
	}
	switch {
	case e.Medium == corev1.StorageMediumDefault:
	case e.Medium == corev1.StorageMediumMemory:
		var mounted bool
		if mounted, err = m.setUpMemory(dir, memorySize(pod, e, f)); err != nil {
			return err
		}
		made = made || mounted
	case strings.HasPrefix(string(e.Medium), string(corev1.StorageMediumHugePages)):
		var mounted bool
		if mounted, err = setUpHugepages(pod, e.Medium, dir); err != nil {
			return err
		}
		made = made || mounted
	default:
		return fmt.Errorf("unknown storage medium %q", e.Medium)
	}
	if !made {
		return nil
	}
	mode := fs.FileMode(0o777)
	if e.Mode != nil {
		mode = fileMode(*e.Mode)
	}
	return own(dir, mode, fsGroup(pod), 0o660)
}

// unready is the mode of a directory that is not set up yet. No one else would
// give a directory this mode; any other mode is its users' own choice.
const unready = fs.ModeSticky

// makeDir makes a directory. made is false where it was there and set up.
func makeDir(dir string) (made bool, err error) {
	if err := os.MkdirAll(filepath.Dir(dir), 0o750); err != nil {
		return false, err
	}
	if err := os.Mkdir(dir, unready); err != nil && !errors.Is(err, fs.ErrExist) {
		return false, err
	}
	info, err := os.Lstat(dir)
	if err != nil {
		return false, err
	}
	if !info.IsDir() {
		return false, fmt.Errorf("%s is not a directory", dir)
	}
	return info.Mode() == fs.ModeDir|unready, nil
}

// setUpMemory mounts a tmpfs, or fits the size of the one that is there: the
// Pod's memory limit may have changed.
func (m *Manager) setUpMemory(dir string, size int64) (mounted bool, err error) {
	is, err := isMountPoint(dir)
	if err != nil {
		return false, err
	}
	if !is {
		return true, mountTmpfs(dir, size, 0)
	}
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		return false, err
	}
	pages := (size + s.Bsize - 1) / s.Bsize
	if size <= 0 || int64(s.Blocks) == pages {
		return false, nil
	}
	// A size below what is in use is refused by the kernel; then it stays.
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT, fmt.Sprintf("size=%d", size)); err != nil {
		m.log.Warn("the size of a volume in memory stays as it is", "dir", dir, "wanted_bytes", size, "err", err)
	}
	return false, nil
}

// memorySize is the least of the volume's sizeLimit, the Pod's memory limit
// and what the node can give; 0 where none is known.
func memorySize(pod *corev1.Pod, e *corev1.EmptyDirVolumeSource, f *podspec.Facts) int64 {
	size := f.Allocatable.Memory().Value()
	candidates := []int64{podspec.PodResources(pod, f).MemoryLimitInBytes}
	if e.SizeLimit != nil {
		candidates = append(candidates, e.SizeLimit.Value())
	}
	for _, c := range candidates {
		if c > 0 && (size == 0 || c < size) {
			size = c
		}
	}
	return size
}

func setUpHugepages(pod *corev1.Pod, medium corev1.StorageMedium, dir string) (mounted bool, err error) {
	if is, err := isMountPoint(dir); is || err != nil {
		return false, err
	}
	size, err := pageSize(pod, medium)
	if err != nil {
		return false, err
	}
	if err := unix.Mount("nodev", dir, "hugetlbfs", 0, fmt.Sprintf("pagesize=%d", size.Value())); err != nil {
		return false, fmt.Errorf("mount hugepages: %w", err)
	}
	return true, nil
}

// pageSize of a medium like HugePages-2Mi; HugePages alone is the one size
// that the Pod's containers ask for.
func pageSize(pod *corev1.Pod, medium corev1.StorageMedium) (resource.Quantity, error) {
	var lists []corev1.ResourceList
	if r := pod.Spec.Resources; r != nil {
		lists = append(lists, r.Requests, r.Limits)
	}
	for _, cs := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range cs {
			lists = append(lists, cs[i].Resources.Requests, cs[i].Resources.Limits)
		}
	}
	wanted, fixed := strings.CutPrefix(string(medium), string(corev1.StorageMediumHugePagesPrefix))
	found := map[string]resource.Quantity{}
	for _, l := range lists {
		for n := range l {
			s, ok := strings.CutPrefix(string(n), corev1.ResourceHugePagesPrefix)
			q, err := resource.ParseQuantity(s)
			if ok && err == nil && (!fixed || s == wanted) {
				found[q.String()] = q
			}
		}
	}
	if len(found) > 1 {
		return resource.Quantity{}, fmt.Errorf("medium: %s can't be used if container requests multiple huge page sizes", medium)
	}
	for _, q := range found {
		return q, nil
	}
	return resource.Quantity{}, fmt.Errorf("medium %s: hugepages are not requested by any container", medium)
}
