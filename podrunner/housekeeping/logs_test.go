// SPDX-License-Identifier: Apache-2.0

package housekeeping

import (
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"fairlead.dev/podrunner/podspec"
)

// writer is a container's log with the runtime that writes it.
type writer struct {
	t    *testing.T
	path string
	f    *os.File
	n    int
}

func newWriter(t *testing.T) *writer {
	w := &writer{t: t, path: filepath.Join(t.TempDir(), "0.log")}
	t.Cleanup(func() { w.f.Close() })
	if err := w.reopen(); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *writer) reopen() (err error) {
	if w.f != nil {
		w.write(1) // the last line of the old file
		w.f.Close()
	}
	w.f, err = os.OpenFile(w.path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o640)
	return err
}

func (w *writer) write(lines int) {
	for range lines {
		fmt.Fprintln(w.f, w.n)
		w.n++
	}
}

// readAll gives the lines of all files of a log, the oldest first, and the
// files' names.
func readAll(t *testing.T, path string) (lines, names []string) {
	t.Helper()
	files, err := rotatedLogs(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range append(files, path) {
		f, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		var r io.Reader = f
		if strings.HasSuffix(name, compressed) {
			if r, err = gzip.NewReader(f); err != nil {
				t.Fatal(err)
			}
		}
		b, err := io.ReadAll(r)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		for l := range strings.Lines(string(b)) {
			lines = append(lines, strings.TrimSuffix(l, "\n"))
		}
		names = append(names, filepath.Base(name))
	}
	return lines, names
}

func TestALogKeepsItsNewestFilesWithEveryLine(t *testing.T) {
	_, k := newWorld(t, func(o *Options) { o.LogMaxBytes, o.LogMaxFiles = 100, 4 })
	w := newWriter(t)
	check := func() {
		t.Helper()
		if err := k.checkLog(t.Context(), w.path, w.reopen); err != nil {
			t.Fatal(err)
		}
	}
	w.write(10)
	check()
	if _, names := readAll(t, w.path); len(names) != 1 {
		t.Fatalf("a log of 20 bytes was rotated: %v", names)
	}
	// All within a second, and then with a clock that goes back.
	for i := range 5 {
		w.write(50)
		if i == 3 {
			k.now = func() time.Time { return time.Date(2026, 11, 24, 11, 0, 0, 0, time.UTC) }
		}
		check()
	}
	lines, names := readAll(t, w.path)
	if d := cmp.Diff([]string{"0.log.20261124-120002.gz", "0.log.20261124-120003.gz", "0.log.20261124-120004", "0.log"}, names); d != "" {
		t.Errorf("files (-want +got):\n%s", d)
	}
	// 51 lines a rotation; of the first two the files are gone.
	for i, l := range lines {
		if want := fmt.Sprint(10 + 2*51 + i); l != want {
			t.Fatalf("line %d is %q, want %q", i, l, want)
		}
	}
	if len(lines) != 3*51 {
		t.Errorf("%d lines, want %d", len(lines), 3*51)
	}
	info, err := os.Stat(filepath.Join(filepath.Dir(w.path), names[0]))
	if err != nil || info.Mode().Perm() != 0o640 {
		t.Errorf("mode of a compressed log: %v, %v, want the log's", info.Mode(), err)
	}
}

func TestALogThatCannotBeReopenedLosesNothing(t *testing.T) {
	_, k := newWorld(t, func(o *Options) { o.LogMaxBytes = 100 })
	w := newWriter(t)
	w.write(50)
	no := errors.New("no")
	if err := k.checkLog(t.Context(), w.path, func() error { return no }); !errors.Is(err, no) {
		t.Fatalf("%v, want what the runtime said", err)
	}
	if _, names := readAll(t, w.path); len(names) != 1 {
		t.Errorf("files %v, want the log where it was", names)
	}
	// The runtime did it, and its answer was lost.
	if err := k.checkLog(t.Context(), w.path, func() error { return errors.Join(w.reopen(), no) }); !errors.Is(err, no) {
		t.Fatalf("%v, want what the runtime said", err)
	}
	lines, names := readAll(t, w.path)
	if len(names) != 2 || len(lines) != 51 {
		t.Errorf("files %v with %d lines, want both files with all 51", names, len(lines))
	}
}

func TestAnInterruptedRotationIsTakenUp(t *testing.T) {
	_, k := newWorld(t, func(o *Options) { o.LogMaxBytes = 100 })
	w := newWriter(t)
	w.write(50)
	old := w.path + ".20261124-115900"
	for _, name := range []string{old + unfinished, old + compressed, old} {
		if err := os.WriteFile(name, []byte("half"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := k.checkLog(t.Context(), w.path, w.reopen); err != nil {
		t.Fatal(err)
	}
	left, _ := filepath.Glob(w.path + "*")
	want := []string{w.path, old + compressed, w.path + ".20261124-120000"}
	if d := cmp.Diff(want, left); d != "" {
		t.Errorf("files (-want +got):\n%s", d)
	}
	// The agent ended between the move and the call.
	if err := os.Remove(w.path); err != nil {
		t.Fatal(err)
	}
	if err := k.checkLog(t.Context(), w.path, w.reopen); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(w.path); err != nil {
		t.Errorf("the runtime was not asked for a new log: %v", err)
	}
}

func TestALinkIsNoLog(t *testing.T) {
	_, k := newWorld(t, func(o *Options) { o.LogMaxBytes = 100 })
	dir := t.TempDir()
	target, link := filepath.Join(dir, "target"), filepath.Join(dir, "0.log")
	if err := errors.Join(os.WriteFile(target, make([]byte, 200), 0o600), os.Symlink(target, link)); err != nil {
		t.Fatal(err)
	}
	err := k.checkLog(t.Context(), link, func() error { return nil })
	if err == nil || !strings.Contains(err.Error(), "no regular file") {
		t.Errorf("%v, want a refusal", err)
	}
	if err := compress(t.Context(), link); err == nil {
		t.Error("a link was followed to be compressed")
	}
}

func TestALogIsFoundByLabelsThatAPodMayHave(t *testing.T) {
	w, k := newWorld(t)
	c := w.container("1", "uid", "c", "x", running)
	if got, want := k.logPath(c), k.o.LogRoot+"/default_uid_uid/c/0.log"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	for label, value := range map[string]string{
		podspec.LabelContainerName: "../../../etc", podspec.LabelPodUID: "", podspec.LabelPodNamespace: "../x/", podspec.LabelPodName: "a/b",
	} {
		c := w.container("1", "uid", "c", "x", running)
		c.Labels[label] = value
		if got := k.logPath(c); got != "" {
			t.Errorf("%s %q: %q", label, value, got)
		}
	}
}
