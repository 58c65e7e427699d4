// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"fairlead.dev/podrunner/containerdtest"
)

// node is a machine of the cluster: network, mount and process namespaces.
type node struct {
	c    *cluster
	name string
	zone string
	place
	ipv4, ipv6 net.IP
	first      *exec.Cmd // process 1 of the node
	containerd *process
	agent      *process
	dir        string // in scratch: logs and credentials
	podRoot    string // cgroup of its Pods, as "/name"
}

// nodeMain is process 1 of a node: it makes the node's mounts and reaps.
func nodeMain() {
	err := prepareNode()
	if err != nil {
		fmt.Println("FAILED", err)
		os.Exit(1)
	}
	fmt.Println("READY")
	for {
		if _, err := syscall.Wait4(-1, nil, 0, nil); errors.Is(err, syscall.ECHILD) {
			time.Sleep(100 * time.Millisecond)
		}
	}
}

func prepareNode() error {
	for _, flags := range []uintptr{unix.MS_REC | unix.MS_PRIVATE, unix.MS_REC | unix.MS_SHARED} {
		if err := unix.Mount("", "/", "", flags, ""); err != nil {
			return fmt.Errorf("make mounts the node's own: %w", err)
		}
	}
	for _, m := range []struct{ kind, at, data string }{
		{"proc", "/proc", ""}, {"tmpfs", "/run", "mode=755"}, {"tmpfs", "/var/lib", "mode=755"}, {"tmpfs", "/var/log", "mode=755"},
		{"bpf", "/sys/fs/bpf", ""},
	} {
		if err := unix.Mount("fairlead", m.at, m.kind, 0, m.data); err != nil {
			return fmt.Errorf("mount %s: %w", m.at, err)
		}
	}
	// Its own /etc over the machine's.
	upper, work := "/var/lib/etc", "/var/lib/etc.work"
	if err := errors.Join(os.Mkdir(upper, 0o755), os.Mkdir(work, 0o755)); err != nil {
		return err
	}
	if err := unix.Mount("fairlead", "/etc", "overlay", 0, "lowerdir=/etc,upperdir="+upper+",workdir="+work); err != nil {
		return fmt.Errorf("mount /etc: %w", err)
	}
	if err := os.RemoveAll("/etc/cni"); err != nil {
		return err
	}
	return errors.Join(os.MkdirAll("/etc/cni/net.d", 0o755), os.WriteFile("/etc/resolv.conf", []byte("nameserver 192.0.2.53\n"), 0o644))
}

// newNode starts the namespaces of the node with this number, 1 and more.
func (c *cluster) newNode(number int) (*node, error) {
	n := &node{
		c: c, name: fmt.Sprintf("node%d", number), zone: fmt.Sprintf("zone-%c", 'a'+number-1),
		ipv4: net.IPv4(172, 30, 0, byte(10+number)), ipv6: net.ParseIP(fmt.Sprintf("fd00:30::%x", 0x10+number)),
	}
	n.dir = filepath.Join(scratch, n.name)
	if err := os.Mkdir(n.dir, 0o755); err != nil {
		return nil, err
	}
	cgroup := os.Getenv(cgroupVariable) + "/" + n.name
	for _, top := range containerdtest.CgroupMounts() {
		if err := os.MkdirAll(top+cgroup, 0o755); err != nil {
			return nil, err
		}
		// Of a new cpuset nothing is set, and then nobody can be in it.
		for _, name := range []string{"cpuset.cpus", "cpuset.mems"} {
			if err := inheritCpuset(top, cgroup, name); err != nil {
				return nil, err
			}
		}
	}
	unified, err := cgroup2()
	if err != nil {
		return nil, err
	}
	n.cgroup, n.podRoot = unified+cgroup, cgroup+"/kubepods"
	if err := n.startFirst(); err != nil {
		return nil, fmt.Errorf("%s: %w", n.name, err)
	}
	if err := n.plug(); err != nil {
		return nil, fmt.Errorf("%s: %w", n.name, err)
	}
	return n, nil
}

func inheritCpuset(top, cgroup, name string) error {
	dir := top
	for part := range strings.SplitSeq(strings.Trim(cgroup, "/"), "/") {
		parent, err := os.ReadFile(filepath.Join(dir, name))
		if os.IsNotExist(err) {
			return nil
		}
		dir = filepath.Join(dir, part)
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name), bytes.TrimSpace(parent), 0o644)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// cgroup2 is where cgroup2 is mounted.
func cgroup2() (string, error) {
	for _, m := range containerdtest.CgroupMounts() {
		var fs unix.Statfs_t
		if unix.Statfs(m, &fs) == nil && fs.Type == unix.CGROUP2_SUPER_MAGIC {
			return m, nil
		}
	}
	return "", errors.New("cgroup2 is not mounted")
}

