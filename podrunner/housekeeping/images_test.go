// SPDX-License-Identifier: Apache-2.0

package housekeeping

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestImagesThatWereNotUsedForTheLongestTimeGoFirst(t *testing.T) {
	// The thresholds of pressure would interfere: 85 % is theirs, too.
	w, k := newWorld(t, func(o *Options) { o.ImageHighPercent, o.ImageLowPercent = 50, 45 })
	for _, id := range []string{"sandbox", "running", "dead", "often", "once", "never", "stuck"} {
		w.image(id, 2)
	}
	w.image("pinned", 2).Pinned = true
	w.disk.available = 60 * gib
	w.sandbox = "example.test/sandbox:1"
	w.container("1", "a", "c", "running", running)
	w.container("2", "b", "c", "example.test/dead:1", exited)
	used := w.container("3", "d", "c", "once", running)
	w.round(t, k, 0)
	used.ImageRef = "often"
	w.round(t, k, time.Minute)
	used.ImageRef = "running"
	w.image("new", 2)
	w.round(t, k, 4*time.Minute-time.Second) // not due
	if w.removed != nil {
		t.Fatalf("removed %v from a disk with room", w.removed)
	}
	if w.listed > 2 {
		t.Errorf("images were listed %d times in 3 rounds, want once, and for the first collection", w.listed)
	}
	w.disk.available = 49 * gib // 51 %: 6 GiB are wanted
	w.round(t, k, time.Minute)
	want := []string{"image never", "image once", "image often"}
	if d := cmp.Diff(want, w.removed); d != "" {
		t.Errorf("removed (-want +got):\n%s", d)
	}
	w.round(t, k, 5*time.Minute) // "new" is old now, the rest is in use
	w.round(t, k, 5*time.Minute)
	if d := cmp.Diff(append(want, "image new"), w.removed); d != "" {
		t.Errorf("removed in the end (-want +got):\n%s", d)
	}
	message := "Node node Warning FreeDiskSpaceFailed: Failed to garbage collect required amount of images. Attempted to free 6442450944 bytes, but only found 0 bytes eligible to free."
	if got := w.events[len(w.events)-1]; got != message {
		t.Errorf("event %q,\nwant %q", got, message)
	}
	if len(k.images) != 5 {
		t.Errorf("%d images are remembered, want the 5 that are left", len(k.images))
	}
}

func TestAnImageThatAContainerIsMadeFromMeanwhileStays(t *testing.T) {
	w, k := newWorld(t, func(o *Options) { o.ImageHighPercent, o.ImageLowPercent = 50, 45 })
	w.image("first", 1)
	w.image("second", 1)
	w.before = func(string) { w.container("1", "a", "c", "second", running) }
	w.disk.available = 20 * gib
	w.round(t, k, 0)
	if d := cmp.Diff([]string{"image first"}, w.removed); d != "" {
		t.Errorf("removed (-want +got):\n%s", d)
	}
}

func TestImagesStayBelowTheHighThreshold(t *testing.T) {
	w, k := newWorld(t)
	w.image("unused", 1)
	w.disk.available = 16 * gib // 84 %
	w.round(t, k, 0)
	if w.removed != nil || w.events != nil {
		t.Errorf("at 84 %%: removed %v, events %v", w.removed, w.events)
	}
	w.disk.available = 15 * gib // 85 %, and no pressure yet
	w.round(t, k, 5*time.Minute)
	if d := cmp.Diff([]string{"image unused"}, w.removed); d != "" {
		t.Errorf("at 85 %%: removed (-want +got):\n%s", d)
	}
}

func TestImagesThatWereImportedByHandCanBeKept(t *testing.T) {
	w, k := newWorld(t, func(o *Options) { o.KeepImported = true })
	w.image("imported", 1)
	w.image("pulled", 1).RepoDigests = []string{"example.test/pulled@sha256:1"}
	w.disk.available = 15 * gib
	w.round(t, k, 0)
	if d := cmp.Diff([]string{"image pulled"}, w.removed); d != "" {
		t.Errorf("removed (-want +got):\n%s", d)
	}
}

func TestAContainerWhoseImageIsGoneDoesNotCostAListEachRound(t *testing.T) {
	w, k := newWorld(t)
	w.container("1", "a", "c", "gone", running)
	for range 10 {
		w.round(t, k, 10*time.Second)
	}
	if w.listed != 2 { // in the beginning, and for the first collection
		t.Errorf("images were listed %d times", w.listed)
	}
	w.image("next", 1)
	w.container("2", "a", "d", "next", running)
	w.round(t, k, 10*time.Second)
	if w.listed != 3 || k.images["next"].used != w.now {
		t.Errorf("listed %d times, remembered %+v", w.listed, k.images["next"])
	}
}

func TestDeadContainersOfFinishedPodsGoWhenTheDiskIsShort(t *testing.T) {
	for _, kept := range []bool{true, false} {
		w, k := newWorld(t, func(o *Options) { o.StatusKept = kept })
		w.pods = append(w.pods, pod("done", "Succeeded"), pod("runs", "Running"))
		w.container("old", "done", "c", "x", exited).CreatedAt = 1
		w.container("new", "done", "c", "x", exited).CreatedAt = 2
		w.container("dead", "runs", "c", "x", exited)
		w.container("lives", "runs", "c", "x", running)
		w.round(t, k, 0)
		if w.removed != nil {
			t.Fatalf("removed %v without need", w.removed)
		}
		w.node.available, w.disk.available = 5*gib, 5*gib
		w.round(t, k, 10*time.Second)
		want := "container old"
		if kept {
			want = "container new container old sandbox s-done"
		}
		if got := strings.Join(w.removed, " "); got != want {
			t.Errorf("status kept %v: removed %q, want %q", kept, got, want)
		}
	}
}
