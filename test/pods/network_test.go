// SPDX-License-Identifier: Apache-2.0

package pods

import (
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestTheAgentIsThePodsNetworkToo has no CNI configuration but the agent's.
func TestTheAgentIsThePodsNetworkToo(t *testing.T) {
	n := newNode(t, "--pod-network", "host-gw", "--pod-cidr", "10.89.0.0/24", "--cluster-cidr", "10.89.0.0/16")
	conflist := n.ownCNI()
	example(n)
	n.start()
	pods := n.await("both Pods are ready", bothReady)
	for name, p := range pods {
		if ip, err := netip.ParseAddr(p.Status.PodIP); err != nil || !netip.MustParsePrefix("10.89.0.0/24").Contains(ip) {
			t.Errorf("%s has the address %q, want one of --pod-cidr", name, p.Status.PodIP)
		}
	}
	n.answers("hello", "web-0", "web-1")
	before := ids(n.pods())
	n.stop()
	n.start()
	n.await("both Pods are ready", bothReady)
	n.same(before)
	removeTheRest(n)

	out, err := exec.Command(n.programs+"/fairlead", "cleanup").CombinedOutput()
	if err != nil || !strings.Contains(string(out), conflist) || !strings.Contains(string(out), "nft table inet fairlead") {
		t.Errorf("fairlead cleanup: %v, %s; want that it removed %s and the table of masquerading", err, out, conflist)
	}
	if _, err := os.Stat(conflist); !os.IsNotExist(err) {
		t.Errorf("%s is still there: %v", conflist, err)
	}
}

// ownCNI makes /etc/cni/net.d, in this mount namespace only, what containerd
// reads; it is empty. It gives where the agent's configuration will be.
func (n *node) ownCNI() (conflist string) {
	n.Helper()
	must := func(what string, err error) {
		n.Helper()
		if err != nil {
			n.Fatalf("%s: %v", what, err)
		}
	}
	layers := "/run/etc-of-the-test"
	must("make layers", os.MkdirAll(layers+"/upper/cni/net.d", 0o755))
	must("make layers", os.MkdirAll(layers+"/work", 0o755))
	must("mount an /etc of our own", unix.Mount("overlay", "/etc", "overlay", 0, "lowerdir=/etc,upperdir="+layers+"/upper,workdir="+layers+"/work"))
	n.Cleanup(func() { must("unmount /etc", unix.Unmount("/etc", unix.MNT_DETACH)) })
	dir := filepath.Join(n.rt.Dir, "cni")
	must("remove the test's own network", os.Remove(filepath.Join(dir, "10-test.conflist")))
	must("bind", unix.Mount(dir, "/etc/cni/net.d", "", unix.MS_BIND, ""))
	n.Cleanup(func() { must("unmount", unix.Unmount("/etc/cni/net.d", unix.MNT_DETACH)) })
	return "/etc/cni/net.d/10-fairlead.conflist"
}
