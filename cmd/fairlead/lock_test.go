// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
)

func TestASecondAgentOnTheSameDirectoryIsRefusedAndToldWhoHasIt(t *testing.T) {
	dir := t.TempDir()
	first, err := lockDir(t.Context(), "bpffs", dir)
	if err != nil {
		t.Fatal(err)
	}
	_, err = lockDir(t.Context(), "bpffs", dir)
	want := fmt.Sprintf("--bpffs %s: in use by another fairlead (pid %d): stop it, or give this one its own --bpffs", dir, os.Getpid())
	if err == nil || err.Error() != want {
		t.Fatalf("second lock:\n got %v\nwant %s", err, want)
	}
	first.Close()
	again, err := lockDir(t.Context(), "bpffs", dir)
	if err != nil {
		t.Fatalf("after the first agent ended: %v", err)
	}
	again.Close()
}

func TestALockIsWaitedForWhileAnAgentEnds(t *testing.T) {
	dir := t.TempDir()
	first, err := lockDir(t.Context(), "bpffs", dir)
	if err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(200*time.Millisecond, func() { first.Close() })
	second, err := lockDir(t.Context(), "bpffs", dir)
	if err != nil {
		t.Fatal(err)
	}
	second.Close()
}

func TestASignalEndsTheWaitForALock(t *testing.T) {
	dir := t.TempDir()
	first, err := lockDir(t.Context(), "bpffs", dir)
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	begin := time.Now()
	_, err = lockDir(ctx, "bpffs", dir)
	if stopped(ctx, err) != nil || time.Since(begin) > time.Second {
		t.Errorf("got %v after %v, want the context's error at once", err, time.Since(begin))
	}
}

func TestADirectoryThatIsNotThereNamesTheRemedy(t *testing.T) {
	_, err := lockBPFFS(t.Context(), t.TempDir()+"/nosuch")
	if err == nil || !strings.Contains(err.Error(), "mount -t bpf bpf ") {
		t.Errorf("got %v", err)
	}
}
