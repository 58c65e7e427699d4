// SPDX-License-Identifier: Apache-2.0

package containerdtest

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
)

// Image is the name of the image that every Runtime has: the guest binary is
// its entrypoint, and its files are root's.
const Image = "fairlead.test/guest:1"

var guest = sync.OnceValues(buildGuest)

// buildGuest compiles the guest. The build cache makes the second time cheap.
func buildGuest() ([]byte, error) {
	_, file, _, ok := runtime.Caller(0)
	if !ok {
		return nil, errors.New("build the guest: no path of the sources")
	}
	dir, err := os.MkdirTemp("", "fairlead-guest-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	out := filepath.Join(dir, "guest")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", out, "./guest")
	cmd.Dir = filepath.Dir(file)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if b, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build the guest: %w: %s", err, b)
	}
	return os.ReadFile(out)
}

// ImageTar is an archive, as ProgramTar makes it, with the guest at /guest under
// the name given.
func ImageTar(name string) ([]byte, error) {
	binary, err := guest()
	if err != nil {
		return nil, err
	}
	return ProgramTar(name, "guest", binary, "FROM_IMAGE=yes")
}

// ProgramTar is an archive, as `docker save` writes it, of one layer with a
// program at /PROGRAM, which is the entrypoint, and a /tmp that all may write to.
func ProgramTar(name, program string, binary []byte, env ...string) ([]byte, error) {
	layer, err := tarOf(
		entry{&tar.Header{Name: program, Mode: 0o755}, binary},
		entry{&tar.Header{Name: "tmp/", Mode: 0o1777, Typeflag: tar.TypeDir}, nil},
		entry{&tar.Header{Name: "etc/", Mode: 0o755, Typeflag: tar.TypeDir}, nil},
		entry{&tar.Header{Name: "etc/passwd", Mode: 0o644}, fmt.Appendf(nil, "root:x:0:0::/:/%s\nnobody:x:65534:65534::/:/%[1]s\n", program)},
		entry{&tar.Header{Name: "etc/group", Mode: 0o644}, []byte("root:x:0:\nnobody:x:65534:\n")},
	)
	if err != nil {
		return nil, err
	}
	return LayerTar(layer, map[string]any{"Entrypoint": []string{"/" + program}, "Env": append([]string{"PATH=/"}, env...)}, name)
}

// LayerTar is an archive, as `docker save` writes it, of an image of one layer, a
// tar, with the config that OCI's image specification has for containers.
func LayerTar(layer []byte, container map[string]any, names ...string) ([]byte, error) {
	sum := sha256.Sum256(layer)
	config, err := json.Marshal(map[string]any{
		"architecture": runtime.GOARCH, "os": "linux", "config": container,
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{"sha256:" + hex.EncodeToString(sum[:])}},
	})
	if err != nil {
		return nil, err
	}
	manifest, err := json.Marshal([]map[string]any{{"Config": "config.json", "RepoTags": names, "Layers": []string{"layer.tar"}}})
	if err != nil {
		return nil, err
	}
	return tarOf(
		entry{&tar.Header{Name: "config.json", Mode: 0o644}, config},
		entry{&tar.Header{Name: "layer.tar", Mode: 0o644}, layer},
		entry{&tar.Header{Name: "manifest.json", Mode: 0o644}, manifest},
	)
}

type entry struct {
	header *tar.Header
	data   []byte
}

func tarOf(entries ...entry) ([]byte, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		e.header.Size = int64(len(e.data))
		if err := w.WriteHeader(e.header); err != nil {
			return nil, err
		}
		if _, err := w.Write(e.data); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}
