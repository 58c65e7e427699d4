// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"os"
	"runtime"
)

// workloadImage is the image of all Pods, sandboxes too: the program workload
// and nothing else.
const workloadImage = "fairlead.test/workload:1"

type file struct {
	header tar.Header
	data   []byte
}

// writeImage writes an archive, as `docker save` does, of one layer.
func writeImage(path, workload string) error {
	program, err := os.ReadFile(workload)
	if err != nil {
		return err
	}
	layer, err := archive(
		file{tar.Header{Name: "workload", Mode: 0o755}, program},
		file{tar.Header{Name: "tmp/", Mode: 0o1777, Typeflag: tar.TypeDir}, nil},
		file{tar.Header{Name: "etc/", Mode: 0o755, Typeflag: tar.TypeDir}, nil},
		file{tar.Header{Name: "etc/passwd", Mode: 0o644}, []byte("root:x:0:0::/:/workload\nnobody:x:65534:65534::/:/workload\n")},
	)
	if err != nil {
		return err
	}
	sum := sha256.Sum256(layer)
	config, err := json.Marshal(map[string]any{
		"architecture": runtime.GOARCH, "os": "linux",
		"config": map[string]any{"Entrypoint": []string{"/workload"}, "Env": []string{"PATH=/"}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{"sha256:" + hex.EncodeToString(sum[:])}},
	})
	if err != nil {
		return err
	}
	manifest, err := json.Marshal([]map[string]any{{"Config": "config.json", "RepoTags": []string{workloadImage}, "Layers": []string{"layer.tar"}}})
	if err != nil {
		return err
	}
	image, err := archive(
		file{tar.Header{Name: "config.json", Mode: 0o644}, config},
		file{tar.Header{Name: "layer.tar", Mode: 0o644}, layer},
		file{tar.Header{Name: "manifest.json", Mode: 0o644}, manifest},
	)
	if err != nil {
		return err
	}
	return os.WriteFile(path, image, 0o644)
}

func archive(files ...file) ([]byte, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		f.header.Size = int64(len(f.data))
		if err := w.WriteHeader(&f.header); err != nil {
			return nil, err
		}
		if _, err := w.Write(f.data); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}
