// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"fairlead.dev/controller/config"
)

// lockPatience is how long an agent that is on its way out is waited for.
const lockPatience = 3 * time.Second

// lockKernel makes this process the only fairlead that programs the kernel:
// for the pins in bpffs and for the rules of its network namespace. Where eBPF
// is not used, the usual bpffs may be missing.
func lockKernel(ctx context.Context, bpffs string, ebpf bool) (locks, error) {
	var l locks
	_, err := os.Stat(bpffs)
	if ebpf || bpffs != config.Default().BPFFS || !errors.Is(err, os.ErrNotExist) {
		pins, err := lockBPFFS(ctx, bpffs)
		if err != nil {
			return nil, err
		}
		l = append(l, pins)
	}
	netns, err := lockNetns(ctx)
	if err != nil {
		l.Close()
		return nil, err
	}
	return append(l, netns), nil
}

// locks are held until they are closed or the process ends.
type locks []io.Closer

// Close gives all of them back.
func (l locks) Close() error {
	var errs []error
	for _, c := range l {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}

// lockNetns locks the process's network namespace by having its agentSocket.
func lockNetns(ctx context.Context) (io.Closer, error) {
	deadline := time.Now().Add(lockPatience)
	for {
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: agentSocket, Net: "unix"})
		if err == nil {
			return l, nil
		}
		if !errors.Is(err, unix.EADDRINUSE) {
			return nil, fmt.Errorf("lock the network namespace: %w", err)
		}
		if time.Now().After(deadline) {
			return nil, errors.New("another fairlead runs in this network namespace: stop it first")
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// lockBPFFS is lockDir for the directory of pins.
func lockBPFFS(ctx context.Context, dir string) (*os.File, error) {
	f, err := lockDir(ctx, "bpffs", dir)
	if errors.Is(err, os.ErrNotExist) {
		err = fmt.Errorf("%w: make it and mount a bpffs there with `mount -t bpf bpf %s`, or give the --bpffs that is mounted", err, dir)
	}
	return f, err
}

// lockDir makes this process the only fairlead that works on a directory,
// until the file is closed or the process ends, however it ends. The lock is
// on the directory itself (flock(2) works in bpffs too), so it follows the
// directory into other mount and network namespaces and leaves nothing behind.
func lockDir(ctx context.Context, flag, dir string) (*os.File, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("--%s: %w", flag, err)
	}
	deadline := time.Now().Add(lockPatience)
	for {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return f, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			break
		}
		if time.Now().After(deadline) {
			err = fmt.Errorf("in use by another fairlead%s: stop it, or give this one its own --%s", holder(f), flag)
			break
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
	f.Close()
	return nil, fmt.Errorf("--%s %s: %w", flag, dir, err)
}

// holder gives " (pid 12)" for the process that locked f, or "" where
// /proc/locks does not say.
func holder(f *os.File) string {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return ""
	}
	want := fmt.Sprintf("%02x:%02x:%d", unix.Major(st.Dev), unix.Minor(st.Dev), st.Ino)
	locks, err := os.Open("/proc/locks")
	if err != nil {
		return ""
	}
	defer locks.Close()
	for s := bufio.NewScanner(locks); s.Scan(); {
		// 1: FLOCK  ADVISORY  WRITE 20749 00:15:5081 0 EOF
		f := strings.Fields(s.Text())
		if len(f) >= 6 && f[1] == "FLOCK" && f[5] == want {
			if pid, err := strconv.Atoi(f[4]); err == nil && pid > 0 {
				return fmt.Sprintf(" (pid %d)", pid)
			}
		}
	}
	return ""
}
