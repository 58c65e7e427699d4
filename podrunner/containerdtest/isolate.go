// SPDX-License-Identifier: Apache-2.0

package containerdtest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const stageVariable = "FAIRLEAD_CONTAINERDTEST"

// Main is for a package's TestMain. It runs the tests in a network, mount and
// process namespace of their own, so that whatever they start ends with them,
// however they end, and the machine's /run, /var/lib and interfaces are not
// touched. Tests may dial Pods' addresses and mount as they like. Without root
// or containerd the tests run as usual, and Start skips.
func Main(m *testing.M) {
	switch os.Getenv(stageVariable) {
	case "init":
		code, err := initProcess()
		if err != nil {
			fmt.Fprintln(os.Stderr, "containerdtest:", err)
			code = 1
		}
		os.Exit(code)
	case "tests":
		os.Exit(m.Run())
	}
	if why := lacks(); why != "" {
		os.Exit(m.Run())
	}
	code, err := again("init", &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS | syscall.CLONE_NEWPID,
		Pdeathsig:  syscall.SIGKILL,
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, "containerdtest:", err)
		os.Exit(1)
	}
	os.Exit(code)
}

// Isolated reports whether this process is one that Main started: before that a
// TestMain may reach the network.
func Isolated() bool { return os.Getenv(stageVariable) != "" }

// lacks says what keeps a Runtime from running here.
func lacks() string {
	if os.Geteuid() != 0 {
		return "not root"
	}
	for _, name := range []string{"containerd", "ctr", "runc"} {
		if _, err := exec.LookPath(name); err != nil {
			return name + " is not installed"
		}
	}
	if _, err := os.Stat(filepath.Join(cniBinaries, "ptp")); err != nil {
		return "no CNI plugins in " + cniBinaries
	}
	return ""
}

func again(stage string, attr *syscall.SysProcAttr) (int, error) {
	runtime.LockOSThread() // Pdeathsig is about the thread
	defer runtime.UnlockOSThread()
	exe, err := os.Executable()
	if err != nil {
		return 0, err
	}
	cmd := exec.Command(exe, os.Args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), stageVariable+"="+stage)
	cmd.SysProcAttr = attr
	err = cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return max(exit.ExitCode(), 1), nil
	}
	if err != nil {
		return 0, fmt.Errorf("start the tests in namespaces: %w", err)
	}
	return 0, nil
}

// initProcess is process 1 of the namespaces: it prepares them, starts the
// tests, and reaps what has no parent. When it ends, the kernel ends the rest.
func initProcess() (int, error) {
	if err := prepare(); err != nil {
		return 0, err
	}
	exe, err := os.Executable()
	if err != nil {
		return 0, err
	}
	env := os.Environ()
	for i, e := range env {
		if strings.HasPrefix(e, stageVariable+"=") {
			env[i] = stageVariable + "=tests"
		}
	}
	dir, err := os.Getwd()
	if err != nil {
		return 0, err
	}
	tests, err := os.StartProcess(exe, os.Args, &os.ProcAttr{Dir: dir, Env: env, Files: []*os.File{os.Stdin, os.Stdout, os.Stderr}})
	if err != nil {
		return 0, fmt.Errorf("start the tests: %w", err)
	}
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, 0, nil)
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if err != nil {
			return 0, fmt.Errorf("wait for the tests: %w", err)
		}
		if pid == tests.Pid && (status.Exited() || status.Signaled()) {
			if status.Signaled() {
				return 2, fmt.Errorf("the tests ended by %s", status.Signal())
			}
			return status.ExitStatus(), nil
		}
	}
}

func prepare() error {
	// No mount gets out or in. Shared among our own, as containers with mount
	// propagation want it.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""); err != nil {
		return fmt.Errorf("share mounts: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	for _, dir := range []string{"/run", "/var/lib"} {
		if err := unix.Mount("fairlead", dir, "tmpfs", 0, "mode=755"); err != nil {
			return fmt.Errorf("mount a %s of our own: %w", dir, err)
		}
	}
	// Nor do pins. Where the kernel has no such filesystem nobody pins.
	_ = unix.Mount("bpf", "/sys/fs/bpf", "bpf", 0, "")
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find lo: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("set lo up: %w", err)
	}
	return nil
}
