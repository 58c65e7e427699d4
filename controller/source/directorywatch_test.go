// SPDX-License-Identifier: Apache-2.0

package source

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"
)

// swap points ..data at a new directory of files, as the kubelet's atomic
// writer does for a ConfigMap.
func (g *rig) swap(version string, files map[string]string) {
	g.t.Helper()
	must := func(err error) {
		if err != nil {
			g.t.Helper()
			g.t.Fatal(err)
		}
	}
	must(os.Mkdir(filepath.Join(g.dir, version), 0o755))
	for name, content := range files {
		must(os.WriteFile(filepath.Join(g.dir, version, name), []byte(content), 0o644))
	}
	old, _ := os.Readlink(filepath.Join(g.dir, "..data"))
	must(os.Symlink(version, filepath.Join(g.dir, "..data_tmp")))
	must(os.Rename(filepath.Join(g.dir, "..data_tmp"), filepath.Join(g.dir, "..data")))
	for name := range files {
		link := filepath.Join(g.dir, name)
		if _, err := os.Lstat(link); err != nil {
			must(os.Symlink(filepath.Join("..data", name), link))
		}
	}
	if old != "" {
		entries, _ := os.ReadDir(filepath.Join(g.dir, old))
		for _, e := range entries {
			if _, keep := files[e.Name()]; !keep {
				must(os.Remove(filepath.Join(g.dir, e.Name())))
			}
		}
		must(os.RemoveAll(filepath.Join(g.dir, old)))
	}
}

func TestAConfigMapMountIsFollowed(t *testing.T) {
	g := newRig(t)
	g.swap("..2026_01", map[string]string{"a.yaml": svc("a", 1), "b.yaml": svc("b", 1)})
	g.start()
	g.takeCalls()
	g.swap("..2026_02", map[string]string{"a.yaml": svc("a", 2), "b.yaml": svc("b", 1)})
	g.eventually("the swapped content", func() bool { return g.port("a") == 2 })
	if got := g.takeCalls(); !slices.Equal(got, []string{"Service default/a"}) {
		t.Errorf("calls %q, want only the Service that changed", got)
	}
	g.swap("..2026_03", map[string]string{"a.yaml": svc("a", 3), "c.yaml": svc("c", 3)})
	g.eventually("b replaced by c", func() bool { return g.port("a") == 3 && g.port("c") == 3 && g.service("b") == nil })
	g.eventually("no problems", g.noProblems)
}

func TestHiddenFilesWhatEditorsLeaveAndSubdirectoriesAreNotRead(t *testing.T) {
	g := newRig(t)
	sub := filepath.Join(g.dir, "sub.yaml")
	if err := os.Mkdir(sub, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{".hidden.yaml", ".web.yaml.swp", "web.yaml~", "#web.yaml#", "4913", "README.md", "sub.yaml/in.yaml"} {
		if err := os.WriteFile(filepath.Join(g.dir, name), []byte(svc("wrong", 1)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	g.start()
	g.write("z.yaml", svc("right", 1))
	g.eventually("right", func() bool { return g.port("right") == 1 })
	if got := g.names(); len(got) != 1 || !g.noProblems() {
		t.Errorf("Services %v, problems %q", got, g.d.State().Problems)
	}
}

func TestAnEditorThatMovesTheFileAwayFirstDoesNotDeleteTheService(t *testing.T) {
	g := newRig(t)
	g.write("web.yaml", svc("web", 1))
	g.start()
	g.takeCalls()
	path := filepath.Join(g.dir, "web.yaml")
	if err := os.Rename(path, path+"~"); err != nil {
		t.Fatal(err)
	}
	time.Sleep(confirmAfter / 5)
	if err := os.WriteFile(path, []byte(svc("web", 2)), 0o644); err != nil {
		t.Fatal(err)
	}
	g.eventually("the new content", func() bool { return g.port("web") == 2 })
	time.Sleep(2 * confirmAfter)
	if got := g.takeCalls(); !slices.Equal(got, []string{"Service default/web"}) {
		t.Errorf("calls %q, want one update", got)
	}
}

func TestAFileWrittenInPlaceBitByBitIsTakenOnlyWhole(t *testing.T) {
	g := newRig(t)
	path := filepath.Join(g.dir, "web.yaml")
	whole := func(port int) string { return svc("one", port) + svc("two", port) }
	g.write("web.yaml", whole(1111))
	g.start()
	for round := range 5 {
		g.takeCalls()
		port := 2222 + round
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_TRUNC, 0)
		if err != nil {
			t.Fatal(err)
		}
		for text := whole(port); text != ""; {
			n := min(len(text), 17)
			if _, err := f.WriteString(text[:n]); err != nil {
				t.Fatal(err)
			}
			text = text[n:]
		}
		f.Close()
		g.eventually("the whole file", func() bool { return g.port("one") == int32(port) && g.port("two") == int32(port) })
		for _, call := range g.takeCalls() {
			if call[0] == '-' {
				t.Errorf("round %d: %s", round, call)
			}
		}
		if !g.noProblems() || g.d.Stats().FileErrors != 0 {
			t.Errorf("round %d: problems %q, stats %+v", round, g.d.State().Problems, g.d.Stats())
		}
	}
}

func TestWritesOfTheSameSizeInTheSameInstantAreNotMissed(t *testing.T) {
	g := newRig(t)
	path := filepath.Join(g.dir, "web.yaml")
	g.write("web.yaml", svc("web", 1000))
	g.start()
	for port := 1001; port < 1100; port++ {
		if err := os.WriteFile(path, []byte(svc("web", port)), 0o644); err != nil {
			t.Fatal(err)
		}
		if port%10 == 0 {
			g.eventually(fmt.Sprint("port ", port), func() bool { return g.port("web") == int32(port) })
		}
	}
	g.eventually("the last write", func() bool { return g.port("web") == 1099 })
}

func TestAFileThatCannotBeReadKeepsItsObjects(t *testing.T) {
	g := newRig(t)
	g.write("a.yaml", svc("a", 1))
	g.start()
	path := filepath.Join(g.dir, "a.yaml")
	link := filepath.Join(g.dir, ".link")
	if err := os.Symlink("nowhere", link); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(link, path); err != nil {
		t.Fatal(err)
	}
	g.eventually("a problem", g.problem("a.yaml: stat: no such file"))
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(path, 0o644); err != nil {
		t.Fatal(err)
	}
	g.eventually("a problem", g.problem("a.yaml: not a regular file"))
	if g.port("a") != 1 {
		t.Error("the last good content is not in force")
	}
}

func TestADirectoryReachedByASymlinkIsFollowedWhenItIsPointedElsewhere(t *testing.T) {
	g := newRig(t)
	next := g.dir + "-next"
	if err := os.Mkdir(next, 0o755); err != nil {
		t.Fatal(err)
	}
	g.write("a.yaml", svc("a", 1))
	if err := os.WriteFile(filepath.Join(next, "a.yaml"), []byte(svc("a", 2)), 0o644); err != nil {
		t.Fatal(err)
	}
	link := g.dir + "-link"
	if err := os.Symlink(g.dir, link); err != nil {
		t.Fatal(err)
	}
	g.o.Path = link
	g.start()
	if err := os.Symlink(next, link+"-tmp"); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(link+"-tmp", link); err != nil {
		t.Fatal(err)
	}
	// No event tells of it; the next round, for whatever reason, sees it.
	g.write("other.yaml", svc("other", 1))
	g.eventually("the other directory's content", func() bool { return g.port("a") == 2 })
}
