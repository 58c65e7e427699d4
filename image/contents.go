// SPDX-License-Identifier: Apache-2.0

package main

import (
	"archive/tar"
	"bytes"
	"fmt"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"time"
)

// binaryPath is where the binary is in the image.
const binaryPath = "usr/local/bin/fairlead"

// epoch is when everything in the image was made: nothing in it tells the time.
var epoch = time.Unix(0, 0).UTC()

// contents are the files of one architecture's image.
type contents struct {
	userland map[string]file
	binary   []byte
}

// directories are there beside those of files: what the DaemonSet mounts over.
var directories = []string{"etc/fairlead", "host/cgroup", "proc", "run/netns", "sys", "tmp", "var/lib/fairlead"}

// layers are what changes seldom, and the binary.
func (c *contents) layers() ([][]byte, error) {
	below, err := layer(c.userland, directories)
	if err != nil {
		return nil, err
	}
	above, err := layer(map[string]file{binaryPath: {mode: 0o755, content: c.binary}}, nil)
	return [][]byte{below, above}, err
}

// layer is a tar of files, sorted, of root's, with their directories.
func layer(files map[string]file, directories []string) ([]byte, error) {
	dirs := map[string]bool{}
	add := func(d string) {
		for ; d != "." && d != "/"; d = path.Dir(d) {
			dirs[d] = true
		}
	}
	for name := range files {
		add(path.Dir(name))
	}
	for _, d := range directories {
		add(d)
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, d := range slices.Sorted(maps.Keys(dirs)) {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: d + "/", Mode: 0o755, ModTime: epoch}); err != nil {
			return nil, err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		f := files[name]
		h := &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: f.mode, Size: int64(len(f.content)), ModTime: epoch}
		if f.target != "" {
			h = &tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: f.target, Mode: 0o777, ModTime: epoch}
		}
		if err := w.WriteHeader(h); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		if _, err := w.Write(f.content); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// writeTo writes the files to a directory.
func (c *contents) writeTo(dir string) error {
	for _, d := range directories {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return err
		}
	}
	files := maps.Clone(c.userland)
	files[binaryPath] = file{mode: 0o755, content: c.binary}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		f, to := files[name], filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return err
		}
		if f.target != "" {
			if err := os.Symlink(f.target, to); err != nil {
				return err
			}
			continue
		}
		if err := os.WriteFile(to, f.content, os.FileMode(f.mode)); err != nil {
			return err
		}
	}
	return nil
}
