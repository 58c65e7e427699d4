// SPDX-License-Identifier: Apache-2.0

package ebpf

import (
	"fmt"
	"os"
	"slices"
	"testing"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

func inode(t *testing.T, path string) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

func TestNamespacesAreEnteredWhereverTheyCanBeFoundNow(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: network namespaces are made")
	}
	first, second, hidden := newSpace(t), newSpace(t), newSpace(t)
	name := fmt.Sprintf("fairlead-test-%d-%d", os.Getpid(), labs.Add(1))
	at := first.mount(t, name)
	a, b, c := inode(t, first.path()), inode(t, second.path()), inode(t, hidden.path())

	var n namespaces
	check := func(when string, wanted, entered, lost []uint64) {
		t.Helper()
		var were []uint64
		got := n.in(wanted, func() { were = append(were, inode(t, "/proc/thread-self/ns/net")) })
		if !slices.Equal(were, entered) || !slices.Equal(got, lost) {
			t.Errorf("%s: of %v it entered %v and lost %v, want %v and %v", when, wanted, were, got, entered, lost)
		}
	}
	own := inode(t, "/proc/self/ns/net")
	check("nothing known", []uint64{a, b, own}, []uint64{own, a}, []uint64{b})
	check("known", []uint64{a, own}, []uint64{a, own}, nil)
	netns.DeleteNamed(name)
	second.mount(t, name)
	check(at+" leads to another", []uint64{a, b}, []uint64{b}, []uint64{a})
	check("nothing leads there", []uint64{c}, nil, []uint64{c})

	var all []uint64
	n.each(func() { all = append(all, inode(t, "/proc/thread-self/ns/net")) })
	slices.Sort(all)
	if !slices.Contains(all, b) || !slices.Contains(all, own) || slices.Contains(all, a) || len(slices.Compact(slices.Clone(all))) != len(all) {
		t.Errorf("it visited %v, want each once, with %d and %d, and not %d", all, b, own, a)
	}
}
