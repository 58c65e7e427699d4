// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// checkHostPath holds what is at a hostPath against its type, and makes what
// the ...OrCreate types ask for.
func checkHostPath(h *corev1.HostPathVolumeSource) error {
	if slices.Contains(strings.Split(h.Path, "/"), "..") {
		return fmt.Errorf("invalid HostPath `%s`: must not contain '..'", h.Path)
	}
	t := corev1.HostPathUnset
	if h.Type != nil {
		t = *h.Type
	}
	info, err := os.Stat(h.Path)
	if errors.Is(err, fs.ErrNotExist) {
		switch t {
		case corev1.HostPathDirectoryOrCreate:
			err = makeHostDir(h.Path)
		case corev1.HostPathFileOrCreate:
			err = makeHostFile(h.Path)
		}
		if err == nil {
			info, err = os.Stat(h.Path)
		}
	}
	want, ok := hostPathTypes[t]
	switch {
	case t == corev1.HostPathUnset:
		return nil
	case !ok:
		return fmt.Errorf("%s is an invalid volume type", t)
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("hostPath type check failed: %w", err)
	case err != nil || info.Mode().Type() != want.mode:
		return fmt.Errorf("hostPath type check failed: %s is not a %s", h.Path, want.name)
	}
	return nil
}

var hostPathTypes = map[corev1.HostPathType]struct {
	mode fs.FileMode
	name string
}{
	corev1.HostPathDirectoryOrCreate: {fs.ModeDir, "directory"},
	corev1.HostPathDirectory:         {fs.ModeDir, "directory"},
	corev1.HostPathFileOrCreate:      {0, "file"},
	corev1.HostPathFile:              {0, "file"},
	corev1.HostPathSocket:            {fs.ModeSocket, "socket file"},
	corev1.HostPathCharDev:           {fs.ModeDevice | fs.ModeCharDevice, "character device"},
	corev1.HostPathBlockDev:          {fs.ModeDevice, "block device"},
}

func makeHostDir(path string) error {
	if err := os.MkdirAll(path, 0o755); err != nil {
		return err
	}
	return os.Chmod(path, 0o755)
}

func makeHostFile(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY, 0o644)
	if err != nil {
		return err
	}
	return errors.Join(f.Chmod(0o644), f.Close())
}
