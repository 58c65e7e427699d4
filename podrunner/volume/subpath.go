// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// beneath is how a path in a volume is opened: the kernel itself refuses each
// step that leads out of the directory that it begins at, by "..", by a link
// that is absolute or climbs out, or by a magic link of /proc; whoever else
// renames and links meanwhile. Links within the volume are followed: the files
// of a ConfigMap are such.
const beneath = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS

// openIn opens path below the directory dir, with more openat2(2) RESOLVE_
// flags. The file is not to be read where flags has O_PATH.
func openIn(dir *os.File, path string, flags int, resolve uint64) (*os.File, error) {
	how := &unix.OpenHow{Flags: uint64(flags | unix.O_CLOEXEC), Resolve: resolve}
	for {
		fd, err := unix.Openat2(int(dir.Fd()), path, how)
		switch {
		case err == nil:
			return os.NewFile(uintptr(fd), filepath.Join(dir.Name(), path)), nil
		case errors.Is(err, unix.EAGAIN): // someone renamed meanwhile
			time.Sleep(time.Millisecond)
		case !errors.Is(err, unix.EINTR):
			return nil, &os.PathError{Op: "openat2", Path: path, Err: err}
		}
	}
}

// openSubPath opens (O_PATH) a subPath of a volume; what of it is not there is
// made as directories with the mode of the volume.
func openSubPath(volume, subPath string) (*os.File, error) {
	if filepath.IsAbs(subPath) {
		return nil, fmt.Errorf("error SubPath `%s` must not be an absolute path", subPath)
	}
	items := slices.DeleteFunc(strings.Split(subPath, "/"), func(s string) bool { return s == "" || s == "." })
	if slices.Contains(items, "..") {
		return nil, fmt.Errorf("unable to provision SubPath `%s`: must not contain '..'", subPath)
	}
	root, err := os.OpenFile(volume, unix.O_PATH, 0)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	path := strings.Join(items, "/")
	if path == "" {
		path = "."
	}
	f, err := openIn(root, path, unix.O_PATH, beneath)
	if !errors.Is(err, fs.ErrNotExist) {
		return f, err
	}
	if err := makeBeneath(root, items); err != nil {
		return nil, err
	}
	return openIn(root, path, unix.O_PATH, beneath)
}

// makeBeneath makes the directories of a path that are not there.
func makeBeneath(root *os.File, items []string) error {
	info, err := root.Stat()
	if err != nil {
		return err
	}
	at := root
	defer func() {
		if at != root {
			at.Close()
		}
	}()
	for i, name := range items {
		// From the root again, so that a link may lead anywhere in the volume.
		next, err := openIn(root, strings.Join(items[:i+1], "/"), unix.O_PATH|unix.O_DIRECTORY, beneath)
		if errors.Is(err, fs.ErrNotExist) {
			next, err = makeIn(at, name, info.Mode())
		}
		if err != nil {
			return err
		}
		if at != root {
			at.Close()
		}
		at = next
	}
	return nil
}

// makeIn makes one directory in another that is open.
func makeIn(dir *os.File, name string, mode fs.FileMode) (*os.File, error) {
	if err := unix.Mkdirat(int(dir.Fd()), name, 0o700); err != nil && !errors.Is(err, unix.EEXIST) {
		return nil, &os.PathError{Op: "mkdirat", Path: name, Err: err}
	}
	made, err := openIn(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, beneath|unix.RESOLVE_NO_SYMLINKS)
	if err != nil {
		return nil, err
	}
	if err := made.Chmod(mode & (fs.ModePerm | fs.ModeSetgid | fs.ModeSticky)); err != nil {
		made.Close()
		return nil, err
	}
	return made, nil
}

// bind mounts an open file or directory at target; where it is mounted there
// already, nothing happens, and where another one is, that one goes.
func bind(f *os.File, target string) error {
	var want unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &want); err != nil {
		return err
	}
	is, err := isMountPoint(target)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if is {
		var got unix.Stat_t
		if err := unix.Lstat(target, &got); err == nil && got.Dev == want.Dev && got.Ino == want.Ino {
			return nil
		}
		// The container that had it is gone; others have their own copies.
		if err := unix.Unmount(target, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			return fmt.Errorf("unmount an old subPath: %w", err)
		}
	}
	if err := makeTarget(target, want.Mode&unix.S_IFMT == unix.S_IFDIR); err != nil {
		return err
	}
	tree, err := unix.OpenTree(int(f.Fd()), "", unix.AT_EMPTY_PATH|unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return fmt.Errorf("clone the mount of a subPath: %w", err)
	}
	defer unix.Close(tree)
	if err := unix.MoveMount(tree, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("mount a subPath: %w", err)
	}
	return nil
}

// makeTarget makes the directory or the file to mount onto.
func makeTarget(target string, dir bool) error {
	if err := os.MkdirAll(filepath.Dir(target), 0o750); err != nil {
		return err
	}
	if info, err := os.Lstat(target); err == nil && info.IsDir() != dir {
		if err := os.Remove(target); err != nil {
			return err
		}
	}
	if dir {
		if err := os.Mkdir(target, 0o750); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		return nil
	}
	f, err := os.OpenFile(target, os.O_CREATE|os.O_RDONLY, 0o640)
	if err != nil {
		return err
	}
	return f.Close()
}
