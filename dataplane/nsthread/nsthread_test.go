// SPDX-License-Identifier: Apache-2.0

package nsthread

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"testing"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// spends makes the test binary a process that enters a namespace from its main
// goroutine, and says whether the process is still where it was.
const spends = "FAIRLEAD_TEST_SPENDS_A_THREAD"

func TestMain(m *testing.M) {
	if os.Getenv(spends) == "" {
		os.Exit(m.Run())
	}
	before, err := inode("/proc/self/ns/net")
	err = errors.Join(err, InNew(func() error { return nil }))
	after, e := inode("/proc/self/ns/net")
	fmt.Println(errors.Join(err, e), after == before)
}

func inode(path string) (uint64, error) {
	var st unix.Stat_t
	err := unix.Stat(path, &st)
	return st.Ino, err
}

// here is the calling thread's namespace.
func here(t *testing.T) uint64 {
	t.Helper()
	n, err := inode("/proc/thread-self/ns/net")
	if err != nil {
		t.Error(err)
	}
	return n
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: a network namespace is made")
	}
}

// A main thread does not end with its goroutine: it would keep a pod's
// namespace for good, and be taken for the agent's own.
func TestTheMainThreadStaysInItsNamespace(t *testing.T) {
	needRoot(t)
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), spends+"=1", "GOMAXPROCS=1")
	out, err := cmd.CombinedOutput()
	if err != nil || string(out) != "<nil> true\n" {
		t.Errorf("it says %q, %v", out, err)
	}
}

func TestAFunctionRunsWhereItWasToldTo(t *testing.T) {
	needRoot(t)
	wrong := errors.New("what the function says")
	var other netns.NsHandle
	var there uint64
	if err := Run(func() (err error) {
		other, err = netns.New()
		there = here(t)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	var was uint64
	if err := In(other, func() error { was = here(t); return wrong }); err != wrong || was != there {
		t.Errorf("In ran in %d and says %v, want %d and what the function says", was, err, there)
	}
	if err := InNew(func() error { was = here(t); return wrong }); err != wrong || was == there || was == here(t) {
		t.Errorf("InNew ran in %d and says %v, want neither %d nor %d, and what the function says", was, err, there, here(t))
	}
	if err := In(netns.None(), func() error { t.Error("it ran"); return nil }); err == nil {
		t.Error("no namespace is no error")
	}
}
