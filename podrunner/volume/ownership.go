// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"fmt"
	"io/fs"
	"os"
	"syscall"

	corev1 "k8s.io/api/core/v1"
)

// fsGroup returns the group that a Pod's volumes belong to, -1 for none.
func fsGroup(pod *corev1.Pod) int {
	if p := pod.Spec.SecurityContext; p != nil && p.FSGroup != nil {
		return int(*p.FSGroup)
	}
	return -1
}

// fsUser returns the user that all of a Pod's containers are said to run as,
// nil where they are not.
func fsUser(pod *corev1.Pod) *int64 {
	var user *int64
	same, first := true, true
	visit := func(s *corev1.SecurityContext) {
		u := (*int64)(nil)
		if p := pod.Spec.SecurityContext; p != nil {
			u = p.RunAsUser
		}
		if s != nil && s.RunAsUser != nil {
			u = s.RunAsUser
		}
		same = same && u != nil && (first || *u == *user)
		user, first = u, false
	}
	for i := range pod.Spec.InitContainers {
		visit(pod.Spec.InitContainers[i].SecurityContext)
	}
	for i := range pod.Spec.Containers {
		visit(pod.Spec.Containers[i].SecurityContext)
	}
	for i := range pod.Spec.EphemeralContainers {
		visit(pod.Spec.EphemeralContainers[i].SecurityContext)
	}
	if !same {
		return nil
	}
	return user
}

// own gives a directory its mode, and its group where that is not -1: the
// group gets the permissions in groupMask, may enter it, and owns what is made
// in it. The mode is set last, so a directory that has it is set up.
func own(dir string, mode fs.FileMode, group int, groupMask fs.FileMode) error {
	info, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	if group >= 0 {
		mode |= groupMask | 0o110 | fs.ModeSetgid
		if int(info.Sys().(*syscall.Stat_t).Gid) != group {
			if err := os.Lchown(dir, -1, group); err != nil {
				return fmt.Errorf("give a volume to its fsGroup: %w", err)
			}
		}
	}
	if info.Mode() == fs.ModeDir|mode {
		return nil
	}
	return os.Chmod(dir, mode)
}

// fileMode converts mode bits as the API has them (octal, with 01000, 02000
// and 04000) to Go's.
func fileMode(m int32) fs.FileMode {
	mode := fs.FileMode(m) & fs.ModePerm
	for bit, flag := range map[int32]fs.FileMode{0o1000: fs.ModeSticky, 0o2000: fs.ModeSetgid, 0o4000: fs.ModeSetuid} {
		if m&bit != 0 {
			mode |= flag
		}
	}
	return mode
}
