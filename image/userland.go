// SPDX-License-Identifier: Apache-2.0

package main

import (
	"archive/tar"
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"maps"
	"os/exec"
	"path"
	"slices"
	"strings"
)

// file is one file of the image: a link where target is set.
type file struct {
	mode    int64
	content []byte
	target  string
}

// programs are the multi-call binaries of iptables. Their names are links.
var programs = map[string]string{"nft": "usr/sbin/xtables-nft-multi", "legacy": "usr/sbin/xtables-legacy-multi"}

// userlandOf picks from packages what the iptables dataplane runs: its
// commands, the extensions of their rules, the libraries that these name, and
// the packages' copyrights.
func userlandOf(ctx context.Context, packages []string, arch string) (map[string]file, error) {
	all := map[string]file{}
	for _, deb := range packages {
		if err := unpack(ctx, deb, all); err != nil {
			return nil, fmt.Errorf("unpack %s: %w", deb, err)
		}
	}
	out := map[string]file{}
	var roots []string
	for name, f := range all {
		switch {
		case slices.Contains(slices.Collect(maps.Values(programs)), name), strings.Contains(name, "/xtables/lib") && f.target == "":
			roots = append(roots, name)
			out[name] = f
		case name == "etc/protocols", name == "etc/services", name == "etc/ethertypes",
			strings.Contains(name, "/xtables/lib"), strings.HasPrefix(name, "usr/share/doc/") && path.Base(name) == "copyright":
			out[name] = f
		}
	}
	for _, program := range programs {
		if _, ok := out[program]; !ok {
			return nil, fmt.Errorf("the packages have no %s", program)
		}
	}
	for flavour, program := range programs {
		for _, family := range []string{"iptables", "ip6tables"} {
			for _, verb := range []string{"", "-save", "-restore"} {
				out["usr/sbin/"+family+"-"+flavour+verb] = file{target: path.Base(program)}
				if flavour == "nft" { // what Debian's alternatives say at first
					out["usr/sbin/"+family+verb] = file{target: path.Base(program)}
				}
			}
		}
	}
	if err := link(all, out, roots); err != nil {
		return nil, err
	}
	return out, nil
}

// link adds the loader and the libraries that the roots need, and those need.
func link(all, out map[string]file, roots []string) error {
	byBase := map[string]string{}
	for _, name := range slices.Sorted(maps.Keys(all)) {
		if strings.Contains(name, ".so") {
			byBase[path.Base(name)] = name
		}
	}
	seen := map[string]bool{}
	for len(roots) > 0 {
		name := roots[0]
		roots = roots[1:]
		if seen[name] {
			continue
		}
		seen[name] = true
		needed, loader, err := needs(all[name].content)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		for _, lib := range needed {
			at, ok := byBase[lib]
			if !ok {
				return fmt.Errorf("%s needs %s, which no package has", name, lib)
			}
			real, err := take(all, out, at)
			if err != nil {
				return err
			}
			roots = append(roots, real)
		}
		if loader != "" {
			if _, err := take(all, out, strings.TrimPrefix(loader, "/")); err != nil {
				return err
			}
		}
	}
	return nil
}

// take puts a file into the image, by way of links, and gives its real name.
func take(all, out map[string]file, name string) (real string, err error) {
	for range 8 {
		f, ok := all[name]
		if !ok {
			return "", fmt.Errorf("no package has %s", name)
		}
		out[name] = f
		if f.target == "" {
			return name, nil
		}
		next := path.Join(path.Dir(name), f.target)
		if path.IsAbs(f.target) {
			next = strings.TrimPrefix(path.Clean(f.target), "/")
		}
		name = next
	}
	return "", fmt.Errorf("%s: a link that leads nowhere", name)
}

// needs are the libraries that a program or library names, and its loader.
func needs(content []byte) (libraries []string, loader string, err error) {
	e, err := elf.NewFile(bytes.NewReader(content))
	if err != nil {
		return nil, "", err
	}
	defer e.Close()
	if libraries, err = e.ImportedLibraries(); err != nil {
		return nil, "", err
	}
	for _, p := range e.Progs {
		if p.Type == elf.PT_INTERP {
			b, err := io.ReadAll(p.Open())
			if err != nil {
				return nil, "", err
			}
			loader = strings.TrimRight(string(b), "\x00")
		}
	}
	return libraries, loader, nil
}

// maxFile bounds a file of a package; the largest, libc.so.6, has 2 MB.
const maxFile = 16 << 20

// unpack reads the files and links of a package.
func unpack(ctx context.Context, deb string, into map[string]file) error {
	cmd := exec.CommandContext(ctx, "dpkg-deb", "--fsys-tarfile", deb)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%w: %s", err, stderr.Bytes())
	}
	r := tar.NewReader(&stdout)
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		name := strings.TrimPrefix(path.Clean(h.Name), "/")
		switch h.Typeflag {
		case tar.TypeSymlink:
			into[name] = file{target: h.Linkname}
		case tar.TypeLink:
			into[name] = into[path.Clean(h.Linkname)]
		case tar.TypeReg:
			if h.Size > maxFile {
				return fmt.Errorf("%s has %d bytes", name, h.Size)
			}
			content, err := io.ReadAll(r)
			if err != nil {
				return err
			}
			into[name] = file{mode: h.Mode & 0o755, content: content}
		}
	}
}
