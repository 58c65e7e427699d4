// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestMain is also the payload: what it does as one, FAIRLEAD_VM_PAYLOAD says.
func TestMain(m *testing.M) {
	switch os.Getenv("FAIRLEAD_VM_PAYLOAD") {
	case "":
		code := m.Run()
		if dir := filepath.Dir(selftestPath); selftestPath != "" {
			os.RemoveAll(dir)
		}
		os.Exit(code)
	case "describe":
		describe()
		os.Exit(3)
	case "hang":
		fmt.Println("hanging")
		//lint:ignore SA5002 a machine that hangs is what the test is about
		for { // not asleep: an idle guest's clock runs away
		}
	case "panic":
		_ = os.WriteFile("/proc/sysrq-trigger", []byte("c"), 0)
	case "killed":
		_ = unix.Kill(os.Getpid(), unix.SIGKILL)
	}
	time.Sleep(time.Hour)
}

// describe prints what a test relies on.
func describe() {
	var u unix.Utsname
	_ = unix.Uname(&u)
	fmt.Println("release", unix.ByteSliceToString(u.Release[:]))
	fmt.Printf("args %q\n", os.Args[1:])
	if lo, err := net.InterfaceByName("lo"); err == nil && lo.Flags&net.FlagUp != 0 {
		fmt.Println("lo is up")
	}
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		fmt.Println("cgroup2 alone")
	}
	var fs unix.Statfs_t
	if err := unix.Statfs("/sys/fs/bpf", &fs); err == nil && fs.Type == unix.BPF_FS_MAGIC {
		fmt.Println("bpffs")
	}
	if _, err := os.Stat("/sys/module/ip_vs_rr"); err == nil {
		fmt.Println("ip_vs_rr is loaded")
	}
	fmt.Println("a line with \"quotes\"\tand a tab")
}

var selftestPath string

// selftest builds this test as a payload, once.
var selftest = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "fairlead-vm-test-")
	if err != nil {
		return "", err
	}
	selftestPath = filepath.Join(dir, "vm.test")
	return selftestPath, BuildTest(context.Background(), ".", "fairlead.dev/test/vm", selftestPath)
})

// boot runs this test's program on Debian 12's kernel, as a payload.
func boot(t *testing.T, payload string, m Machine) (exit int, out string, err error) {
	t.Helper()
	var b bytes.Buffer
	exit, err = bootTo(t.Context(), t, &b, payload, m)
	return exit, b.String(), err
}

func bootTo(ctx context.Context, t *testing.T, out io.Writer, payload string, m Machine) (exit int, err error) {
	t.Helper()
	if testing.Short() {
		t.Skip("boots a machine")
	}
	path, err := selftest()
	if err != nil {
		t.Fatal(err)
	}
	m.Kernel, m.Payload, m.Memory = Debian12, path, 512
	m.Env = append(m.Env, "FAIRLEAD_VM_PAYLOAD="+payload)
	return Boot(ctx, m, out)
}

func TestAPayloadFindsANodeAndItsExitCodeComesThrough(t *testing.T) {
	exit, out, err := boot(t, "describe", Machine{Modules: []string{"ip_vs_rr"}, Args: []string{"a b", "-c=d\"'"}})
	if err != nil || exit != 3 {
		t.Fatalf("exit %d, %v; want 3", exit, err)
	}
	for _, want := range []string{"release 6.1.", `args ["a b" "-c=d\"'"]`, "lo is up", "cgroup2 alone", "bpffs", "ip_vs_rr is loaded", "a line with \"quotes\"\tand a tab\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in the payload's output:\n%s", want, out)
		}
	}
	if strings.Contains(out, "\r") || strings.Contains(out, "Linux version") {
		t.Errorf("the output is not the payload's alone:\n%q", out)
	}
}

func TestAPayloadThatHangsIsEndedAndItsOutputKept(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	out := &trigger{word: "hanging\n", then: func() { cancel(errors.New("enough")) }}
	_, err := bootTo(ctx, t, out, "hang", Machine{})
	if err == nil || !strings.Contains(err.Error(), "enough") || out.seen.String() != out.word {
		t.Errorf("error %v, output %q; want the reason and what was printed before", err, out.seen.String())
	}
}

func TestAMachineThatTakesTooLongIsEnded(t *testing.T) {
	begin := time.Now()
	_, _, err := boot(t, "hang", Machine{Timeout: time.Second})
	if err == nil || !strings.Contains(err.Error(), "no end after 1s") {
		t.Errorf("error %v; want one that says so", err)
	}
	if took := time.Since(begin); took > time.Minute {
		t.Errorf("took %v", took)
	}
}

// trigger does something once a word was written. The buffer has a name, or
// io.Copy would fill it by its ReadFrom.
type trigger struct {
	seen bytes.Buffer
	word string
	then func()
}

func (w *trigger) Write(p []byte) (int, error) {
	n, err := w.seen.Write(p)
	if strings.Contains(w.seen.String(), w.word) {
		w.then()
	}
	return n, err
}

func TestAPanicIsAnErrorThatShowsTheConsole(t *testing.T) {
	_, _, err := boot(t, "panic", Machine{})
	if err == nil || !strings.Contains(err.Error(), "Kernel panic - not syncing") {
		t.Errorf("error %v; want the kernel's last words", err)
	}
}

func TestAKilledPayloadIsReportedAsAShellDoes(t *testing.T) {
	exit, _, err := boot(t, "killed", Machine{})
	if err != nil || exit != 128+9 {
		t.Errorf("exit %d, %v; want 137", exit, err)
	}
}

func TestAModuleThatAKernelHasNotIsNamed(t *testing.T) {
	_, _, err := boot(t, "describe", Machine{Modules: []string{"veth", "fairlead_no_such"}})
	if err == nil || !strings.Contains(err.Error(), "module fairlead_no_such of kernel 6.1.") {
		t.Errorf("error %v; want one that names the module", err)
	}
}
