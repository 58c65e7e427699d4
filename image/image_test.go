// SPDX-License-Identifier: Apache-2.0

package main

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/layout"

	"fairlead.dev/podrunner/containerdtest"
)

// The tests run where no mirror can be reached: what they need is got before.
func TestMain(m *testing.M) {
	if !containerdtest.Isolated() {
		for _, arch := range []string{"amd64", "arm64"} {
			if _, err := fetchPackages(context.Background(), "packages.lock", arch); err != nil {
				fmt.Fprintln(os.Stderr, "image:", err)
				os.Exit(1)
			}
		}
	}
	containerdtest.Main(m)
}

// atRoot runs the test where the command is run.
func atRoot(t *testing.T) {
	t.Helper()
	t.Chdir("..")
}

func userlandFor(t *testing.T, arch string) map[string]file {
	t.Helper()
	packages, err := fetchPackages(t.Context(), lockFile, arch)
	if err != nil {
		t.Fatal(err)
	}
	files, err := userlandOf(t.Context(), packages, arch)
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func TestTheUserlandIsIPTablesAndWhatItLinksTo(t *testing.T) {
	atRoot(t)
	for arch, loader := range map[string]string{"amd64": "lib64/ld-linux-x86-64.so.2", "arm64": "lib/ld-linux-aarch64.so.1"} {
		files := userlandFor(t, arch)
		for _, want := range []string{
			loader, "usr/sbin/iptables", "usr/sbin/iptables-nft-restore", "usr/sbin/ip6tables-nft-save", "usr/sbin/ip6tables-legacy-restore",
			"usr/share/doc/libc6/copyright", "usr/share/doc/iptables/copyright", "etc/protocols",
		} {
			if _, ok := files[want]; !ok {
				t.Errorf("%s: no %s", arch, want)
			}
		}
		size := 0
		for name, f := range files {
			size += len(f.content)
			if strings.Contains(name, "/bin/") || strings.HasSuffix(name, "/sh") || strings.Contains(name, "locale") {
				t.Errorf("%s: %s is no part of iptables", arch, name)
			}
			if f.mode&0o7022 != 0 {
				t.Errorf("%s: %s has mode %o: others may write, or it gives rights", arch, name, f.mode)
			}
		}
		t.Logf("%s: %d files, %d KiB", arch, len(files), size>>10)
		if size > 12<<20 {
			t.Errorf("%s: %d bytes: more than iptables needs", arch, size)
		}
	}
}

func TestTwoBuildsOfOneInputAreEqual(t *testing.T) {
	atRoot(t)
	o := &options{name: "fairlead:dev", version: "v0", architectures: []string{"amd64", "arm64"}}
	var tars [2][]byte
	for i := range tars {
		var images []platformImage
		for _, arch := range o.architectures {
			image, err := newImage(o, arch, contents{userland: userlandFor(t, arch), binary: []byte("binary for " + arch)})
			if err != nil {
				t.Fatal(err)
			}
			images = append(images, image)
		}
		out := filepath.Join(t.TempDir(), "image.tar")
		if err := writeLayout(out, o.name, images); err != nil {
			t.Fatal(err)
		}
		var err error
		if tars[i], err = os.ReadFile(out); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(tars[0], tars[1]) {
		t.Error("two builds of the same files differ")
	}
	checkLayout(t, tars[0])
}

// checkLayout reads the tar as another tool does: every blob by its digest.
func checkLayout(t *testing.T, image []byte) {
	t.Helper()
	dir := t.TempDir()
	for r := tar.NewReader(bytes.NewReader(image)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		to := filepath.Join(dir, h.Name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(to), 0o755), os.WriteFile(to, b, 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	outer, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		t.Fatal(err)
	}
	top, err := outer.IndexManifest()
	if err != nil || len(top.Manifests) != 1 || top.Manifests[0].Annotations["io.containerd.image.name"] != "docker.io/library/fairlead:dev" {
		t.Fatalf("index %+v: %v", top, err)
	}
	inner, err := outer.ImageIndex(top.Manifests[0].Digest)
	if err != nil {
		t.Fatal(err)
	}
	list, err := inner.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	var platforms []string
	for _, m := range list.Manifests {
		platforms = append(platforms, m.Platform.String())
		i, err := inner.Image(m.Digest)
		if err != nil {
			t.Fatal(err)
		}
		layers, err := i.Layers()
		if err != nil || len(layers) != 2 {
			t.Fatalf("%v: %d layers: %v", m.Platform, len(layers), err)
		}
		for _, l := range layers {
			r, err := l.Uncompressed() // verified by its digest
			if err != nil {
				t.Fatal(err)
			}
			if _, err := io.Copy(io.Discard, r); err != nil {
				t.Error(err)
			}
			r.Close()
		}
	}
	if !slices.Equal(platforms, []string{"linux/amd64", "linux/arm64/v8"}) {
		t.Errorf("platforms %v", platforms)
	}
}

// tampered is a mirror with another file of the same name.
type tampered struct{}

func (tampered) Download(dir, pkg, _ string) (string, error) {
	path := filepath.Join(dir, pkg+".deb")
	return path, os.WriteFile(path, []byte("something else"), 0o644)
}

func TestAPackageWithAnotherChecksumIsNotUsed(t *testing.T) {
	open := func() (mirror, error) { return tampered{}, nil }
	for range 2 { // nor from the cache
		paths, err := fetchInto(t.TempDir(), "packages.lock", "amd64", open)
		if err == nil || !strings.Contains(err.Error(), "not used") || paths != nil {
			t.Errorf("%v, error %v, want one that says it is not used", paths, err)
		}
	}
	cache := t.TempDir()
	list, err := readLock("packages.lock", "amd64")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range list {
		if err := os.WriteFile(filepath.Join(cache, p.sha256+".deb"), []byte("changed on disk"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if paths, err := fetchInto(cache, "packages.lock", "amd64", open); err == nil {
		t.Errorf("changed files of the cache are used: %v", paths)
	}
	if _, err := readLock("packages.lock", "riscv64"); err == nil || !strings.Contains(err.Error(), "-update-lock") {
		t.Errorf("error %v, want one with the remedy", err)
	}
}

func TestTheRootfsForADockerfileIsTheSameFiles(t *testing.T) {
	dir := t.TempDir()
	c := contents{userland: map[string]file{"usr/sbin/x": {mode: 0o755, content: []byte("x")}, "usr/sbin/y": {target: "x"}}, binary: []byte("b")}
	if err := c.writeTo(dir); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"usr/sbin/x": "x", "usr/sbin/y": "x", binaryPath: "b"} {
		if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v; want %q", name, got, err, want)
		}
	}
}

// builtImage is the image of this machine's architecture alone.
func builtImage(ctx context.Context, t *testing.T) []byte {
	t.Helper()
	out := filepath.Join(t.TempDir(), "image.tar")
	o := &options{name: "fairlead:dev", version: "image-test", architectures: []string{"amd64"}}
	if err := run(ctx, o, out, "", false); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("the image has %d KiB", len(b)>>10)
	return b
}
