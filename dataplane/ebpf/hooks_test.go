// SPDX-License-Identifier: Apache-2.0

package ebpf

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestTheRootOfAHybridHierarchyHasCgroup2BelowIt(t *testing.T) {
	l := newLab(t)
	hybrid := t.TempDir()
	if err := os.Symlink(l.options.CgroupRoot, filepath.Join(hybrid, "unified")); err != nil {
		t.Fatal(err)
	}
	_, want, err := cgroupRoot(l.options)
	if err != nil {
		t.Fatal(err)
	}
	root, id, err := cgroupRoot(Options{CgroupRoot: hybrid})
	if err != nil || id != want || root != filepath.Join(hybrid, "unified") {
		t.Errorf("the cgroup root of %s is %s, number %d, error %v; want its directory unified, number %d", hybrid, root, id, err, want)
	}
	if _, _, err := cgroupRoot(Options{CgroupRoot: t.TempDir()}); err == nil || !strings.Contains(err.Error(), "--cgroup-root") {
		t.Errorf("a directory without cgroup2: error %v, want one that says --cgroup-root", err)
	}
}
