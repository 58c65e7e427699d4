// SPDX-License-Identifier: Apache-2.0

package containerdtest

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// snapshot is what a Runtime and its Pods can leave on a machine.
type snapshot map[string]struct{}

func takeSnapshot(cgroupRoot string) (snapshot, error) {
	s := snapshot{}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 4 {
			s["mount "+f[4]] = struct{}{}
		}
	}
	links, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	for _, l := range links {
		s["link "+l.Attrs().Name] = struct{}{}
	}
	namespaces, _ := os.ReadDir("/run/netns")
	for _, n := range namespaces {
		s["network namespace "+n.Name()] = struct{}{}
	}
	for _, dir := range cgroupDirs(cgroupRoot) {
		if name := filepath.Base(dir); !standing[name] && name != filepath.Base(cgroupRoot) {
			s["cgroup "+dir] = struct{}{}
		}
	}
	processes, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, p := range processes {
		b, err := os.ReadFile(p)
		if err != nil {
			continue
		}
		name, rest, _ := strings.Cut(string(b[strings.IndexByte(string(b), '(')+1:]), ") ")
		if name == "containerd-shim" || strings.HasPrefix(name, "runc") || name == "guest" {
			if !strings.HasPrefix(rest, "Z") {
				s["process "+name+" "+filepath.Base(filepath.Dir(p))] = struct{}{}
			}
		}
	}
	return s, nil
}

// standing are the names of cgroups that a runner of Pods makes once and keeps,
// as the kubelet does.
var standing = map[string]bool{"kubepods": true, "burstable": true, "besteffort": true}

// cgroupDirs are the cgroups of that name, and below, in all hierarchies.
func cgroupDirs(root string) (dirs []string) {
	for _, top := range CgroupMounts() {
		_ = filepath.WalkDir(top+root, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, path)
			}
			return nil
		})
	}
	return dirs
}

// CgroupMounts are the mount points of all cgroup hierarchies, v1 and v2.
func CgroupMounts() (mounts []string) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil
	}
	for line := range strings.Lines(string(b)) {
		before, after, _ := strings.Cut(line, " - ")
		f := strings.Fields(before)
		if strings.HasPrefix(after, "cgroup") && len(f) > 4 {
			mounts = append(mounts, f[4])
		}
	}
	return mounts
}

// leftovers are mounts, links, network namespaces, cgroups and processes that
// were not there before the Runtime.
func (r *Runtime) leftovers() (left []string) {
	now, err := takeSnapshot(r.CgroupRoot)
	if err != nil {
		return []string{err.Error()}
	}
	for what := range now {
		if _, ok := r.before[what]; !ok {
			left = append(left, what)
		}
	}
	return left
}

// awaitNoLeftovers gives those that stay. It is patient, since the kernel takes
// some of them apart behind the back of who asked for it, and machines are slow.
func (r *Runtime) awaitNoLeftovers() (left []string) {
	for end := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		if left = r.leftovers(); len(left) == 0 || time.Now().After(end) {
			return left
		}
	}
}

// Close removes all sandboxes, ends the daemon, and returns an error for each
// thing that is left then, and for each that had to be removed by force: the
// sandboxes that the test should have removed are none.
func (r *Runtime) Close() (errs []error) {
	select {
	case <-r.ended:
		if err := r.Launch(); err != nil {
			errs = append(errs, err)
		}
	default:
		_ = r.Resume()
	}
	if err := r.removeSandboxes(); err != nil {
		errs = append(errs, err)
	}
	_ = r.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-r.ended:
	case <-time.After(10 * time.Second):
		r.Kill()
	}
	for _, what := range r.awaitNoLeftovers() {
		errs = append(errs, fmt.Errorf("left behind: %s", what))
	}
	dirs := cgroupDirs(r.CgroupRoot)
	for i := len(dirs) - 1; i >= 0; i-- {
		_ = unix.Rmdir(dirs[i])
	}
	return append(errs, removeAll(r.Dir)...)
}

// removeAll unmounts first: containerd leaves no mounts of its own, but a
// failed test may.
func removeAll(dir string) (errs []error) {
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], dir) {
			_ = unix.Unmount(f[4], unix.MNT_DETACH)
		}
	}
	if err := os.RemoveAll(dir); err != nil {
		errs = append(errs, err)
	}
	return errs
}

func (r *Runtime) removeSandboxes() error {
	conn, err := r.Dial()
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	client := runtimeapi.NewRuntimeServiceClient(conn)
	list, err := client.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		return fmt.Errorf("list what sandboxes are left: %w", err)
	}
	for _, s := range list.Items {
		if _, err := client.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: s.Id}); err != nil {
			return fmt.Errorf("stop a sandbox that is left: %w", err)
		}
		if _, err := client.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: s.Id}); err != nil {
			return fmt.Errorf("remove a sandbox that is left: %w", err)
		}
	}
	return nil
}
