// SPDX-License-Identifier: Apache-2.0

package ebpf

import (
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

// eachNetns calls f once in every network namespace that a process is in or
// that is mounted under /run/netns, on one thread that ends afterwards.
// Namespaces that vanish meanwhile are passed over.
func eachNetns(f func()) {
	var wg sync.WaitGroup
	wg.Go(func() {
		runtime.LockOSThread() // not unlocked: the thread is spent
		seen := map[uint64]bool{}
		visitNetns("/proc/thread-self/ns/net", seen, f)
		procs, _ := os.ReadDir("/proc")
		for _, p := range procs {
			if _, err := strconv.Atoi(p.Name()); err == nil {
				visitNetns("/proc/"+p.Name()+"/ns/net", seen, f)
			}
		}
		mounted, _ := filepath.Glob("/run/netns/*")
		for _, m := range mounted {
			visitNetns(m, seen, f)
		}
	})
	wg.Wait()
}

func visitNetns(path string, seen map[uint64]bool, f func()) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil || seen[st.Ino] {
		return
	}
	seen[st.Ino] = true
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
		return
	}
	f()
}
