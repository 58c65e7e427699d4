// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"fairlead.dev/test/internal/cgroup"
)

// janitor is a process that removes what the kernel does not remove by itself
// (cgroups, mounts, directories) when its input ends: at the end of the test,
// or when the test was killed.
type janitor struct {
	cmd *exec.Cmd
	in  io.WriteCloser
}

func startJanitor() (*janitor, error) {
	cmd, in, _, err := again(roleJanitor, "janitor")
	if err != nil {
		return nil, err
	}
	cmd.Stdout = nil
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start janitor: %w", err)
	}
	return &janitor{cmd: cmd, in: in}, nil
}

// The things a janitor removes, as the first word of a line to it.
const (
	removeCgroup = "cgroup"
	removeMount  = "mount"
	removeDir    = "dir"
)

// later makes the janitor remove path; what was told last goes first.
func (j *janitor) later(kind, path string) error {
	_, err := fmt.Fprintf(j.in, "%s %s\n", kind, path)
	return err
}

// finish lets the janitor do its work and says what it could not do.
func (j *janitor) finish() error {
	j.in.Close()
	if err := j.cmd.Wait(); err != nil {
		return fmt.Errorf("janitor: %w (its complaints are on stderr)", err)
	}
	return nil
}

func runJanitor(in io.Reader) {
	var jobs []string
	lines := bufio.NewScanner(in)
	for lines.Scan() {
		jobs = append(jobs, lines.Text())
	}
	code := 0
	for _, job := range slices.Backward(jobs) {
		kind, path, _ := strings.Cut(job, " ")
		if err := removeThing(kind, path); err != nil {
			fmt.Fprintf(os.Stderr, "fairlead conformance: remove %s %s: %v\n", kind, path, err)
			code = 1
		}
	}
	os.Exit(code)
}

func removeThing(kind, path string) error {
	switch kind {
	case removeMount:
		return unix.Unmount(path, unix.MNT_DETACH)
	case removeDir:
		return os.RemoveAll(path)
	case removeCgroup:
		return cgroup.Remove(path, 3*time.Second)
	}
	return errors.New("unknown kind")
}
