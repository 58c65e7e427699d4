// SPDX-License-Identifier: Apache-2.0

package source

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"
)

const (
	// rescanEvery is how often all files are looked at (their metadata, that
	// is) in case a change made no event: a network file system, a symbolic
	// link to outside of the directory.
	rescanEvery = 60 * time.Second
	// retryEvery is how often a directory that cannot be watched is tried.
	retryEvery = 500 * time.Millisecond
	// quietAfterWrite is how long nothing must be written to a file before it
	// is read, and quietAtMost how long that can delay anything.
	quietAfterWrite = 3 * time.Millisecond
	quietAtMost     = 50 * time.Millisecond
)

// watcher decides when which file is looked at.
type watcher struct {
	d  *Directory
	fs *fsnotify.Watcher // nil: not watching
	// dir is what is watched; the path may lead elsewhere by now.
	dir fileID

	pending map[string]bool // files of events; true: to be read whatever stat says
	all     bool            // every file is to be looked at
	next    time.Time       // of the next rescan
}

func newWatcher(d *Directory) *watcher {
	return &watcher{d: d, pending: map[string]bool{}, all: true}
}

func (w *watcher) close() {
	if w.fs != nil {
		w.fs.Close()
		w.fs = nil
	}
}

// events and errors are nil, and so never ready, while there is no watch.
func (w *watcher) events() <-chan fsnotify.Event {
	if w.fs == nil {
		return nil
	}
	return w.fs.Events
}

func (w *watcher) errors() <-chan error {
	if w.fs == nil {
		return nil
	}
	return w.fs.Errors
}

// run returns an error where it could not even begin.
func (w *watcher) run(ctx context.Context) error {
	defer w.d.setConnected(false)
	if err := w.round(time.Now()); err != nil {
		return err
	}
	w.d.forgetMissing(time.Now())
	w.d.synced = true
	held := w.hold()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		timer.Reset(time.Until(w.deadline()))
		select {
		case <-ctx.Done():
			return nil
		case e := <-w.events():
			w.drain(ctx, w.note(e))
		case err := <-w.errors():
			// Most likely more events than the kernel keeps.
			w.d.log.Info("events of the directory were lost, looking at all files", "err", err)
			w.all = true
		case <-w.d.poke:
		case <-timer.C:
		case <-held:
			_ = w.round(time.Now()) // with what the Handler told before
			held = nil
			w.d.h.OnSynced()
			continue
		}
		_ = w.round(time.Now()) // State tells
	}
}

// hold asks the Handler what to wait for before OnSynced.
func (w *watcher) hold() (release <-chan struct{}) {
	if h, ok := w.d.h.(HoldingHandler); ok {
		return h.OnHeld()
	}
	w.d.h.OnSynced()
	return nil
}

// deadline is when to look again without an event.
func (w *watcher) deadline() time.Time {
	at := w.next
	for _, f := range w.d.doubtful {
		if f.confirmAt.Before(at) {
			at = f.confirmAt
		}
	}
	return at
}

// note remembers what an event is about, and reports whether a file is being
// written.
func (w *watcher) note(e fsnotify.Event) (written bool) {
	name := filepath.Base(e.Name)
	switch {
	case filepath.Clean(e.Name) == filepath.Clean(w.d.o.Path):
		w.all = true
		if e.Has(fsnotify.Remove | fsnotify.Rename) {
			w.dir = fileID{} // a new directory can have the old one's inode
		}
	case isManifest(name):
		w.pending[name] = w.pending[name] || !e.Has(fsnotify.Chmod)
		return e.Has(fsnotify.Write)
	case strings.HasPrefix(name, ".."):
		w.all = true // the kubelet's ..data was pointed elsewhere
	}
	return false
}

// drain takes the events that are there; where a file is being written, also
// those that follow shortly.
func (w *watcher) drain(ctx context.Context, written bool) {
	end := time.Now().Add(quietAtMost)
	quiet := time.NewTimer(0)
	defer quiet.Stop()
	for time.Now().Before(end) {
		wait := time.Duration(0)
		if written {
			wait = quietAfterWrite
		}
		quiet.Reset(wait)
		select {
		case <-ctx.Done():
			return
		case e := <-w.events():
			written = w.note(e) || written
		case <-quiet.C:
			return
		}
	}
}

