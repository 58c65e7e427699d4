// SPDX-License-Identifier: Apache-2.0

package podnetwork

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// space is a network namespace that the test made.
type space struct {
	t  *testing.T
	ns netns.NsHandle
}

func newSpace(t *testing.T) *space {
	t.Helper()
	s := &space{t: t}
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends here
		var err error
		s.ns, err = netns.New()
		if err == nil {
			for _, family := range []string{"default", "all"} {
				_ = os.WriteFile("/proc/sys/net/ipv6/conf/"+family+"/accept_dad", []byte("0"), 0o644)
			}
			var lo netlink.Link
			if lo, err = netlink.LinkByName("lo"); err == nil {
				err = netlink.LinkSetUp(lo)
			}
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.ns.Close() })
	return s
}

// do runs f on a thread in the namespace.
func (s *space) do(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		if err := netns.Set(s.ns); err != nil {
			done <- err
			return
		}
		done <- f()
	}()
	return <-done
}

func (s *space) must(f func() error) {
	s.t.Helper()
	if err := s.do(f); err != nil {
		s.t.Fatal(err)
	}
}

func (s *space) path() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), int(s.ns)) }

// plug wires the namespace to the switch with these addresses.
func (s *space) plug(lan *space, name string, addresses ...string) {
	s.t.Helper()
	lan.must(func() error {
		veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name, MTU: 1400}, PeerName: "eth0", PeerNamespace: netlink.NsFd(s.ns)}
		if err := netlink.LinkAdd(veth); err != nil {
			return err
		}
		bridge, err := netlink.LinkByName("br")
		if err != nil {
			return err
		}
		return errors.Join(netlink.LinkSetMaster(veth, bridge), netlink.LinkSetUp(veth))
	})
	s.must(func() error {
		l, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		for _, a := range addresses {
			p, err := netlink.ParseAddr(a)
			if err != nil {
				return err
			}
			p.Flags = unix.IFA_F_NODAD
			if err := netlink.AddrAdd(l, p); err != nil {
				return err
			}
		}
		return errors.Join(netlink.LinkSetMTU(l, 1400), netlink.LinkSetUp(l))
	})
}

func newSwitch(t *testing.T) *space {
	lan := newSpace(t)
	lan.must(func() error {
		b := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br", MTU: 1400}}
		return errors.Join(netlink.LinkAdd(b), netlink.LinkSetUp(b))
	})
	return lan
}

// whoAmI answers each connection with the address that it came from.
func (s *space) whoAmI(port int) {
	s.t.Helper()
	var l net.Listener
	s.must(func() (err error) {
		l, err = net.Listen("tcp", fmt.Sprintf(":%d", port))
		return err
	})
	s.t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			host, _, _ := net.SplitHostPort(c.RemoteAddr().String())
			fmt.Fprint(c, host)
			c.Close()
		}
	}()
}

// ask is what the server there says who this namespace is.
func (s *space) ask(to netip.Addr) string {
	var answer string
	err := s.do(func() error {
		c, err := net.DialTimeout("tcp", netip.AddrPortFrom(to, 80).String(), 20*time.Second)
		if err != nil {
			return err
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		b, err := io.ReadAll(c)
		answer = string(b)
		return err
	})
	if err != nil {
		return "error: " + err.Error()
	}
	return answer
}

// member is a node with a Network and, when it was started, a Pod.
type member struct {
	*space
	name    string
	o       Options
	network *Network
	pod     *space
	podIPs  []netip.Addr
}

func newMember(t *testing.T, lan *space, name string, o Options, addresses ...string) *member {
	t.Helper()
	m := &member{space: newSpace(t), name: name}
	dir := t.TempDir()
	o.NodeName, o.ConfDir, o.DataDir = name, filepath.Join(dir, "conf"), filepath.Join(dir, "data")
	m.o = o
	m.plug(lan, name, addresses...)
	m.must(func() (err error) {
		m.network, err = Open(o)
		return err
	})
	t.Cleanup(func() {
		if err := m.network.Close(); err != nil {
			t.Errorf("close the network of %s: %v", name, err)
		}
	})
	return m
}

// startPod does what the runtime does with the configuration.
func (m *member) startPod() {
	m.t.Helper()
	m.pod = newSpace(m.t)
	b, err := os.ReadFile(filepath.Join(m.o.ConfDir, conflistName))
	if err != nil {
		m.t.Fatal(err)
	}
	var list struct {
		CNIVersion string           `json:"cniVersion"`
		Name       string           `json:"name"`
		Plugins    []map[string]any `json:"plugins"`
	}
	if err := json.Unmarshal(b, &list); err != nil {
		m.t.Fatal(err)
	}
	config := list.Plugins[0]
	config["cniVersion"], config["name"] = list.CNIVersion, list.Name
	stdin, _ := json.Marshal(config)
	call := func(verb string) (out []byte) {
		m.must(func() (err error) {
			cmd := exec.Command("/usr/lib/cni/ptp")
			cmd.Env = append(os.Environ(), "CNI_COMMAND="+verb, "CNI_CONTAINERID=pod-"+m.name, "CNI_IFNAME=eth0", "CNI_PATH=/usr/lib/cni", "CNI_NETNS="+m.pod.path())
			cmd.Stdin = strings.NewReader(string(stdin))
			if out, err = cmd.Output(); err != nil {
				return fmt.Errorf("ptp %s: %w: %s", verb, err, out)
			}
			return nil
		})
		return out
	}
	var result struct {
		IPs []struct {
			Address string `json:"address"`
		} `json:"ips"`
	}
	if err := json.Unmarshal(call("ADD"), &result); err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() { call("DEL") })
	for _, ip := range result.IPs {
		m.podIPs = append(m.podIPs, netip.MustParsePrefix(ip.Address).Addr())
	}
	m.pod.whoAmI(80)
}

// routes are those of the node that are fairlead's, as text.
func (m *member) routes() (out map[string]string) {
	m.t.Helper()
	have, err := kernelRoutes(m.network.handle)
	if err != nil {
		m.t.Fatal(err)
	}
	out = map[string]string{}
	for p, r := range have {
		out[p.String()] = r.via.String()
	}
	return out
}
