// SPDX-License-Identifier: Apache-2.0

package source

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/types"
)

// stateVersion is raised when the meaning of the state file changes.
const stateVersion = 1

// stateFile is the form of the file that keeps what Services were given.
type stateFile struct {
	Version  int                     `json:"version"`
	Services map[string]stateService `json:"services"`
}

// stateService is keyed by "namespace/name".
type stateService struct {
	ClusterIPs          []netip.Addr     `json:"clusterIPs,omitempty"`
	NodePorts           map[string]int32 `json:"nodePorts,omitempty"`
	HealthCheckNodePort int32            `json:"healthCheckNodePort,omitempty"`
}

// errCorrupt: the file was read and makes no sense.
var errCorrupt = errors.New("corrupt")

// load takes over the grants of a file; one that does not exist is empty. All
// Services count as gone since now until they are seen. Nothing is taken from a
// corrupt file.
func (a *allocator) load(path string, now time.Time) error {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var f stateFile
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&f); err != nil {
		return fmt.Errorf("%w: %v", errCorrupt, err)
	}
	if f.Version != stateVersion {
		return fmt.Errorf("%w: version %d, want %d", errCorrupt, f.Version, stateVersion)
	}
	for name, s := range f.Services {
		ns, n, ok := strings.Cut(name, "/")
		if !ok || ns == "" || n == "" {
			return fmt.Errorf("%w: %q is not namespace/name", errCorrupt, name)
		}
		for _, p := range s.NodePorts {
			if p < 1 || p > 65535 {
				return fmt.Errorf("%w: node port %d of %s", errCorrupt, p, name)
			}
		}
	}
	for name, s := range f.Services {
		ns, n, _ := strings.Cut(name, "/")
		a.restore(types.NamespacedName{Namespace: ns, Name: n}, s, now)
	}
	a.changed = false
	return nil
}

// restore takes over one Service's grant, without what is taken.
func (a *allocator) restore(key types.NamespacedName, s stateService, now time.Time) {
	g := &grant{gone: now}
	for _, v := range s.ClusterIPs {
		if v.IsValid() && a.addrs.free(v) && len(g.addrs) < 2 {
			a.addrs.held[v] = key
			g.addrs = append(g.addrs, v)
		}
	}
	for name, v := range s.NodePorts {
		// Ports of one number and different protocols share a node port.
		if holder, held := a.ports.held[v]; held && holder != key || a.ports.claimed[v] > 0 {
			continue
		}
		if g.nodePorts == nil {
			g.nodePorts = map[string]int32{}
		}
		a.ports.held[v], g.nodePorts[name] = key, v
	}
	if v := s.HealthCheckNodePort; v > 0 && a.ports.free(v) {
		a.ports.held[v], g.healthCheck = key, v
	}
	if !g.empty() {
		a.grants[key] = g
	}
}

// save writes the grants so that a crash at any instant leaves the old file or
// the new one.
func (a *allocator) save(path string) error {
	f := stateFile{Version: stateVersion, Services: make(map[string]stateService, len(a.grants))}
	for key, g := range a.grants {
		f.Services[key.String()] = stateService{ClusterIPs: slices.Clone(g.addrs), NodePorts: g.nodePorts, HealthCheckNodePort: g.healthCheck}
	}
	data, err := json.MarshalIndent(f, "", " ")
	if err != nil {
		return err
	}
	if err := writeDurably(path, append(data, '\n')); err != nil {
		return err
	}
	a.changed = false
	return nil
}

// writeDurably replaces a file: temporary file, fsync, rename, fsync of the
// directory.
func writeDurably(path string, data []byte) (err error) {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	tmp, err := os.CreateTemp(dir, "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer func() {
		tmp.Close()
		if err != nil {
			os.Remove(tmp.Name())
		}
	}()
	if _, err := tmp.Write(data); err != nil {
		return err
	}
	if err := tmp.Chmod(0o644); err != nil {
		return err
	}
	if err := tmp.Sync(); err != nil {
		return err
	}
	if err := os.Rename(tmp.Name(), path); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
