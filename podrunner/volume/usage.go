// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/types"
)

// Usage returns the bytes that a Pod's volumes use on this node's disk or
// memory, by volume name: emptyDirs, and what is written from objects. A
// volume on disk is walked through, so the cost is that of its files.
func (m *Manager) Usage(uid types.UID) (map[string]int64, error) {
	dir, err := m.podDir(uid)
	if err != nil {
		return nil, err
	}
	volumes, err := filepath.Glob(filepath.Join(dir, "volumes", "kubernetes.io~*", "*"))
	if err != nil {
		return nil, err
	}
	usage := make(map[string]int64, len(volumes))
	for _, v := range volumes {
		n, err := usageOf(v)
		if errors.Is(err, fs.ErrNotExist) {
			continue // torn down meanwhile
		}
		if err != nil {
			return nil, fmt.Errorf("usage of volume %s of pod %s: %w", filepath.Base(v), uid, err)
		}
		usage[filepath.Base(v)] = n
	}
	return usage, nil
}

func usageOf(dir string) (bytes int64, err error) {
	if is, err := isMountPoint(dir); err != nil {
		return 0, err
	} else if is { // its own file system knows
		var s unix.Statfs_t
		if err := unix.Statfs(dir, &s); err != nil {
			return 0, err
		}
		return int64(s.Blocks-s.Bfree) * s.Bsize, nil
	}
	root, err := os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return 0, err
	}
	w := walker{linked: map[uint64]bool{}}
	w.push(&anchor{File: root}, ".")
	err = w.run()
	return w.bytes, err
}

// walker adds up the blocks of all files in a directory. What it has open at
// once does not grow with the depth: a directory is opened by its path from an
// anchor above it, and a path that gets long makes another anchor.
type walker struct {
	bytes   int64
	linked  map[uint64]bool // inodes with several names, counted once
	pending []pendingDir
}

type anchor struct {
	*os.File
	users int
}

type pendingDir struct {
	from *anchor
	path string
}

const longPath = 2048 // bytes; half of what one system call takes

func (w *walker) push(a *anchor, path string) {
	a.users++
	w.pending = append(w.pending, pendingDir{a, path})
}

func (w *walker) drop(a *anchor) {
	if a.users--; a.users == 0 {
		a.Close()
	}
}

func (w *walker) run() error {
	for len(w.pending) > 0 {
		d := w.pending[len(w.pending)-1]
		w.pending = w.pending[:len(w.pending)-1]
		err := w.dir(d)
		w.drop(d.from)
		// Containers may remove and replace directories meanwhile, and mount
		// where they may: then it is none of this volume.
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTDIR) && !errors.Is(err, unix.ELOOP) && !errors.Is(err, unix.EXDEV) {
			for _, d := range w.pending {
				w.drop(d.from)
			}
			return err
		}
	}
	return nil
}

func (w *walker) dir(d pendingDir) error {
	f, err := openIn(d.from.File, d.path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, inside)
	if err != nil {
		return err
	}
	from, prefix := d.from, d.path+"/"
	if len(prefix) > longPath {
		from, prefix = &anchor{File: f}, ""
	}
	from.users++ // of this call
	defer func() {
		w.drop(from)
		if from == d.from {
			f.Close()
		}
	}()
	var s unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &s); err != nil {
		return err
	}
	w.bytes += s.Blocks * 512
	for {
		names, err := f.Readdirnames(512)
		for _, name := range names {
			if unix.Fstatat(int(f.Fd()), name, &s, unix.AT_SYMLINK_NOFOLLOW) != nil {
				continue // gone
			}
			switch {
			case s.Mode&unix.S_IFMT == unix.S_IFDIR:
				w.push(from, prefix+name)
			case s.Nlink > 1 && w.linked[s.Ino]:
			default:
				if s.Nlink > 1 {
					w.linked[s.Ino] = true
				}
				w.bytes += s.Blocks * 512
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
