// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"fairlead.dev/image/debian"
)

// Kernel is a kernel that a release of Debian's has.
type Kernel struct {
	Version string // major.minor
	Suite   string
}

// The kernels, oldest first.
var (
	Debian11 = Kernel{"5.10", "bullseye"}
	Debian12 = Kernel{"6.1", "bookworm"}
	Debian13 = Kernel{"6.12", "trixie"}
	Kernels  = []Kernel{Debian11, Debian12, Debian13}
)

// KernelNamed is the kernel of a version or a suite.
func KernelNamed(name string) (Kernel, error) {
	var known []string
	for _, k := range Kernels {
		if name == k.Version || name == k.Suite {
			return k, nil
		}
		known = append(known, k.Version)
	}
	return Kernel{}, fmt.Errorf("no kernel %q: have %s", name, strings.Join(known, ", "))
}

// Installed is a kernel in the cache.
type Installed struct {
	// Release is what `uname -r` says there.
	Release string
	image   string
	root    string // of lib/modules/Release
}

// CacheDir is where kernels are kept: $FAIRLEAD_CACHE/vm or ~/.cache/fairlead/vm.
func CacheDir() (string, error) {
	if dir := os.Getenv("FAIRLEAD_CACHE"); dir != "" {
		return filepath.Join(dir, "vm"), nil
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, "fairlead", "vm"), nil
}

// Install gives the kernel from the cache, where it is got once: nothing is
// downloaded while it is there. Update looks for a newer package.
func (k Kernel) Install(ctx context.Context, update bool) (Installed, error) {
	cache, err := CacheDir()
	if err != nil {
		return Installed{}, err
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return Installed{}, err
	}
	unlock, err := lock(filepath.Join(cache, k.Suite+".lock"))
	if err != nil {
		return Installed{}, err
	}
	defer unlock()
	current := filepath.Join(cache, k.Suite)
	if !update {
		if in, err := open(current); err == nil || !errors.Is(err, fs.ErrNotExist) {
			return in, err
		}
	}
	if err := k.fetch(ctx, cache, current); err != nil {
		return Installed{}, fmt.Errorf("get Debian's kernel %s: %w", k.Version, err)
	}
	return open(current)
}

// fetch downloads and unpacks the newest package, then points current to it.
func (k Kernel) fetch(ctx context.Context, cache, current string) error {
	a, err := debian.Open(ctx, filepath.Join(cache, "apt-"+k.Suite), k.Suite, "amd64")
	if err != nil {
		return err
	}
	pkg, version, err := newestKernel(a)
	if err != nil {
		return err
	}
	name := pkg + "_" + strings.ReplaceAll(version, "/", "_")
	if _, err := os.Stat(filepath.Join(cache, name)); err != nil {
		tmp, err := os.MkdirTemp(cache, "unpack-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(tmp)
		deb, err := a.Download(tmp, pkg, version)
		if err != nil {
			return err
		}
		if err := unpack(ctx, deb, tmp); err != nil {
			return fmt.Errorf("unpack %s: %w", pkg, err)
		}
		if err := os.Remove(deb); err != nil {
			return err
		}
		if err := os.Rename(tmp, filepath.Join(cache, name)); err != nil {
			return err
		}
	}
	link := current + ".new"
	if err := os.RemoveAll(link); err != nil {
		return err
	}
	if err := os.Symlink(name, link); err != nil {
		return err
	}
	return os.Rename(link, current)
}

// wanted are the parts of a package that are kept: a tenth of it.
var wanted = []string{"boot/vmlinuz-", "boot/config-", "lib/modules/*/modules.", "lib/modules/*/kernel/net/",
	"lib/modules/*/kernel/lib/", "lib/modules/*/kernel/crypto/", "lib/modules/*/kernel/arch/", "lib/modules/*/kernel/drivers/net/"}

// unpack extracts the kernel and the modules of networking, and indexes them.
func unpack(ctx context.Context, deb, dir string) error {
	cmd := exec.CommandContext(ctx, "dpkg-deb", "--fsys-tarfile", deb)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	err = untar(tar.NewReader(out), dir)
	_, _ = io.Copy(io.Discard, out)
	if err := errors.Join(err, cmd.Wait()); err != nil {
		return err
	}
	in, err := open(dir)
	if err != nil {
		return err
	}
	return runTool(exec.CommandContext(ctx, tool("depmod"), "-b", dir, in.Release))
}

func untar(r *tar.Reader, dir string) error {
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		name := strings.TrimPrefix(filepath.Clean(h.Name), "usr/")
		if h.Typeflag != tar.TypeReg || !filepath.IsLocal(name) || !isWanted(name) {
			continue
		}
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		f, err := os.Create(path)
		if err != nil {
			return err
		}
		_, err = io.Copy(f, r)
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
}

// isWanted compares with wanted, where * is the release.
func isWanted(name string) bool {
	if parts := strings.SplitN(name, "/", 4); len(parts) == 4 && parts[1] == "modules" {
		name = "lib/modules/*/" + parts[3]
	}
	return slices.ContainsFunc(wanted, func(w string) bool { return strings.HasPrefix(name, w) })
}

// open finds what is in an unpacked package.
func open(dir string) (Installed, error) {
	dir, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return Installed{}, err
	}
	images, err := filepath.Glob(filepath.Join(dir, "boot/vmlinuz-*"))
	if err != nil || len(images) != 1 {
		return Installed{}, fmt.Errorf("%s: want one kernel, found %v", dir, images)
	}
	return Installed{Release: strings.TrimPrefix(filepath.Base(images[0]), "vmlinuz-"), image: images[0], root: dir}, nil
}

// lock keeps two processes from filling the cache at once.
func lock(path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return func() { f.Close() }, nil
}
