// SPDX-License-Identifier: Apache-2.0

package containerdtest

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// Registry is an image registry on loopback that has the guest's image under
// every name and tag. User and Password, where set, must be given.
type Registry struct {
	// Host is "127.0.0.1:PORT".
	Host           string
	User, Password string
	// Pulls counts how often a manifest was asked for and given.
	Pulls atomic.Int32

	blobs    map[string][]byte // by digest
	manifest []byte
}

const manifestType = "application/vnd.docker.distribution.manifest.v2+json"

// NewRegistry starts one that ends with the test.
func NewRegistry(t testing.TB) *Registry {
	t.Helper()
	r := &Registry{blobs: map[string][]byte{}}
	if err := r.fill(); err != nil {
		t.Fatal(err)
	}
	s := httptest.NewServer(r)
	t.Cleanup(s.Close)
	r.Host = s.Listener.Addr().(*net.TCPAddr).String()
	return r
}

// fill takes the image's parts out of its archive.
func (r *Registry) fill() error {
	archive, err := ImageTar(Image)
	if err != nil {
		return err
	}
	files := map[string][]byte{}
	for tr := tar.NewReader(bytes.NewReader(archive)); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		if files[h.Name], err = io.ReadAll(tr); err != nil {
			return err
		}
	}
	part := func(kind string, b []byte) map[string]any {
		return map[string]any{"mediaType": kind, "digest": r.add(b), "size": len(b)}
	}
	r.manifest, err = json.Marshal(map[string]any{
		"schemaVersion": 2, "mediaType": manifestType,
		"config": part("application/vnd.docker.container.image.v1+json", files["config.json"]),
		"layers": []any{part("application/vnd.docker.image.rootfs.diff.tar", files["layer.tar"])},
	})
	r.add(r.manifest)
	return err
}

func (r *Registry) add(b []byte) (digest string) {
	sum := sha256.Sum256(b)
	digest = "sha256:" + hex.EncodeToString(sum[:])
	r.blobs[digest] = b
	return digest
}

// ServeHTTP answers what a pull asks, of the distribution specification.
func (r *Registry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	if user, password, _ := req.BasicAuth(); user != r.User || password != r.Password {
		w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
		http.Error(w, `{"errors": [{"code": "UNAUTHORIZED"}]}`, http.StatusUnauthorized)
		return
	}
	_, last, _ := strings.Cut(req.URL.Path, "/manifests/")
	b, kind := r.manifest, manifestType
	switch {
	case req.URL.Path == "/v2/":
		return
	case strings.Contains(req.URL.Path, "/blobs/"):
		_, digest, _ := strings.Cut(req.URL.Path, "/blobs/")
		b, kind = r.blobs[digest], "application/octet-stream"
	case strings.HasPrefix(last, "sha256:"):
		b = r.blobs[last]
		r.Pulls.Add(1)
	case last == "" || last == "none":
		b = nil
	}
	if b == nil {
		http.NotFound(w, req)
		return
	}
	sum := sha256.Sum256(b)
	w.Header().Set("Content-Type", kind)
	w.Header().Set("Docker-Content-Digest", "sha256:"+hex.EncodeToString(sum[:]))
	http.ServeContent(w, req, "", time.Time{}, bytes.NewReader(b))
}
