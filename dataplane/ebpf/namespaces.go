// SPDX-License-Identifier: Apache-2.0

package ebpf

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"

	"fairlead.dev/dataplane/nsthread"
)

// namespaces finds the machine's network namespaces: those that a process is in
// and those that are mounted under /run/netns. It remembers where it saw each.
type namespaces struct {
	mu    sync.Mutex
	paths map[uint64]string // by inode number
}

// each calls f once in every namespace, on one thread that ends afterwards.
// Namespaces that vanish meanwhile are passed over.
func (n *namespaces) each(f func()) {
	seen := map[uint64]string{}
	_ = nsthread.Run(func() error {
		eachNetnsPath(func(path string, inode uint64) bool {
			if _, again := seen[inode]; !again && inNetns(path, inode, f) {
				seen[inode] = path
			}
			return true
		})
		return nil
	})
	n.mu.Lock()
	defer n.mu.Unlock()
	n.paths = seen
}

// in calls f once in each of some namespaces, and tells those that it could not
// enter. It looks where they were seen last, and else until it has them all.
func (n *namespaces) in(inodes []uint64, f func()) (lost []uint64) {
	n.mu.Lock()
	known := maps.Clone(n.paths)
	n.mu.Unlock()
	found := map[uint64]string{}
	_ = nsthread.Run(func() error {
		for _, inode := range inodes {
			if path, ok := known[inode]; !ok || !inNetns(path, inode, f) {
				lost = append(lost, inode)
			}
		}
		if len(lost) == 0 {
			return nil
		}
		eachNetnsPath(func(path string, inode uint64) bool {
			if i := slices.Index(lost, inode); i >= 0 && inNetns(path, inode, f) {
				lost = slices.Delete(lost, i, i+1)
				found[inode] = path
			}
			return len(lost) > 0
		})
		return nil
	})
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.paths == nil {
		n.paths = map[uint64]string{}
	}
	maps.Copy(n.paths, found)
	return lost
}

// eachNetnsPath calls f for every path that leads to a network namespace, also
// for several to the same, until it returns false.
func eachNetnsPath(f func(path string, inode uint64) bool) {
	visit := func(path string) bool {
		var st unix.Stat_t
		return unix.Stat(path, &st) != nil || f(path, st.Ino)
	}
	if !visit("/proc/self/ns/net") {
		return
	}
	mounted, _ := filepath.Glob("/run/netns/*")
	for _, path := range mounted {
		if !visit(path) {
			return
		}
	}
	procs, _ := os.ReadDir("/proc")
	for _, p := range procs {
		if _, err := strconv.Atoi(p.Name()); err == nil && !visit("/proc/"+p.Name()+"/ns/net") {
			return
		}
	}
}

// inNetns calls f in the namespace, if it is what the path still leads to, and
// leaves the thread there.
func inNetns(path string, inode uint64, f func()) bool {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Ino != inode {
		return false
	}
	if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
		return false
	}
	f()
	return true
}
