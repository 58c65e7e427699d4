// SPDX-License-Identifier: Apache-2.0

package ebpf

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"fairlead.dev/bpf"
)

// socketHook is one program and where in a cgroup it goes.
type socketHook struct {
	name    string
	attach  ebpf.AttachType
	program *ebpf.Program
}

func socketHooks(p *bpf.FairleadPrograms) []socketHook {
	return []socketHook{
		// recvmsg and getpeername first: an answer must never be seen
		// untranslated because its question was translated already.
		{"recvmsg4", ebpf.AttachCGroupUDP4Recvmsg, p.FairleadRecvmsg4},
		{"recvmsg6", ebpf.AttachCGroupUDP6Recvmsg, p.FairleadRecvmsg6},
		{"getpeername4", ebpf.AttachCgroupInet4GetPeername, p.FairleadGetpeername4},
		{"getpeername6", ebpf.AttachCgroupInet6GetPeername, p.FairleadGetpeername6},
		{"sendmsg4", ebpf.AttachCGroupUDP4Sendmsg, p.FairleadSendmsg4},
		{"sendmsg6", ebpf.AttachCGroupUDP6Sendmsg, p.FairleadSendmsg6},
		{"connect4", ebpf.AttachCGroupInet4Connect, p.FairleadConnect4},
		{"connect6", ebpf.AttachCGroupInet6Connect, p.FairleadConnect6},
	}
}

// attachSocketHooks attaches each program to the cgroup, or replaces the one
// that a pinned link holds there, atomically.
func attachSocketHooks(o Options, p *bpf.FairleadPrograms) error {
	root, id, err := cgroupRoot(o)
	if err != nil {
		return err
	}
	for _, h := range socketHooks(p) {
		if err := attachSocketHook(filepath.Join(o.pinDir(), "links", h.name), root, id, h); err != nil {
			return fmt.Errorf("attach %s to cgroup %s: %w", h.name, root, err)
		}
	}
	return nil
}

func attachSocketHook(pin, root string, cgroup uint64, h socketHook) error {
	done, err := replaceProgram(pin, h.program, func(i *link.Info) bool {
		c := i.Cgroup()
		return c != nil && c.CgroupId == cgroup
	})
	if err != nil || done {
		return err
	}
	l, err := link.AttachCgroup(link.CgroupOptions{Path: root, Attach: h.attach, Program: h.program})
	if err != nil {
		return err
	}
	defer l.Close()
	return l.Pin(pin)
}

// replaceProgram puts a program into the pinned link, if there is one and
// wanted says that it is where it should be. A link that is elsewhere is
// detached; done is false then.
func replaceProgram(pin string, p *ebpf.Program, wanted func(*link.Info) bool) (done bool, err error) {
	l, err := link.LoadPinnedLink(pin, nil)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("open pinned link %s: %w", pin, err)
	}
	defer l.Close()
	info, err := l.Info()
	if err != nil {
		return false, fmt.Errorf("read pinned link %s: %w", pin, err)
	}
	if wanted(info) {
		if err := l.Update(p); err != nil {
			return false, fmt.Errorf("replace program of %s: %w", pin, err)
		}
		return true, nil
	}
	if err := l.Unpin(); err != nil {
		return false, fmt.Errorf("unpin link %s: %w", pin, err)
	}
	return false, nil
}

// cgroupRoot is the directory that gets the hooks. Where it is that of a
// machine with cgroup version 1, version 2 is mounted in its directory unified
// (systemd's hybrid hierarchy).
func cgroupRoot(o Options) (root string, id uint64, err error) {
	if root = o.CgroupRoot; root == "" {
		if root, err = findCgroup2(); err != nil {
			return "", 0, err
		}
	}
	if id, err = cgroupID(root); err == nil {
		return root, id, nil
	}
	hybrid := filepath.Join(root, "unified")
	if id, hybridErr := cgroupID(hybrid); hybridErr == nil {
		return hybrid, id, nil
	}
	return root, 0, fmt.Errorf("cgroup root %s: %w: give the cgroup2 directory with --cgroup-root", root, err)
}

// cgroupID is the kernel's number of a cgroup2 directory: its inode.
func cgroupID(path string) (uint64, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(path, &fs); err != nil {
		return 0, err
	}
	if fs.Type != unix.CGROUP2_SUPER_MAGIC {
		return 0, errors.New("not in a cgroup2 file system")
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, err
	}
	return st.Ino, nil
}

// findCgroup2 returns the first cgroup2 mount.
func findCgroup2() (string, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return "", err
	}
	defer f.Close()
	s := bufio.NewScanner(f)
	for s.Scan() {
		// proc_pid_mountinfo(5): "... root mountpoint ... - fstype ..."
		before, after, ok := strings.Cut(s.Text(), " - ")
		fields := strings.Fields(before)
		if ok && len(fields) > 4 && strings.HasPrefix(after, "cgroup2 ") {
			return fields[4], nil
		}
	}
	if err := s.Err(); err != nil {
		return "", err
	}
	return "", errors.New("no cgroup2 mount found: mount one with `mount -t cgroup2 none /sys/fs/cgroup/unified` or give --cgroup-root")
}
