// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"fairlead.dev/test/internal/cgroup"
)

// startJanitor starts a process that removes a directory with its mounts, and
// a cgroup with its processes, when this one has ended in whatever way.
func startJanitor(dir, cgroup string) (*exec.Cmd, error) {
	cmd := again("janitor")
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start janitor: %w", err)
	}
	janitorInput = in
	_, err = fmt.Fprintf(in, "%s\n%s\n", dir, cgroup)
	return cmd, err
}

// janitorInput is closed by the end of this process at the latest.
var janitorInput io.WriteCloser

func finishJanitor(cmd *exec.Cmd) error {
	janitorInput.Close()
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("janitor: %w (its complaints are above)", err)
	}
	return nil
}

// clean is the janitor: it waits for the end of in.
func clean(in io.Reader) (status int) {
	var lines []string
	for s := bufio.NewScanner(in); s.Scan(); {
		lines = append(lines, s.Text())
	}
	if len(lines) != 2 {
		return 1
	}
	dir, group := lines[0], lines[1]
	for _, f := range []func() error{
		func() error { return endCgroup(group) },
		func() error { return unmountBelow(dir) },
		func() error { return os.RemoveAll(dir) },
	} {
		if err := f(); err != nil {
			fmt.Fprintf(os.Stderr, "fairlead bench: clean up: %v\n", err)
			status = 1
		}
	}
	return status
}

// endCgroup ends what runs in a cgroup and those below it.
func endCgroup(root string) error {
	if err := os.WriteFile(filepath.Join(root, "cgroup.kill"), []byte("1"), 0); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return cgroup.Remove(root, 5*time.Second)
}

func unmountBelow(dir string) error {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], dir+"/") {
			err = errors.Join(err, unix.Unmount(f[4], unix.MNT_DETACH))
		}
	}
	return err
}
