// SPDX-License-Identifier: Apache-2.0

package resilience

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// watchForLeftovers fails the test where, after all its cleanup, something of
// it is still there. It must be called before what it watches is made.
func watchForLeftovers(t *testing.T) {
	t.Helper()
	t.Cleanup(func() {
		var left []string
		for range 500 { // killed processes take a moment
			if left = leftovers(); len(left) == 0 {
				return
			}
			time.Sleep(20 * time.Millisecond)
		}
		t.Errorf("left behind:\n  %s", strings.Join(left, "\n  "))
	})
}

// leftovers are processes, mounts, directories and cgroups of this test binary.
// Network namespaces have no names here: they end with their processes.
func leftovers() (left []string) {
	mine := "fairlead-test-" + strconv.Itoa(os.Getpid()) + "-"
	mounts, _ := os.ReadFile("/proc/self/mounts")
	for line := range strings.Lines(string(mounts)) {
		f := strings.Fields(line)
		if strings.Contains(line, mine) {
			left = append(left, "mount "+f[1])
		}
		if f[2] == "cgroup2" {
			dirs, _ := filepath.Glob(filepath.Join(f[1], mine+"*"))
			for _, d := range dirs {
				left = append(left, "cgroup "+d)
			}
		}
	}
	for _, pattern := range []string{mine + "*", "fairlead-resilience-" + strconv.Itoa(os.Getpid()) + "-*"} {
		dirs, _ := filepath.Glob(filepath.Join(os.TempDir(), pattern))
		for _, d := range dirs {
			left = append(left, "directory "+d)
		}
	}
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, path := range stats {
		text, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		// proc_pid_stat(5): pid (comm) state ppid ...
		end := strings.LastIndexByte(string(text), ')')
		if f := strings.Fields(string(text[end+1:])); len(f) > 1 && f[1] == strconv.Itoa(os.Getpid()) {
			left = append(left, "process "+string(text[:end+1]))
		}
	}
	return left
}

// hook is a place where a program of fairlead can be attached.
type hook struct {
	name string
	at   ebpf.AttachType
	dir  string // a cgroup, or
	dev  int    // a device's index, on a thread in the node's namespace
}

// attached counts the programs at every hook of node1, by the hook's name.
func (b *bed) attached() (count map[string]int, programs []ebpf.ProgramID, err error) {
	count = map[string]int{}
	err = b.thread.Do(func() error {
		hooks, err := b.hooks()
		if err != nil {
			return err
		}
		for _, h := range hooks {
			ids, err := h.query()
			if err != nil {
				return err
			}
			count[h.name] = len(ids)
			programs = append(programs, ids...)
		}
		return nil
	})
	slices.Sort(programs)
	return count, slices.Compact(programs), err
}

func (b *bed) hooks() ([]hook, error) {
	hooks := []hook{
		{name: "connect4", at: ebpf.AttachCGroupInet4Connect}, {name: "connect6", at: ebpf.AttachCGroupInet6Connect},
		{name: "sendmsg4", at: ebpf.AttachCGroupUDP4Sendmsg}, {name: "sendmsg6", at: ebpf.AttachCGroupUDP6Sendmsg},
		{name: "recvmsg4", at: ebpf.AttachCGroupUDP4Recvmsg}, {name: "recvmsg6", at: ebpf.AttachCGroupUDP6Recvmsg},
		{name: "getpeername4", at: ebpf.AttachCgroupInet4GetPeername}, {name: "getpeername6", at: ebpf.AttachCgroupInet6GetPeername},
	}
	for i := range hooks {
		hooks[i].dir = b.node.CgroupRoot
	}
	devices, err := os.ReadDir("/proc/thread-self/net/dev_snmp6")
	if err != nil {
		return nil, fmt.Errorf("list devices: %w", err)
	}
	for _, d := range devices {
		if d.Name() == "lo" {
			continue
		}
		text, err := os.ReadFile("/proc/thread-self/net/dev_snmp6/" + d.Name())
		if err != nil {
			return nil, err
		}
		f := strings.Fields(string(text)) // ifIndex N ...
		index, err := strconv.Atoi(f[1])
		if err != nil {
			return nil, fmt.Errorf("index of %s: %w", d.Name(), err)
		}
		hooks = append(hooks, hook{name: d.Name() + " ingress", at: ebpf.AttachTCXIngress, dev: index},
			hook{name: d.Name() + " egress", at: ebpf.AttachTCXEgress, dev: index})
	}
	return hooks, nil
}

func (h hook) query() (ids []ebpf.ProgramID, err error) {
	o := link.QueryOptions{Target: h.dev, Attach: h.at}
	if h.dir != "" {
		dir, err := os.Open(h.dir)
		if err != nil {
			return nil, err
		}
		defer dir.Close()
		o.Target = int(dir.Fd())
	}
	r, err := link.QueryPrograms(o)
	if err != nil {
		return nil, fmt.Errorf("query %s: %w", h.name, err)
	}
	for _, p := range r.Programs {
		ids = append(ids, p.ID)
	}
	return ids, nil
}

// onePerHook says where not exactly want programs are attached.
func onePerHook(count map[string]int, want int) (wrong []string) {
	for name, n := range count {
		if n != want {
			wrong = append(wrong, fmt.Sprintf("%s has %d programs, want %d", name, n, want))
		}
	}
	slices.Sort(wrong)
	return wrong
}

// pins are all files below node1's bpffs, sorted.
func (b *bed) pins() (pins []string, err error) {
	err = filepath.WalkDir(b.node.BPFFS, func(path string, _ fs.DirEntry, err error) error {
		// Every bpffs has maps.debug and progs.debug of its own.
		if path != b.node.BPFFS && !strings.HasSuffix(path, ".debug") {
			pins = append(pins, strings.TrimPrefix(path, b.node.BPFFS+"/"))
		}
		return err
	})
	slices.Sort(pins)
	return pins, err
}

// loaded are those of the programs that the kernel still has.
func loaded(ids []ebpf.ProgramID) (there []ebpf.ProgramID) {
	for _, id := range ids {
		p, err := ebpf.NewProgramFromID(id)
		if err == nil {
			p.Close()
		}
		if !errors.Is(err, unix.ENOENT) && !errors.Is(err, os.ErrNotExist) {
			there = append(there, id)
		}
	}
	return there
}
