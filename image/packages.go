// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"fairlead.dev/image/debian"
)

// suite is where the packages come from.
const suite = "bookworm"

// wantedPackages are iptables and what its programs and extensions link to, and
// the names of protocols.
var wantedPackages = []string{"iptables", "libc6", "libip4tc2", "libip6tc2", "libmnl0", "libnetfilter-conntrack3", "libnfnetlink0", "libnftnl11", "libxtables12", "netbase"}

// locked is a line of packages.lock.
type locked struct{ arch, name, version, sha256 string }

const lockHeader = `# Debian packages whose files go into the image, by ` + "`go run ./image -update-lock`" + `.
# ARCHITECTURE PACKAGE VERSION SHA256, of ` + suite + `.
`

// readLock gives the packages of an architecture.
func readLock(path, arch string) (out []locked, err error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	s := bufio.NewScanner(bytes.NewReader(text))
	for n := 1; s.Scan(); n++ {
		line := strings.TrimSpace(s.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		f := strings.Fields(line)
		if len(f) != 4 || len(f[3]) != 2*sha256.Size {
			return nil, fmt.Errorf("%s, line %d: want ARCHITECTURE PACKAGE VERSION SHA256", path, n)
		}
		if f[0] == arch {
			out = append(out, locked{f[0], f[1], f[2], f[3]})
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%s: nothing for %s: run `go run ./image -update-lock`", path, arch)
	}
	return out, nil
}

// cacheDir is where packages are kept: $FAIRLEAD_CACHE/image or
// ~/.cache/fairlead/image.
func cacheDir() (string, error) {
	dir := os.Getenv("FAIRLEAD_CACHE")
	if dir == "" {
		user, err := os.UserCacheDir()
		if err != nil {
			return "", err
		}
		dir = filepath.Join(user, "fairlead")
	}
	dir = filepath.Join(dir, "image")
	return dir, os.MkdirAll(dir, 0o755)
}

// mirror is where packages come from.
type mirror interface {
	// Download is an Archive's.
	Download(dir, pkg, version string) (path string, err error)
}

// fetchPackages gives the paths of the locked packages: from the cache, or by
// apt. Each has the checksum of the lock.
func fetchPackages(ctx context.Context, lock, arch string) (paths []string, err error) {
	cache, err := cacheDir()
	if err != nil {
		return nil, err
	}
	return fetchInto(cache, lock, arch, func() (mirror, error) {
		return debian.Open(ctx, filepath.Join(cache, "apt-"+suite+"-"+arch), suite, arch)
	})
}

// fetchInto opens the mirror only where the cache lacks something.
func fetchInto(cache, lock, arch string, open func() (mirror, error)) (paths []string, err error) {
	list, err := readLock(lock, arch)
	if err != nil {
		return nil, err
	}
	var archive mirror
	for _, p := range list {
		path := filepath.Join(cache, p.sha256+".deb")
		if sum, err := sum(path); err == nil && sum == p.sha256 {
			paths = append(paths, path)
			continue
		} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		if archive == nil {
			if archive, err = open(); err != nil {
				return nil, err
			}
		}
		got, err := download(archive, cache, p.name, p.version)
		if err != nil {
			return nil, fmt.Errorf("%w: if Debian has a newer version by now, run `go run ./image -update-lock` or set FAIRLEAD_DEBIAN_MIRROR to a snapshot", err)
		}
		if got != p.sha256 {
			return nil, fmt.Errorf("%s %s for %s has the checksum %s, %s says %s: not used", p.name, p.version, arch, got, lock, p.sha256)
		}
		paths = append(paths, path)
	}
	return paths, nil
}

// download puts a package into the cache, and gives its checksum, which is its
// name there.
func download(a mirror, cache, name, version string) (checksum string, err error) {
	tmp, err := os.MkdirTemp(cache, "download-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp)
	path, err := a.Download(tmp, name, version)
	if err != nil {
		return "", err
	}
	if checksum, err = sum(path); err != nil {
		return "", err
	}
	return checksum, os.Rename(path, filepath.Join(cache, checksum+".deb"))
}

func sum(path string) (string, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	s := sha256.Sum256(b)
	return hex.EncodeToString(s[:]), nil
}

// updateLock writes the newest version of each package.
func updateLock(ctx context.Context, path string) error {
	cache, err := cacheDir()
	if err != nil {
		return err
	}
	var out strings.Builder
	out.WriteString(lockHeader)
	for _, arch := range []string{"amd64", "arm64"} {
		a, err := debian.Open(ctx, filepath.Join(cache, "apt-"+suite+"-"+arch), suite, arch)
		if err != nil {
			return err
		}
		for _, name := range wantedPackages {
			text, err := a.Show(name)
			if err != nil {
				return err
			}
			_, version, _ := strings.Cut("\n"+text, "\nVersion: ")
			version, _, _ = strings.Cut(version, "\n")
			checksum, err := download(a, cache, name, version)
			if err != nil {
				return err
			}
			fmt.Fprintf(&out, "%s %s %s %s\n", arch, name, version, checksum)
		}
	}
	return os.WriteFile(path, []byte(out.String()), 0o644)
}
