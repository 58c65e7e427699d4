// SPDX-License-Identifier: Apache-2.0

package source

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

const (
	// confirmAfter is how long a file must stay missing, unparsable or without
	// an object that it had, to be believed.
	confirmAfter = 50 * time.Millisecond
	// confirmAfterReturn is the same for files of a directory that was gone
	// itself and may still be filled.
	confirmAfterReturn = 2 * time.Second
)

// file is what is known of one file of the directory.
type file struct {
	name string
	// id is that of the content that was last judged.
	id fileID
	// objects are in force, as far as no earlier file has them too.
	objects []objectRef
	// faults are why the content of id is not in force.
	faults []*fault

	// confirmAt is when a doubt about the content of doubt ends; zero: none.
	confirmAt time.Time
	doubt     fileID
}

// objectRef is where a file has an object.
type objectRef struct {
	key  objectKey
	line int
}

// line gives where the file has an object.
func (f *file) line(key objectKey) int {
	for _, r := range f.objects {
		if r.key == key {
			return r.line
		}
	}
	return 0
}

// fileID changes when the content of a file does.
type fileID struct {
	dev, ino     uint64
	size         int64
	mtime, ctime syscall.Timespec
}

func idOf(info fs.FileInfo) fileID {
	id := fileID{size: info.Size()}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		id.dev, id.ino, id.mtime, id.ctime = uint64(st.Dev), st.Ino, st.Mtim, st.Ctim
	}
	return id
}

// isManifest goes by the name: hidden files and what editors leave do not end
// in one of these.
func isManifest(name string) bool {
	if strings.HasPrefix(name, ".") {
		return false
	}
	switch filepath.Ext(name) {
	case ".yaml", ".yml", ".json":
		return true
	}
	return false
}

// reading is one look at a file.
type reading struct {
	id      fileID
	missing bool
	objects []object
	faults  []*fault
}

// look reads a file, or only stats it where its id is known.
func (d *Directory) look(name string, known fileID) (r reading, unchanged bool) {
	path := filepath.Join(d.o.Path, name)
	info, err := os.Stat(path)
	if err != nil {
		if _, linkErr := os.Lstat(path); errors.Is(linkErr, fs.ErrNotExist) {
			return reading{missing: true}, false
		}
		return bad(fileID{}, err), false
	}
	id := idOf(info)
	switch {
	case info.IsDir():
		return reading{missing: true}, false
	case id == known:
		return reading{}, true
	case !info.Mode().IsRegular():
		return reading{id: id, faults: []*fault{faultf(0, "not a regular file")}}, false
	case info.Size() > d.o.MaxFileBytes:
		return d.tooLarge(id), false
	}
	return d.read(name, path), false
}

func bad(id fileID, err error) reading {
	var pathErr *fs.PathError
	if errors.As(err, &pathErr) {
		err = fmt.Errorf("%s: %w", pathErr.Op, pathErr.Err)
	}
	return reading{id: id, faults: []*fault{faultf(0, "%v", err)}}
}

func (d *Directory) tooLarge(id fileID) reading {
	return reading{id: id, faults: []*fault{faultf(0, "larger than %d bytes: split it", d.o.MaxFileBytes)}}
}

func (d *Directory) read(name, path string) reading {
	// O_NONBLOCK: what was a file a moment ago may be a pipe by now.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return bad(fileID{}, err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return bad(fileID{}, err)
	}
	id := idOf(info)
	data, err := io.ReadAll(io.LimitReader(f, d.o.MaxFileBytes+1))
	if err != nil {
		return bad(id, err)
	}
	if int64(len(data)) > d.o.MaxFileBytes {
		return d.tooLarge(id)
	}
	room := d.o.MaxObjects - d.objects
	if known := d.files[name]; known != nil {
		room += len(known.objects)
	}
	r := reading{id: id}
	r.objects, r.faults = decodeFile(name, data, max(room, 0))
	return r
}

// visit looks at a file and takes what it holds, if that is beyond doubt. With
// force it is read even where it looks unchanged.
func (d *Directory) visit(name string, force bool, now time.Time) {
	f := d.files[name]
	known := fileID{}
	if f != nil && !force && f.confirmAt.IsZero() {
		known = f.id
	}
	r, unchanged := d.look(name, known)
	switch {
	case unchanged || f == nil && r.missing:
		return
	case f == nil && len(d.files) >= d.o.MaxFiles:
		d.lack["files"] = fmt.Sprintf("directory %s: more than %d files, those from %s on are not read: merge some", d.o.Path, d.o.MaxFiles, name)
		return
	case f == nil:
		f = &file{name: name}
		d.files[name] = f
	}
	if d.synced && (r.missing || len(r.faults) > 0 || d.loses(f, r.objects)) && d.doubts(f, r.id, now) {
		return
	}
	f.confirmAt = time.Time{}
	delete(d.doubtful, name)
	switch {
	case r.missing:
		delete(d.files, name)
		delete(d.bad, name)
		d.take(f, nil)
	case len(r.faults) > 0:
		f.id = r.id
		d.refuse(f, r.faults)
	default:
		if len(f.faults) > 0 {
			d.log.Info("file is in force again", "file", name)
		}
		f.id, f.faults = r.id, nil
		delete(d.bad, name)
		d.take(f, r.objects)
	}
}

// loses reports whether objects leave out one that f has.
func (d *Directory) loses(f *file, objects []object) bool {
	if len(f.objects) == 0 {
		return false
	}
	have := make(map[objectKey]struct{}, len(objects))
	for i := range objects {
		have[objects[i].key] = struct{}{}
	}
	for _, r := range f.objects {
		if _, ok := have[r.key]; !ok {
			return true
		}
	}
	return false
}

// doubts reports whether a reading is to be repeated before it is believed.
func (d *Directory) doubts(f *file, id fileID, now time.Time) bool {
	if !f.confirmAt.IsZero() && f.doubt == id {
		return now.Before(f.confirmAt)
	}
	f.doubt, f.confirmAt = id, now.Add(d.patience(now))
	d.doubtful[f.name] = f
	return true
}

// trust drops all doubts.
func (d *Directory) trust() {
	for name, f := range d.doubtful {
		f.confirmAt = time.Time{}
		delete(d.doubtful, name)
	}
}

// refuse keeps what f last held. What is not new is not logged again.
func (d *Directory) refuse(f *file, faults []*fault) {
	same := slices.EqualFunc(f.faults, faults, func(a, b *fault) bool { return *a == *b })
	d.bad[f.name] = f
	if f.faults = faults; same {
		return
	}
	for _, x := range faults {
		d.log.Warn("file is not in force as written", "problem", problem(f.name, x.line, x.text))
	}
	d.mu.Lock()
	d.stats.FileErrors++
	d.mu.Unlock()
}

// problem gives a line of State: "web.yaml:12: ...".
func problem(name string, line int, text string) string {
	if line == 0 {
		return name + ": " + text
	}
	return fmt.Sprintf("%s:%d: %s", name, line, text)
}
