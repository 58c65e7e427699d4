// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"fairlead.dev/controller/status"
	"fairlead.dev/dataplane"
)

// statusSocket is one that no agent has.
func statusSocket(t *testing.T) (name string, l *net.UnixListener) {
	t.Helper()
	name = fmt.Sprintf("@fairlead-test-%d-%s", os.Getpid(), t.Name())
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: name, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return name, l
}

func answering(t *testing.T, l *net.UnixListener, s *status.Status) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- answerStatus(ctx, l, func() (*status.Status, error) { return s, nil }, slog.New(slog.DiscardHandler))
	}()
	return func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(10 * time.Second):
			t.Error("it does not end")
		}
	}
}

func TestTheAgentTellsRootItsStatusAndKeepsItsLock(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	name, l := statusSocket(t)
	if _, err := askForStatus(t.Context(), name+"-nobody"); !errors.Is(err, errNoAgent) {
		t.Errorf("where nobody listens: %v", err)
	}
	want := &status.Status{Dataplane: "ebpf", Traffic: []status.Traffic{}, Drops: []dataplane.DropRow{}, Agent: &status.Agent{Version: "v9", Maps: []status.Map{}}}
	stop := answering(t, l, want)
	for range 3 {
		got, err := askForStatus(t.Context(), name)
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			t.Errorf("%v (-want +got):\n%s", err, diff)
		}
	}
	stop()
	if _, err := net.ListenUnix("unix", &net.UnixAddr{Name: name, Net: "unix"}); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("the name is free before the agent has ended: %v", err)
	}
}

// By a process of another user, in the same network namespace.
func TestSomebodyElseIsToldNothing(t *testing.T) {
	const variable = "FAIRLEAD_TEST_STATUS_SOCKET"
	if name := os.Getenv(variable); name != "" {
		s, err := askForStatus(t.Context(), name)
		fmt.Printf("said %v %v\n", s, err)
		return
	}
	if os.Getuid() != 0 {
		t.Skip("needs root, to be somebody else")
	}
	name, l := statusSocket(t)
	defer answering(t, l, &status.Status{Dataplane: "secret"})()
	binary := t.TempDir() + "/test"
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.WriteFile(binary, self, 0o755), os.Chmod(strings.TrimSuffix(binary, "/test"), 0o755),
		os.Chmod(strings.TrimSuffix(binary, "/001/test"), 0o755)); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(binary, "-test.run=^TestSomebodyElseIsToldNothing$")
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), variable+"="+name)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "it tells root only") || strings.Contains(string(out), "secret") {
		t.Errorf("%v: %s", err, out)
	}
}
