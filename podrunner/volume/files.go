// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// files are what a volume shows, by path relative to it.
type files map[string]file

type file struct {
	data []byte
	mode int32 // as the API has it
	user int   // owner
}

// What the kubelet's volumes have, and programs watch:
//
//	key       -> ..data/key
//	..data    -> ..2026_11_24_18_12_05.123456789
//	..2026_…/key
//
// A rename of ..data shows all new files at once.
const (
	dataLink    = "..data"
	newDataLink = "..data_tmp"
)

// write makes dir show the files and nothing else, all at once. It writes
// nothing where they are there already, and tidies up what a write left that
// was interrupted.
func (f files) write(dir string, group int) error {
	f, err := f.checked()
	if err != nil {
		return err
	}
	if err := own(dir, 0o755, group, 0o440); err != nil {
		return err
	}
	current, err := os.Readlink(filepath.Join(dir, dataLink))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if current == "" || !f.shownIn(filepath.Join(dir, current), group) {
		if current, err = f.replace(dir, group); err != nil {
			return err
		}
	}
	if err := f.link(dir); err != nil {
		return err
	}
	return f.tidy(dir, current)
}

// checked returns the files by their shortest paths.
func (f files) checked() (files, error) {
	clean := make(files, len(f))
	for path, x := range f {
		if err := checkPath(path); err != nil {
			return nil, err
		}
		clean[filepath.Clean(path)] = x
	}
	return clean, nil
}

// checkPath of a file in a volume, as the API validates it.
func checkPath(path string) error {
	switch items := strings.Split(path, "/"); {
	case filepath.Clean(path) == ".":
		return fmt.Errorf("invalid path: must not be empty: %q", path)
	case filepath.IsAbs(path):
		return fmt.Errorf("invalid path: must be relative path: %s", path)
	case slices.Contains(items, ".."):
		return fmt.Errorf("invalid path: must not contain '..': %s", path)
	case strings.HasPrefix(path, ".."):
		return fmt.Errorf("invalid path: must not start with '..': %s", path)
	}
	return nil
}

// permissions that a file gets; its group may read it.
func (x file) permissions(group int) fs.FileMode {
	m := fileMode(x.mode)
	if group >= 0 {
		m |= 0o440
	}
	return m
}

// errDiffers ends a comparison.
var errDiffers = errors.New("it is not as wanted")

// shownIn says whether a data directory has these files and no others.
func (f files) shownIn(dir string, group int) bool {
	n := 0
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		want, ok := f[rel]
		if !ok || !want.isAt(path, group) {
			return errDiffers
		}
		n++
		return nil
	})
	return err == nil && n == len(f)
}

func (x file) isAt(path string, group int) bool {
	info, err := os.Lstat(path)
	if err != nil || info.Mode() != x.permissions(group) || info.Size() != int64(len(x.data)) {
		return false
	}
	s := info.Sys().(*syscall.Stat_t)
	if int(s.Uid) != x.user || group >= 0 && int(s.Gid) != group {
		return false
	}
	data, err := os.ReadFile(path)
	return err == nil && bytes.Equal(data, x.data)
}

// replace writes a new data directory and makes it the current one.
func (f files) replace(dir string, group int) (name string, err error) {
	made, err := os.MkdirTemp(dir, time.Now().UTC().Format("..2006_01_02_15_04_05.000000000."))
	if err != nil {
		return "", fmt.Errorf("make a directory for new data: %w", err)
	}
	defer func() {
		if err != nil {
			os.RemoveAll(made)
		}
	}()
	if err := own(made, 0o755, group, 0o440); err != nil {
		return "", err
	}
	for path, x := range f {
		if err := x.create(made, path, group); err != nil {
			return "", fmt.Errorf("write %s: %w", path, err)
		}
	}
	name, next := filepath.Base(made), filepath.Join(dir, newDataLink)
	if err := os.Remove(next); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	if err := os.Symlink(name, next); err != nil {
		return "", err
	}
	if err := os.Rename(next, filepath.Join(dir, dataLink)); err != nil {
		return "", fmt.Errorf("show new data: %w", err)
	}
	return name, nil
}

func (x file) create(dir, path string, group int) error {
	full := filepath.Join(dir, path)
	for parent := filepath.Dir(path); parent != "."; parent = filepath.Dir(parent) {
		p := filepath.Join(dir, parent)
		if err := os.MkdirAll(p, 0o755); err != nil {
			return err
		}
		if err := own(p, 0o755, group, 0o440); err != nil {
			return err
		}
	}
	if err := os.WriteFile(full, x.data, 0o600); err != nil {
		return err
	}
	if x.user != 0 || group >= 0 {
		if err := os.Lchown(full, x.user, group); err != nil {
			return err
		}
	}
	return os.Chmod(full, x.permissions(group))
}

// link makes the links that are missing: one for each first element of a path.
func (f files) link(dir string) error {
	for path := range f {
		first, _, _ := strings.Cut(path, "/")
		err := os.Symlink(filepath.Join(dataLink, first), filepath.Join(dir, first))
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("show %s: %w", first, err)
		}
	}
	return nil
}

// A reader that has followed ..data just before it changed still needs the old
// data for a moment: so much of it stays, for so long.
const (
	oldKept = 3
	oldFor  = 2 * time.Second
)

// tidy removes the links that lead nowhere now, and data that is not current
// any more.
func (f files) tidy(dir, current string) error {
	entries, err := os.ReadDir(dir) // sorted: the oldest data first
	if err != nil {
		return err
	}
	var old []string
	var errs []error
	for _, e := range entries {
		name, path := e.Name(), filepath.Join(dir, e.Name())
		switch {
		case name == dataLink || name == current:
		case strings.HasPrefix(name, ".."):
			old = append(old, path)
		case e.Type() == fs.ModeSymlink:
			if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
				errs = append(errs, os.Remove(path))
			}
		}
	}
	if len(old) == 0 {
		return errors.Join(errs...)
	}
	if info, err := os.Lstat(filepath.Join(dir, dataLink)); err == nil && time.Since(info.ModTime()) < oldFor {
		old = old[:max(0, len(old)-oldKept)]
	}
	for _, path := range old {
		errs = append(errs, os.RemoveAll(path))
	}
	return errors.Join(errs...)
}