func (n *node) startFirst() error {
	n.first = exec.Command("/proc/self/exe")
	n.first.Args[0] = "fairlead-cluster-" + n.name
	n.first.Env = append(os.Environ(), roleVariable+"=node")
	n.first.Stderr = os.Stderr
	n.first.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS | syscall.CLONE_NEWPID, Setpgid: true, Pdeathsig: syscall.SIGKILL,
	}
	out, err := n.first.StdoutPipe()
	if err != nil {
		return err
	}
	started := make(chan error, 1)
	go func() {
		lockForever() // Pdeathsig is about the thread
		started <- n.first.Start()
		select {}
	}()
	if err := <-started; err != nil {
		return err
	}
	b := make([]byte, 1000)
	got, err := out.Read(b)
	if line := strings.TrimSpace(string(b[:got])); err != nil || line != "READY" {
		return fmt.Errorf("prepare the node: %s %w", line, err)
	}
	n.pid = n.first.Process.Pid
	return nil
}

// plug joins the node to the underlay.
func (n *node) plug() error {
	veth := netlink.NewVeth(netlink.LinkAttrs{Name: n.name})
	veth.PeerName, veth.PeerNamespace = "uplink0", netlink.NsPid(n.pid)
	if err := netlink.LinkAdd(veth); err != nil {
		return fmt.Errorf("join the underlay: %w", err)
	}
	bridge, err := netlink.LinkByName(underlayName)
	if err != nil {
		return err
	}
	if err := errors.Join(netlink.LinkSetMaster(veth, bridge), netlink.LinkSetUp(veth)); err != nil {
		return err
	}
	return n.do(func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		up, err := netlink.LinkByName("uplink0")
		if err != nil {
			return err
		}
		if err := errors.Join(netlink.LinkSetUp(lo), netlink.LinkSetUp(up)); err != nil {
			return err
		}
		for _, a := range []*net.IPNet{{IP: n.ipv4, Mask: net.CIDRMask(24, 32)}, {IP: n.ipv6, Mask: net.CIDRMask(64, 128)}} {
			if err := netlink.AddrAdd(up, &netlink.Addr{IPNet: a, Flags: unix.IFA_F_NODAD}); err != nil {
				return err
			}
		}
		for _, via := range []net.IP{underlayIPv4, underlayIPv6} {
			bits := 32
			if via.To4() == nil {
				bits = 128
			}
			all := &net.IPNet{IP: make(net.IP, bits/8), Mask: net.CIDRMask(0, bits)}
			if err := netlink.RouteAdd(&netlink.Route{LinkIndex: up.Attrs().Index, Dst: all, Gw: via}); err != nil {
				return err
			}
		}
		return nil
	})
}

// startContainerd starts the node's runtime. It has no network before the agent
// writes one.
func (n *node) startContainerd() error {
	config := fmt.Sprintf(`version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.aufs"]
[grpc]
  address = "%s"
[plugins."io.containerd.internal.v1.opt"]
  path = "/var/lib/containerd/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "%s"
  restrict_oom_score_adj = true
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "/etc/cni/net.d"
`, criSocket, workloadImage)
	path := filepath.Join(n.dir, "containerd.toml")
	if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
		return err
	}
	var err error
	n.containerd, err = n.start("containerd of "+n.name, n.logPath("containerd"), "/usr/bin/containerd", "--config", path, "--log-level", "warn")
	return err
}

const criSocket = "/run/containerd/containerd.sock"

// importImage gives the runtime the image of all Pods.
func (n *node) importImage(archive string) error {
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		if err := n.containerd.alive(); err != nil {
			return err
		}
		out, err := n.run("/usr/bin/ctr", "-a", criSocket, "-n", "k8s.io", "images", "import", archive)
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("import the image: %w: %s", err, out)
		}
	}
}

// run runs a command in the node and gives its output.
func (n *node) run(argv ...string) (out []byte, err error) {
	doErr := n.do(func() error {
		out, err = exec.Command(argv[0], argv[1:]...).CombinedOutput()
		return nil
	})
	return out, errors.Join(doErr, err)
}

func (n *node) logPath(name string) string { return filepath.Join(n.dir, name+".log") }

// close ends the node with all that is in it.
func (n *node) close() {
	if n.first != nil && n.first.Process != nil {
		_ = n.first.Process.Kill()
		_ = n.first.Wait()
	}
}
