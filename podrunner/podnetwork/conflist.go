// SPDX-License-Identifier: Apache-2.0

package podnetwork

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"
)

// conflistName is the file in ConfDir. The runtime takes the first by name.
const conflistName = "10-fairlead.conflist"

type conflist struct {
	CNIVersion string   `json:"cniVersion"`
	Name       string   `json:"name"`
	Plugins    []plugin `json:"plugins"`
}

type plugin struct {
	Type   string `json:"type"`
	MTU    int    `json:"mtu,omitempty"`
	IPMasq bool   `json:"ipMasq"`
	IPAM   ipam   `json:"ipam"`
}

type ipam struct {
	Type    string        `json:"type"`
	DataDir string        `json:"dataDir"`
	Ranges  [][]ipamRange `json:"ranges"`
	Routes  []ipamRoute   `json:"routes"`
}

type ipamRange struct {
	Subnet string `json:"subnet"`
}

type ipamRoute struct {
	Dst string `json:"dst"`
}

// makeConflist is ptp with host-local for each family. There is no portmap:
// host ports are fairlead's, as other Frontends.
func makeConflist(own []netip.Prefix, mtu int, dataDir string) ([]byte, error) {
	p := plugin{Type: "ptp", MTU: mtu, IPAM: ipam{Type: "host-local", DataDir: dataDir}}
	for _, r := range own {
		everywhere := "0.0.0.0/0"
		if r.Addr().Is6() {
			everywhere = "::/0"
		}
		p.IPAM.Ranges = append(p.IPAM.Ranges, []ipamRange{{r.String()}})
		p.IPAM.Routes = append(p.IPAM.Routes, ipamRoute{everywhere})
	}
	b, err := json.MarshalIndent(conflist{CNIVersion: "0.4.0", Name: "fairlead", Plugins: []plugin{p}}, "", "  ")
	return append(b, '\n'), err
}

// writeConflist writes the file, if it is another, at once or not at all.
func (n *Network) writeConflist(own []netip.Prefix) error {
	mtu := n.o.MTU
	if mtu == 0 {
		mtu = n.uplinkMTU()
	}
	want, err := makeConflist(own, mtu, n.o.DataDir)
	if err != nil {
		return fmt.Errorf("CNI configuration: %w", err)
	}
	path := filepath.Join(n.o.ConfDir, conflistName)
	if have, err := os.ReadFile(path); err == nil && bytes.Equal(have, want) {
		return n.before()
	}
	if err := os.MkdirAll(n.o.ConfDir, 0o755); err != nil {
		return fmt.Errorf("CNI configuration: %w", err)
	}
	temporary := filepath.Join(n.o.ConfDir, "."+conflistName)
	if err := os.WriteFile(temporary, want, 0o644); err != nil {
		return fmt.Errorf("CNI configuration: %w", err)
	}
	if err := os.Rename(temporary, path); err != nil {
		return fmt.Errorf("CNI configuration: %w", err)
	}
	n.o.Logger.Info("wrote the CNI configuration", "file", path, "ranges", own)
	return n.before()
}

// before tells of a configuration that the runtime takes instead.
func (n *Network) before() error {
	entries, err := os.ReadDir(n.o.ConfDir)
	if err != nil {
		return fmt.Errorf("CNI configuration: %w", err)
	}
	for _, e := range entries { // in the order of their names
		if e.Name() == conflistName {
			return nil
		}
		switch filepath.Ext(e.Name()) {
		case ".conf", ".conflist", ".json":
			if !strings.HasPrefix(e.Name(), ".") {
				return fmt.Errorf("the runtime takes %s before %s: remove one of them", filepath.Join(n.o.ConfDir, e.Name()), conflistName)
			}
		}
	}
	return nil
}

// uplinkMTU is the smallest MTU of a device with a default route; 0: there is
// none.
func (n *Network) uplinkMTU() (mtu int) {
	routes, err := n.handle.RouteList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return 0
	}
	for _, r := range routes {
		if r.Dst != nil && !r.Dst.IP.IsUnspecified() || r.LinkIndex == 0 {
			continue
		}
		if l, err := n.handle.LinkByIndex(r.LinkIndex); err == nil && r.Gw != nil && (mtu == 0 || l.Attrs().MTU < mtu) {
			mtu = l.Attrs().MTU
		}
	}
	return mtu
}

func removeConflist(o Options) ([]string, error) {
	path := filepath.Join(o.ConfDir, conflistName)
	err := os.Remove(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("remove the CNI configuration: %w", err)
	}
	return []string{"file " + path}, nil
}
