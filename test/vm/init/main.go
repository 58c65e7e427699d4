// SPDX-License-Identifier: Apache-2.0

// Command init is the first and only program of a test machine: it mounts what
// a node has, loads modules, runs the payload, says how it ended and powers off.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"

	"golang.org/x/sys/unix"

	"fairlead.dev/test/vm/guest"
)

func main() {
	orders, code, err := work()
	console, openErr := os.OpenFile(guest.ConsoleDevice, os.O_WRONLY, 0)
	if openErr == nil {
		line := orders.ExitLine(code)
		if err != nil {
			line = orders.FailLine(err)
		}
		fmt.Fprintf(console, "\n%s\n", line)
		drain(console)
	}
	unix.Sync()
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

func work() (orders guest.Orders, code int, err error) {
	raw, err := os.ReadFile(guest.OrdersPath)
	if err != nil {
		return orders, 0, err
	}
	if err := json.Unmarshal(raw, &orders); err != nil {
		return orders, 0, fmt.Errorf("read orders: %w", err)
	}
	if err := mountAll(); err != nil {
		return orders, 0, err
	}
	for _, m := range orders.Modules {
		if err := loadModule(filepath.Join(guest.ModuleDir, m)); err != nil {
			return orders, 0, err
		}
	}
	if err := linkUp("lo"); err != nil {
		return orders, 0, err
	}
	code, err = run(orders)
	return orders, code, err
}

// mountAll mounts what a node of today has, on the empty root.
func mountAll() error {
	for _, m := range []struct{ kind, dir, data string }{
		{"proc", "/proc", ""},
		{"sysfs", "/sys", ""},
		{"devtmpfs", "/dev", ""},
		{"bpf", "/sys/fs/bpf", ""},
		{"cgroup2", "/sys/fs/cgroup", ""},
		{"tmpfs", "/tmp", "mode=1777"},
		{"tmpfs", "/run", "mode=755"},
	} {
		if err := os.MkdirAll(m.dir, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.kind, m.dir, m.kind, 0, m.data); err != nil {
			if m.kind == "devtmpfs" && errors.Is(err, unix.EBUSY) {
				continue // the kernel mounted it
			}
			return fmt.Errorf("mount %s at %s: %w", m.kind, m.dir, err)
		}
	}
	return nil
}

func loadModule(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("load module: %w", err)
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("load module %s: %w", filepath.Base(path), err)
	}
	return nil
}

func linkUp(name string) error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("set %s up: %w", name, err)
	}
	defer unix.Close(s)
	req, err := unix.NewIfreq(name)
	if err != nil {
		return fmt.Errorf("set %s up: %w", name, err)
	}
	req.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, req); err != nil {
		return fmt.Errorf("set %s up: %w", name, err)
	}
	return nil
}

// run runs the payload and reaps whatever it leaves behind.
func run(orders guest.Orders) (int, error) {
	out, err := os.OpenFile(guest.OutputDevice, os.O_WRONLY, 0)
	if err != nil {
		return 0, err
	}
	if err := raw(out); err != nil {
		return 0, err
	}
	cmd := exec.Command(guest.PayloadPath, orders.Args...)
	cmd.Env = append([]string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/tmp", "TMPDIR=/tmp"}, orders.Env...)
	cmd.Dir = "/tmp"
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		return 0, fmt.Errorf("start the payload: %w", err)
	}
	code := reap(cmd.Process.Pid)
	drain(out)
	return code, nil
}

// reap waits for children, adopted ones too, until pid has ended.
func reap(pid int) (code int) {
	signal.Ignore(unix.SIGPIPE)
	for {
		var status unix.WaitStatus
		got, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return 255
		case got == pid && status.Signaled():
			return 128 + int(status.Signal())
		case got == pid && status.Exited():
			return status.ExitStatus()
		}
	}
}

// raw keeps the terminal from changing what passes.
func raw(f *os.File) error {
	t, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	if err != nil {
		return fmt.Errorf("%s: %w", f.Name(), err)
	}
	t.Oflag &^= unix.OPOST
	t.Lflag &^= unix.ECHO | unix.ICANON | unix.ISIG
	if err := unix.IoctlSetTermios(int(f.Fd()), unix.TCSETS, t); err != nil {
		return fmt.Errorf("%s: %w", f.Name(), err)
	}
	return nil
}

// drain waits until all that was written has left.
func drain(f *os.File) { _ = unix.IoctlSetInt(int(f.Fd()), unix.TCSBRK, 1) }
