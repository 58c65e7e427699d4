// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// isMountPoint says whether something is mounted at path itself. It follows
// no link in the last element.
func isMountPoint(path string) (bool, error) {
	var s unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW, 0, &s); err != nil {
		return false, &os.PathError{Op: "statx", Path: path, Err: err}
	}
	if s.Attributes_mask&unix.STATX_ATTR_MOUNT_ROOT == 0 {
		return false, errors.New("the kernel does not tell mount points from directories (needs Linux 5.8)")
	}
	return s.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0, nil
}

// mountTmpfs mounts a tmpfs of at most size bytes (0: half of the memory, the
// kernel's default) that is not swapped where the kernel can (Linux 6.4).
func mountTmpfs(dir string, size int64, flags uintptr) error {
	options := "mode=1000" // unready
	if size > 0 {
		options += ",size=" + strconv.FormatInt(size, 10)
	}
	err := unix.Mount("tmpfs", dir, "tmpfs", flags, options+",noswap")
	if errors.Is(err, unix.EINVAL) {
		err = unix.Mount("tmpfs", dir, "tmpfs", flags, options)
	}
	if err != nil {
		return fmt.Errorf("mount a tmpfs: %w", err)
	}
	return nil
}

// mountsBelow returns the mount points at and below dir, the last mounted
// first: the order to unmount them in.
func mountsBelow(dir string) ([]string, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	all, err := parseMountinfo(f)
	if err != nil {
		return nil, err
	}
	var points []string
	for i := len(all) - 1; i >= 0; i-- {
		if all[i] == dir || strings.HasPrefix(all[i], dir+"/") {
			points = append(points, all[i])
		}
	}
	return points, nil
}

// parseMountinfo returns the mount points in a mountinfo (proc(5)), in order.
func parseMountinfo(r io.Reader) (points []string, err error) {
	b := bufio.NewReader(r) // lines may be of any length
	for {
		line, err := b.ReadString('\n')
		if f := strings.Fields(line); len(f) > 4 {
			points = append(points, unescape(f[4]))
		}
		if err == io.EOF {
			return points, nil
		}
		if err != nil {
			return nil, err
		}
	}
}

// unescape undoes the octal escapes of blanks and backslashes.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