// round looks at what there is to look at, and settles it.
func (w *watcher) round(now time.Time) error {
	d := w.d
	if !now.Before(w.next) {
		w.all = true
	}
	err := w.follow(now)
	if err != nil {
		w.next = now.Add(retryEvery)
		d.trust() // what was doubted is not to be believed now
		d.settle()
		return err
	}
	names, err := w.due(now)
	for _, name := range slices.Sorted(maps.Keys(names)) {
		d.visit(name, names[name], now)
	}
	// A file whose version of an object comes into force is read once more.
	visited := map[string]bool{}
	for len(d.pass.reload) > 0 {
		for _, name := range slices.Sorted(maps.Keys(d.pass.reload)) {
			delete(d.pass.reload, name)
			if !visited[name] {
				visited[name] = true
				d.visit(name, true, now)
			}
		}
	}
	d.settle()
	return err
}

// due gives the names to look at, and forgets why.
func (w *watcher) due(now time.Time) (map[string]bool, error) {
	names := w.pending
	w.pending = map[string]bool{}
	for name, f := range w.d.doubtful {
		if !now.Before(f.confirmAt) {
			names[name] = true
		}
	}
	if !w.all {
		return names, nil
	}
	w.all = false
	w.next = now.Add(rescanEvery)
	listed, err := w.d.list()
	if err != nil {
		w.d.lack["list"] = fmt.Sprintf("directory %s: %v", w.d.o.Path, err)
		w.next = now.Add(retryEvery)
		return names, err
	}
	delete(w.d.lack, "list")
	if len(listed) <= w.d.o.MaxFiles {
		delete(w.d.lack, "files")
	}
	w.d.expire(now)
	look := func(name string) {
		if _, ok := names[name]; !ok {
			names[name] = false
		}
	}
	for _, name := range listed {
		look(name)
	}
	for name := range w.d.files {
		look(name)
	}
	return names, nil
}

// list gives the names of the files, sorted.
func (d *Directory) list() ([]string, error) {
	entries, err := os.ReadDir(d.o.Path)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if isManifest(e.Name()) && !e.IsDir() {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// follow keeps the watch on what the path leads to. A directory that is not
// there is an error.
func (w *watcher) follow(now time.Time) error {
	d := w.d
	info, err := os.Stat(d.o.Path)
	if err == nil && !info.IsDir() {
		err = errors.New("not a directory")
	}
	if err != nil {
		w.close()
		var pathErr *fs.PathError
		if errors.As(err, &pathErr) {
			err = pathErr.Err
		}
		d.lack["directory"] = fmt.Sprintf("directory %s: %v: what it last held stays in force", d.o.Path, err)
		d.setConnected(false)
		w.dir = fileID{}
		return fmt.Errorf("directory source: %s: %w", d.o.Path, err)
	}
	if id := idOf(info); w.fs == nil || id.dev != w.dir.dev || id.ino != w.dir.ino {
		w.rewatch(id, now)
	}
	delete(d.lack, "directory")
	if w.fs == nil { // look at it all the same, now and then
		w.next = now.Add(retryEvery)
	}
	return nil
}

// rewatch begins to watch the directory that the path leads to now.
func (w *watcher) rewatch(id fileID, now time.Time) {
	d := w.d
	w.close()
	w.all = true
	if d.synced {
		d.returned = now
	}
	fsw, err := fsnotify.NewWatcher()
	if err == nil {
		if err = fsw.Add(d.o.Path); err != nil {
			fsw.Close()
		}
	}
	if err != nil {
		d.lack["watch"] = fmt.Sprintf("directory %s: cannot watch, so looking every %v: %v: raise fs.inotify.max_user_instances and max_user_watches", d.o.Path, retryEvery, err)
		d.setConnected(false)
		return
	}
	delete(d.lack, "watch")
	w.fs, w.dir = fsw, id
	d.setConnected(true)
}

// patience is how long a doubt lasts.
func (d *Directory) patience(now time.Time) time.Duration {
	if now.Sub(d.returned) < confirmAfterReturn {
		return confirmAfterReturn
	}
	return confirmAfter
}

func (d *Directory) setConnected(v bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.state.Connected != v {
		d.state.Connected, d.state.Since = v, time.Now()
		d.log.Info("directory is watched", "connected", v)
	}
}

// forgetMissing lets the grants of Services that are in no file run out.
func (d *Directory) forgetMissing(now time.Time) {
	for key := range d.alloc.grants {
		if d.services[key] == nil {
			d.alloc.gone(key, now)
		}
	}
}
