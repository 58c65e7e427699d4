// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"fairlead.dev/dataplane"
)

// What is left for the command to do once the rules are in force may take the
// kernel long. Here it takes until the test says so.
func TestAChangeIsInForceBeforeItsCommandEnds(t *testing.T) {
	l := newLab(t, NFT)
	d := l.open()
	if _, err := d.Sync(t.Context(), tableOf()); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	hold := filepath.Join(dir, "hold")
	restore := command(NFT, false, "restore")
	path, err := exec.LookPath(restore)
	if err == nil {
		err = unix.Mkfifo(hold, 0o600)
	}
	if err == nil {
		script := fmt.Sprintf("#!/bin/sh\n%s \"$@\" || exit\nread line <%s\n", path, hold)
		err = os.WriteFile(filepath.Join(dir, restore), []byte(script), 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))

	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	web := clusterIP("web", "10.96.0.1:80", dataplane.TCP, backends("10.244.0.1:8080")...)
	if err := d.Apply(ctx, dataplane.Change{Services: map[dataplane.ServiceName]*dataplane.Service{web.Name: web}}); err != nil {
		t.Fatalf("while the command has not ended: %v", err)
	}
	if rules := l.rules(); !strings.Contains(rules, "10.244.0.1:8080") {
		t.Errorf("the Backend is in no rule:\n%s", rules)
	}
	if err := os.WriteFile(hold, []byte("end\n"), 0o600); err != nil { // waits for a reader
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
}
