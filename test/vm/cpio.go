// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"fmt"
	"io"
	"os"
	"path"
	"strings"
)

// archive writes the "newc" format that the kernel unpacks as its first root
// (Documentation/driver-api/early-userspace/buffer-format.rst).
type archive struct {
	w     io.Writer
	at    int64
	inode int
	dirs  map[string]bool
	err   error
}

func newArchive(w io.Writer) *archive { return &archive{w: w, dirs: map[string]bool{}} }

// file adds a file, and the directories above it.
func (a *archive) file(name string, mode uint32, r io.Reader, size int64) error {
	name = strings.TrimPrefix(path.Clean(name), "/")
	a.parents(name)
	a.header(name, 0o100000|mode, size)
	if a.err == nil {
		n, err := io.CopyN(a.w, r, size)
		a.at += n
		a.fail(name, err)
	}
	a.pad()
	return a.err
}

// hostFile adds a file of the host.
func (a *archive) hostFile(name, from string) error {
	f, err := os.Open(from)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s: not a regular file", from)
	}
	return a.file(name, uint32(info.Mode().Perm()), f, info.Size())
}

func (a *archive) parents(name string) {
	for i, c := range name {
		if dir := name[:i]; c == '/' && !a.dirs[dir] {
			a.dirs[dir] = true
			a.header(dir, 0o040755, 0)
		}
	}
}

func (a *archive) close() error {
	a.header("TRAILER!!!", 0, 0)
	return a.err
}

func (a *archive) header(name string, mode uint32, size int64) {
	if size >= 1<<32 && a.err == nil {
		a.err = fmt.Errorf("%s: 4 GiB or more do not fit", name)
	}
	a.inode++
	a.print("070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
		a.inode, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, len(name)+1, 0, name)
	a.pad()
}

func (a *archive) pad() { a.print("%s", "\x00\x00\x00"[:(4-a.at%4)%4]) }

func (a *archive) print(format string, args ...any) {
	if a.err != nil {
		return
	}
	n, err := fmt.Fprintf(a.w, format, args...)
	a.at += int64(n)
	a.fail("archive", err)
}

func (a *archive) fail(name string, err error) {
	if err != nil && a.err == nil {
		a.err = fmt.Errorf("write %s: %w", name, err)
	}
}
