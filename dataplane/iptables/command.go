// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// errLocked is part of every error that is the xtables lock's.
var errLocked = errors.New("another program holds the xtables lock")

// exitResource is how the commands end when the lock was not to be had
// (RESOURCE_PROBLEM of xtables.h).
const exitResource = 4

// restore commits rules, in the network namespace of the calling thread. They
// are in force when it returns.
func (t *tool) restore(ctx context.Context, rules []byte, lockWait time.Duration) error {
	name := command(t.flavour, t.v6, "restore")
	seconds := max(1, int(lockWait/time.Second))
	args := []string{"--noflush", "-w", strconv.Itoa(seconds)}
	var err error
	if t.flavour == NFT {
		err = t.runUntilDone(ctx, rules, name, append(args, "--verbose")...)
	} else {
		_, err = t.run(ctx, rules, name, args...)
	}
	if err == nil {
		return nil
	}
	return explain(err, rules, seconds)
}

// allDone comes after the last transaction. A verbose restore prints comments
// as it comes to them, and ends where a transaction fails.
const allDone = "# fairlead: all done\n"

// runUntilDone is run without the wait for the command's end: iptables-nft only
// closes its socket then, which takes until no packet can see what the rules
// replaced (5 to 20 ms). Where it does not print comments, its end is waited for.
func (t *tool) runUntilDone(ctx context.Context, in []byte, name string, args ...string) error {
	t.ending.Wait() // the kernel would let the next one wait, too
	cmd := exec.CommandContext(ctx, name, args...)
	var complaints bytes.Buffer
	cmd.Stdin, cmd.Stderr = io.MultiReader(bytes.NewReader(in), strings.NewReader(allDone)), &complaints
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		return &commandError{name: name, err: err}
	}
	done := false
	for lines := bufio.NewReader(out); !done && err == nil; {
		var line string
		line, err = lines.ReadString('\n')
		done = line == allDone
	}
	if done {
		t.ending.Go(func() {
			_, _ = io.Copy(io.Discard, out)
			_ = cmd.Wait()
		})
		return nil
	}
	if err := cmd.Wait(); err != nil {
		return &commandError{name: name, complaint: strings.TrimSpace(complaints.String()), err: err}
	}
	return nil
}

// save lists all tables of the family with their counters.
func (t *tool) save(ctx context.Context) (map[string]*savedTable, error) {
	text, err := t.run(ctx, nil, command(t.flavour, t.v6, "save"), "-c")
	if err != nil {
		return nil, err
	}
	return parseSave(text)
}

// run runs a command to its end, and gives its output.
func (t *tool) run(ctx context.Context, in []byte, name string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	var out, complaints bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(in), &out, &complaints
	if err := cmd.Run(); err != nil {
		return nil, &commandError{name: name, complaint: strings.TrimSpace(complaints.String()), err: err}
	}
	return out.Bytes(), nil
}

// commandError is what a command said when it failed.
type commandError struct {
	name, complaint string
	err             error
}

func (e *commandError) Error() string {
	line, _, _ := strings.Cut(e.complaint, "\n")
	if line == "" {
		return fmt.Sprintf("%s: %v", e.name, e.err)
	}
	return fmt.Sprintf("%s: %v: %s", e.name, e.err, line)
}

func (e *commandError) Unwrap() error { return e.err }

// explain adds what the complaint is about: the holder of the lock, or the
// rule that was refused.
func explain(err error, rules []byte, seconds int) error {
	var ce *commandError
	var exit *exec.ExitError
	if !errors.As(err, &ce) || !errors.As(err, &exit) {
		return err
	}
	if exit.ExitCode() == exitResource && strings.Contains(ce.complaint, "lock") {
		return fmt.Errorf("%w for more than %d s: %s; stop it or give it more time with --iptables-lock-wait", errLocked, seconds, lockHolder())
	}
	if n := failedLine(ce.complaint); n > 0 {
		if line := lineOf(rules, n); line != "" {
			return fmt.Errorf("%w, in %q", err, line)
		}
	}
	return err
}

// failedLine is the number in "line 12 failed" or "Error occurred at line: 12".
func failedLine(complaint string) int {
	for _, before := range []string{"line: ", "line "} {
		if _, rest, ok := strings.Cut(complaint, before); ok {
			digits, _, _ := strings.Cut(rest, " ")
			digits, _, _ = strings.Cut(digits, "\n")
			if n, err := strconv.Atoi(strings.TrimSuffix(digits, ":")); err == nil {
				return n
			}
		}
	}
	return 0
}

func lineOf(text []byte, n int) string {
	for line := range bytes.Lines(text) {
		if n--; n == 0 {
			return strings.TrimSpace(string(line))
		}
	}
	return ""
}

// lockFile is where the commands lock, unless their environment says otherwise.
func lockFile() string {
	if f := os.Getenv("XTABLES_LOCKFILE"); f != "" {
		return f
	}
	return "/run/xtables.lock"
}

// lockHolder names the process that /proc/locks says holds the xtables lock.
func lockHolder() string {
	unknown := "nobody in /proc/locks has it now"
	var st unix.Stat_t
	if unix.Stat(lockFile(), &st) != nil {
		return unknown
	}
	locks, err := os.ReadFile("/proc/locks")
	if err != nil {
		return unknown
	}
	want := fmt.Sprintf("%02x:%02x:%d", unix.Major(st.Dev), unix.Minor(st.Dev), st.Ino)
	for line := range strings.Lines(string(locks)) {
		f := strings.Fields(line)
		if len(f) > 5 && f[1] == "FLOCK" && f[5] == want {
			comm, _ := os.ReadFile("/proc/" + f[4] + "/comm")
			return fmt.Sprintf("%s (process %s) has %s", strings.TrimSpace(string(comm)), f[4], lockFile())
		}
	}
	return unknown
}
