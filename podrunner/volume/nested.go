// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// makeNestedMountPoints makes directories in a volume that is mounted
// read-only where other volumes are mounted into it: the runtime cannot.
func makeNestedMountPoints(pod *corev1.Pod, volume, dir string) error {
	var err error
	for _, mounts := range allMounts(pod) {
		for _, outer := range mounts {
			if outer.Name != volume || outer.SubPath != "" || outer.SubPathExpr != "" {
				continue
			}
			at := path.Clean("/" + outer.MountPath)
			for _, inner := range mounts {
				rel, ok := strings.CutPrefix(path.Clean("/"+inner.MountPath), strings.TrimSuffix(at, "/")+"/")
				if ok && rel != "" {
					err = errors.Join(err, makeNested(dir, rel))
				}
			}
		}
	}
	return err
}

func allMounts(pod *corev1.Pod) (lists [][]corev1.VolumeMount) {
	for i := range pod.Spec.InitContainers {
		lists = append(lists, pod.Spec.InitContainers[i].VolumeMounts)
	}
	for i := range pod.Spec.Containers {
		lists = append(lists, pod.Spec.Containers[i].VolumeMounts)
	}
	for i := range pod.Spec.EphemeralContainers {
		lists = append(lists, pod.Spec.EphemeralContainers[i].VolumeMounts)
	}
	return lists
}

// makeNested makes a directory beneath dir where nothing is; what is there,
// a file that the volume shows, is a mount point as it is.
func makeNested(dir, rel string) error {
	if strings.HasPrefix(rel, "..") {
		return fmt.Errorf("cannot mount a volume at %s of another one", rel)
	}
	full := filepath.Join(dir, rel)
	if _, err := os.Lstat(full); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return os.MkdirAll(full, 0o755)
}
