// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/types"
)

// TearDown unmounts and removes all that a Pod has on disk, and lets go of the
// objects it used. No container of it may run. It is idempotent. A mount that
// cannot be ended is an error, and then nothing is removed: removal never
// enters what is mounted, so what was only mounted is never deleted.
func (m *Manager) TearDown(ctx context.Context, uid types.UID) error {
	dir, err := m.podDir(uid)
	if err != nil {
		return err
	}
	defer m.lock(uid)()
	if err := m.unmountAll(ctx, dir); err != nil {
		return fmt.Errorf("unmount the volumes of pod %s: %w", uid, err)
	}
	if err := removeTree(ctx, dir); err != nil {
		return fmt.Errorf("remove the volumes of pod %s: %w", uid, err)
	}
	m.store.Release(uid)
	return nil
}

func (m *Manager) unmountAll(ctx context.Context, dir string) error {
	real, err := filepath.EvalSymlinks(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	points, err := mountsBelow(real)
	if err != nil {
		return err
	}
	var errs []error
	for _, p := range points {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := unix.Unmount(p, unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) {
			errs = append(errs, &os.PathError{Op: "umount", Path: p, Err: err})
		}
	}
	if errs != nil {
		return errors.Join(errs...)
	}
	if points, err = mountsBelow(real); err == nil && len(points) > 0 {
		err = fmt.Errorf("still mounted: %s", points[0])
	}
	return err
}

// maxDepth is how many directories removal has open at once; what is deeper
// is moved up first. A container can make any depth.
const maxDepth = 64

// removeTree removes a directory and all in it. It crosses no mount and
// follows no link.
func removeTree(ctx context.Context, dir string) error {
	parent, err := os.OpenFile(filepath.Dir(dir), unix.O_PATH|unix.O_DIRECTORY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer parent.Close()
	r := remover{ctx: ctx}
	return r.remove(parent, filepath.Base(dir), 0)
}

type remover struct {
	ctx   context.Context
	top   *os.File // where deep directories are moved to
	moved int
}

// inside is how removal opens a directory: it must be in the one above it, on
// the same mount, and no link.
const inside = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_XDEV | unix.RESOLVE_NO_SYMLINKS

// remove removes name from dir.
func (r *remover) remove(dir *os.File, name string, depth int) error {
	err := unix.Unlinkat(int(dir.Fd()), name, 0)
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	if !errors.Is(err, unix.EISDIR) && !errors.Is(err, unix.EPERM) {
		return &os.PathError{Op: "unlinkat", Path: filepath.Join(dir.Name(), name), Err: err}
	}
	if depth >= maxDepth {
		return r.moveUp(dir, name)
	}
	sub, err := openIn(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, inside)
	if errors.Is(err, unix.EXDEV) {
		return fmt.Errorf("%s is a mount point: nothing below it is removed", filepath.Join(dir.Name(), name))
	}
	if err != nil {
		return err
	}
	defer sub.Close()
	if depth == 0 {
		r.top = sub
	}
	if err := r.empty(sub, depth); err != nil {
		return err
	}
	if err := unix.Unlinkat(int(dir.Fd()), name, unix.AT_REMOVEDIR); err != nil && !errors.Is(err, unix.ENOENT) {
		return &os.PathError{Op: "rmdir", Path: sub.Name(), Err: err}
	}
	return nil
}

// empty removes what is in dir, and what is moved to it meanwhile.
func (r *remover) empty(dir *os.File, depth int) error {
	for {
		if err := r.ctx.Err(); err != nil {
			return err
		}
		names, err := dir.Readdirnames(512)
		if len(names) == 0 {
			if err != io.EOF {
				return err
			}
			// Read again until nothing was left: removal disturbs reading.
			if _, err := dir.Seek(0, io.SeekStart); err != nil {
				return err
			}
			if names, err = dir.Readdirnames(512); len(names) == 0 {
				if err == io.EOF {
					return nil
				}
				return err
			}
		}
		for _, name := range names {
			if err := r.remove(dir, name, depth+1); err != nil {
				return err
			}
		}
	}
}

// moveUp moves a deep directory to the top, to be removed from there.
func (r *remover) moveUp(dir *os.File, name string) error {
	for {
		r.moved++
		err := unix.Renameat2(int(dir.Fd()), name, int(r.top.Fd()), "..deep-"+strconv.Itoa(r.moved), unix.RENAME_NOREPLACE)
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EEXIST) { // of a removal that was interrupted
			return &os.PathError{Op: "rename", Path: filepath.Join(dir.Name(), name), Err: err}
		}
	}
}
