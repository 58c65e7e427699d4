// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestChildrenEndWithAKilledTest starts itself again, as a test that starts a
// child and is then killed.
func TestChildrenEndWithAKilledTest(t *testing.T) {
	const variable = "FAIRLEAD_TEST_START_CHILD"
	if log := os.Getenv(variable); log != "" {
		p, err := start(log, "/bin/sleep", "600")
		if err != nil {
			t.Fatal(err)
		}
		fmt.Println(p.cmd.Process.Pid)
		<-p.done
		return
	}
	parent := exec.Command(os.Args[0], "-test.run=^TestChildrenEndWithAKilledTest$")
	parent.Env = append(os.Environ(), variable+"="+filepath.Join(t.TempDir(), "log"))
	out, err := parent.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := parent.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	var child int
	if _, err := fmt.Sscan(line, &child); err != nil {
		t.Fatalf("the child's pid: %q: %v", line, err)
	}
	if !alive(child) {
		t.Fatal("the child does not run")
	}
	_ = parent.Process.Kill()
	_ = parent.Wait()
	for range 200 {
		if !alive(child) {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	_ = syscall.Kill(child, syscall.SIGKILL)
	t.Errorf("process %d outlived the test that started it by 2 s", child)
}

// alive is false for a zombie: an ended child of a parent that does not ask.
func alive(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if errors.Is(err, os.ErrNotExist) {
		return false
	}
	_, after, _ := strings.Cut(string(stat), ") ")
	return !strings.HasPrefix(after, "Z")
}

func TestAStoppedProcessIsGone(t *testing.T) {
	p, err := start(filepath.Join(t.TempDir(), "log"), "/bin/sh", "-c", "trap '' TERM; echo last words; sleep 600 & wait; wait")
	if err != nil {
		t.Fatal(err)
	}
	if err := p.ended(); err != nil {
		t.Fatal(err)
	}
	p.stop(syscall.SIGTERM, 100*time.Millisecond)
	if alive(p.cmd.Process.Pid) {
		t.Error("the process is alive after stop")
	}
	if err := syscall.Kill(-p.cmd.Process.Pid, 0); !errors.Is(err, syscall.ESRCH) && err != nil {
		t.Errorf("its group: %v", err)
	}
	if err := p.ended(); err == nil || !strings.Contains(err.Error(), "last words") {
		t.Errorf("ended says %v, want the output's tail", err)
	}
}
