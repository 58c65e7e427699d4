// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"fairlead.dev/dataplane"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"fairlead":     main,
		"dump-fixture": func() { os.Exit(dumpFixture(os.Args[1:])) },
	})
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:           filepath.Join("testdata", "script"),
		UpdateScripts: os.Getenv("FAIRLEAD_UPDATE_SCRIPTS") != "",
		Cmds:          map[string]func(*testscript.TestScript, bool, []string){"exits": exits},
		Setup: func(e *testscript.Env) error {
			// No test may find an API server or the machine's own state.
			e.Setenv("KUBERNETES_SERVICE_HOST", "")
			return nil
		},
	})
}

// exits runs a command that must end with a status, say one line on stderr at
// its end, and nothing on stdout: exits STATUS COMMAND ARG...
func exits(ts *testscript.TestScript, _ bool, args []string) {
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec(args[1], args[2:]...)
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != want {
		ts.Fatalf("%v: ended with %v, want exit status %d", args[1:], err, want)
	}
	if out := ts.ReadFile("stdout"); out != "" {
		ts.Fatalf("%v: stdout is not empty:\n%s", args[1:], out)
	}
	lines := strings.Split(strings.TrimSpace(ts.ReadFile("stderr")), "\n")
	if n := strings.Count(strings.Join(lines, "\n"), "fairlead: "); n != 1 || !strings.HasPrefix(lines[len(lines)-1], "fairlead: ") {
		ts.Fatalf("%v: want one line of error at the end of stderr:\n%s", args[1:], strings.Join(lines, "\n"))
	}
}

// dumpFixture is `fairlead dump` of a file in place of the kernel:
// dump-fixture FILE SUBJECT FORMAT [--service and --namespace as one NAMESPACE/NAME].
func dumpFixture(args []string) int {
	err := func() error {
		data, err := os.ReadFile(args[0])
		if err != nil {
			return err
		}
		var k fixtureKernel
		if err := json.Unmarshal(data, &k); err != nil {
			return err
		}
		var f serviceFilter
		if len(args) > 3 {
			f.name = args[3]
		}
		if err := f.check(); err != nil {
			return err
		}
		return dump(os.Stdout, &k, "ebpf", args[1], args[2], f)
	}()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return exitFailure
	}
	return exitOK
}

// fixtureKernel is a kernel that holds what a JSON file says.
type fixtureKernel struct {
	Frontends     []dataplane.Row
	ConntrackRows []dataplane.ConntrackRow
	AffinityRows  []dataplane.AffinityRow
	CounterRows   []dataplane.CounterRow
	DropRows      []dataplane.DropRow
}

func (k *fixtureKernel) Table() (dataplane.Dump, error) {
	dataplane.SortRows(k.Frontends)
	return dataplane.Dump{Dataplane: "ebpf", Frontends: k.Frontends}, nil
}
func (k *fixtureKernel) Conntrack() ([]dataplane.ConntrackRow, error) { return k.ConntrackRows, nil }
func (k *fixtureKernel) Affinity() ([]dataplane.AffinityRow, error)   { return k.AffinityRows, nil }
func (k *fixtureKernel) Counters() ([]dataplane.CounterRow, []dataplane.DropRow, error) {
	return k.CounterRows, k.DropRows, nil
}
func (k *fixtureKernel) Close() error { return nil }
