// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"k8s.io/client-go/util/cert"

	"fairlead.dev/podrunner/containerdtest"
	"fairlead.dev/test/e2e/controlplane"
)

// tools are programs of this machine that Kubernetes' tests run in Pods, beside
// busybox's.
var tools = []string{"curl", "dig", "getent", "nc.openbsd", "ip", "ss", "socat"}

// tree is a root filesystem, by path.
type tree map[string]*treeEntry

type treeEntry struct {
	mode fs.FileMode
	link string
	data []byte
}

func (t tree) file(path string, mode fs.FileMode, data []byte) {
	t[path] = &treeEntry{mode: mode, data: data}
}
func (t tree) link(path, to string) { t[path] = &treeEntry{mode: fs.ModeSymlink, link: to} }

// busybox is a tree as the image of that name has it.
func busybox() (tree, error) {
	t := tree{}
	for _, dir := range []string{"tmp", "root", "home", "etc", "dev", "proc", "sys", "run", "var/run", "var/log", "usr/bin", "uploads"} {
		t[dir] = &treeEntry{mode: fs.ModeDir | 0o755}
	}
	t["tmp"].mode = fs.ModeDir | fs.ModeSticky | 0o777
	t.file("etc/passwd", 0o644, []byte("root:x:0:0:root:/root:/bin/sh\nuser-defined-in-image:x:1000:1000::/home:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n"))
	t.file("etc/group", 0o644, []byte("root:x:0:\nuser-defined-in-image:x:1000:\ngroup-defined-in-image:x:50000:user-defined-in-image\nnogroup:x:65534:\n"))
	t.file("etc/nsswitch.conf", 0o644, []byte("hosts: files dns\n"))
	path, err := exec.LookPath("busybox")
	if err != nil {
		return nil, fmt.Errorf("%w: install busybox-static", err)
	}
	program, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	t.file("bin/busybox", 0o755, program)
	applets, err := exec.Command(path, "--list").Output()
	if err != nil {
		return nil, err
	}
	for name := range strings.FieldsSeq(string(applets)) {
		if name != "busybox" {
			t.link("bin/"+name, "/bin/busybox")
		}
	}
	// Debian's busybox as a shell has its own nc, and drops variables that it could
	// not name itself ("data-1").
	t.link("bin/sh", "/usr/bin/bash")
	return t, t.add("bash")
}

var library = regexp.MustCompile(`/\S+`)

// add puts a program of this machine there, with the libraries that it loads.
func (t tree) add(program string) error {
	path, err := exec.LookPath(program)
	if err != nil {
		return fmt.Errorf("%w: install what Kubernetes' tests use: .ci/install conformance", err)
	}
	libraries, err := exec.Command("ldd", path).Output()
	if err != nil {
		return fmt.Errorf("libraries of %s: %w", path, err)
	}
	for _, from := range append(library.FindAllString(string(libraries), -1), path) {
		data, err := os.ReadFile(from)
		if err != nil {
			return err
		}
		to := strings.TrimPrefix(from, "/")
		if from == path {
			to = "usr/bin/" + program
		}
		t.file(to, 0o755, data)
	}
	return nil
}

// layer is the tree as a tar, with all directories that lead to its files.
func (t tree) layer() ([]byte, error) {
	all := maps.Clone(t)
	for path := range t {
		for dir := filepath.Dir(path); dir != "."; dir = filepath.Dir(dir) {
			if all[dir] == nil {
				all[dir] = &treeEntry{mode: fs.ModeDir | 0o755}
			}
		}
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, path := range slices.Sorted(maps.Keys(all)) {
		e := all[path]
		h := &tar.Header{Name: path, Mode: int64(e.mode.Perm()), Size: int64(len(e.data))}
		switch {
		case e.mode.IsDir():
			h.Typeflag, h.Name = tar.TypeDir, path+"/"
		case e.mode&fs.ModeSymlink != 0:
			h.Typeflag, h.Linkname = tar.TypeSymlink, e.link
		}
		if e.mode&fs.ModeSticky != 0 {
			h.Mode |= 0o1000
		}
		if e.mode&fs.ModeSetuid != 0 {
			h.Mode |= 0o4000
		}
		if err := errors.Join(w.WriteHeader(h), write(w, e.data)); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
	}
	return b.Bytes(), w.Close()
}

func write(w *tar.Writer, data []byte) error {
	_, err := w.Write(data)
	return err
}

// importConformanceImages gives all nodes the images of Kubernetes' tests, under
// upstream's names: no registry is asked. nginx is a web server of agnhost's.
func (k *testCase) importConformanceImages() {
	k.Helper()
	small, err := busybox()
	if err != nil {
		k.Fatal(err)
	}
	full := maps.Clone(small)
	for _, program := range tools {
		if err := full.add(program); err != nil {
			k.Fatal(err)
		}
	}
	full.link("bin/nc", "/usr/bin/nc.openbsd")
	_, agnhost := k.program(controlplane.Agnhost)
	full.file("agnhost", 0o755, agnhost)
	full.link("agnhost-2", "agnhost")
	certificate, key, err := cert.GenerateSelfSignedCertKey("localhost", nil, nil) // of a server that it can be
	if err != nil {
		k.Fatal(err)
	}
	full.file("localhost.crt", 0o644, certificate)
	full.file("localhost.key", 0o644, key)
	nnp := maps.Clone(small)
	_, program := k.program(controlplane.NoNewPrivs)
	nnp.file("bin/nnp", fs.ModeSetuid|0o755, program)

	path := []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	const registry = "registry.k8s.io/e2e-test-images/"
	for _, i := range []struct {
		tree   tree
		config map[string]any
		names  []string
	}{
		{full, map[string]any{"Entrypoint": []string{"/agnhost"}, "Cmd": []string{"pause"}}, []string{registry + "agnhost:2.66.1", registry + "agnhost:2.55", registry + "glibc-dns-testing:2.1.1"}},
		{full, map[string]any{"Entrypoint": []string{"/agnhost", "pause"}}, []string{"registry.k8s.io/pause:3.10.2"}},
		{full, map[string]any{"Entrypoint": []string{"/agnhost", "test-webserver"}}, []string{registry + "nginx:1.27.0-2", registry + "nginx:1.28.0-2"}},
		{small, map[string]any{"Cmd": []string{"sh"}}, []string{registry + "busybox:1.37.0-2"}},
		{small, map[string]any{"Cmd": []string{"sh"}, "User": "1234"}, []string{registry + "nonroot:1.5"}},
		{nnp, map[string]any{"Cmd": []string{"nnp"}}, []string{registry + "nonewprivs:1.4"}},
	} {
		layer, err := i.tree.layer()
		if err != nil {
			k.Fatal(err)
		}
		i.config["Env"] = path
		archive, err := containerdtest.LayerTar(layer, i.config, i.names...)
		if err != nil {
			k.Fatal(err)
		}
		k.importImages(archive)
	}
}
