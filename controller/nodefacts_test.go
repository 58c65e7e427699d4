// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"pgregory.net/rapid"
)

func addrs(s string) []netip.Addr {
	var out []netip.Addr
	for _, f := range strings.Fields(s) {
		out = append(out, netip.MustParseAddr(f))
	}
	return out
}

func prefixes(s string) []netip.Prefix {
	out := []netip.Prefix{}
	for _, f := range strings.Fields(s) {
		out = append(out, netip.MustParsePrefix(f))
	}
	return out
}

// hostOf makes a host with these addresses; one that ends in "!" is deprecated.
func hostOf(s, default4, default6 string) hostAddresses {
	var h hostAddresses
	for _, f := range strings.Fields(s) {
		a, deprecated := strings.CutSuffix(f, "!")
		h.all = append(h.all, hostAddress{Addr: netip.MustParseAddr(a), deprecated: deprecated})
	}
	if default4 != "" {
		h.default4 = netip.MustParseAddr(default4)
	}
	if default6 != "" {
		h.default6 = netip.MustParseAddr(default6)
	}
	return h
}

func text(as ...netip.Addr) string {
	var out []string
	for _, a := range as {
		if a.IsValid() {
			out = append(out, a.String())
		} else {
			out = append(out, "-")
		}
	}
	return strings.Join(out, " ")
}

const dualStack = "10.0.0.5 127.0.0.1 169.254.20.10 192.168.1.5 ::1 2001:db8::5 fe80::1"

func TestNodePortsAreAtTheAddressesThatWereAskedFor(t *testing.T) {
	for _, c := range []struct{ sentence, asked, want string }{
		{"all but link-local ones by default", "", "10.0.0.5 127.0.0.1 192.168.1.5 ::1 2001:db8::5"},
		{"the primary ones", "primary", "10.0.0.5 2001:db8::5"},
		{"loopback", "localhost", "127.0.0.1 ::1"},
		{"all, in a word", "all", "10.0.0.5 127.0.0.1 192.168.1.5 ::1 2001:db8::5"},
		{"all of a family", "0.0.0.0/0", "10.0.0.5 127.0.0.1 192.168.1.5"},
		{"those in a range", "192.168.0.0/16", "192.168.1.5"},
		{"those in a range that is written with host bits", "192.168.1.77/24", "192.168.1.5"},
		{"those in several", "10.0.0.0/8 2001:db8::/32", "10.0.0.5 2001:db8::5"},
		{"primary and a range", "primary 127.0.0.0/8", "10.0.0.5 127.0.0.1 2001:db8::5"},
		{"link-local IPv4 by its range", "169.254.0.0/16", "169.254.20.10"},
		{"none", "203.0.113.0/24", ""},
	} {
		t.Run(c.sentence, func(t *testing.T) {
			n, err := parseNodePortAddresses(strings.Fields(c.asked))
			if err != nil {
				t.Fatal(err)
			}
			f := factRules{nodePort: n}.facts(hostOf(dualStack, "10.0.0.5", "2001:db8::5"), nodeObject{})
			if got := text(f.NodePortAddresses...); got != c.want {
				t.Errorf("--nodeport-addresses %q on %s:\n got %s\nwant %s", c.asked, dualStack, got, c.want)
			}
			if want := "10.0.0.5 169.254.20.10 192.168.1.5 2001:db8::5"; text(f.Addresses...) != want {
				t.Errorf("Addresses %s, want %s whatever was asked", text(f.Addresses...), want)
			}
		})
	}
}

func TestNodePortAddressesThatAreNoneAreRefused(t *testing.T) {
	for _, s := range []string{"10.0.0.1", "Primary", "10.0.0.0/33", "", "::ffff:10.0.0.0/104", "eth0"} {
		if err := ParseNodePortAddresses([]string{s}); err == nil || !strings.Contains(err.Error(), "--nodeport-addresses") {
			t.Errorf("%q: error %v, want one that names the flag", s, err)
		}
	}
}

func TestPrimaryAddressIsTheOneTheNodeIsKnownBy(t *testing.T) {
	for _, c := range []struct{ sentence, host, default4, default6, internal, nodeIPs, want string }{
		{"the Node's InternalIP", dualStack, "10.0.0.5", "", "192.168.1.5", "", "192.168.1.5 2001:db8::5"},
		{"not an InternalIP of another host", dualStack, "10.0.0.5", "", "198.51.100.1", "", "10.0.0.5 2001:db8::5"},
		{"the flag after the Node", dualStack, "10.0.0.5", "", "10.0.0.5", "192.168.1.5", "10.0.0.5 2001:db8::5"},
		{"the flag before the route", dualStack, "10.0.0.5", "", "", "192.168.1.5", "192.168.1.5 2001:db8::5"},
		{"the route before the first", dualStack, "192.168.1.5", "", "", "", "192.168.1.5 2001:db8::5"},
		{"the first global one", dualStack, "", "", "", "", "10.0.0.5 2001:db8::5"},
		{"not a deprecated one", "127.0.0.1 2001:db8::4! 2001:db8::5", "", "", "", "", "- 2001:db8::5"},
		{"a deprecated one that the Node names", "2001:db8::4! 2001:db8::5", "", "", "2001:db8::4", "", "- 2001:db8::4"},
		{"nothing on a host without addresses", "127.0.0.1 ::1 fe80::1", "", "", "10.0.0.5", "", "- -"},
	} {
		t.Run(c.sentence, func(t *testing.T) {
			r := factRules{nodeIPs: addrs(c.nodeIPs)}
			f := r.facts(hostOf(c.host, c.default4, c.default6), nodeObject{internalIPs: addrs(c.internal)})
			if got := text(f.PrimaryIPv4, f.PrimaryIPv6); got != c.want {
				t.Errorf("primary addresses %s, want %s", got, c.want)
			}
		})
	}
}

func TestAServiceAddressOnTheHostTakesNoNodePorts(t *testing.T) {
	r := factRules{serviceCIDRs: prefixes("10.96.0.0/12")}
	f := r.facts(hostOf("10.96.0.10 192.168.1.5", "", ""), nodeObject{})
	if got := text(f.NodePortAddresses...); got != "192.168.1.5" || f.PrimaryIPv4 != netip.MustParseAddr("192.168.1.5") {
		t.Errorf("NodePort addresses %s, primary %s: want 192.168.1.5, not node-local DNS's 10.96.0.10", got, f.PrimaryIPv4)
	}
}

func TestInternalSourcesAreTheClusterCIDRsOrTheNodesPodCIDRs(t *testing.T) {
	o := nodeObject{podCIDRs: prefixes("10.244.1.0/24 fd00:1::/64")}
	if got := (factRules{}).facts(hostAddresses{}, o).InternalSources; cmp.Diff(prefixes("10.244.1.0/24 fd00:1::/64"), got, cmp.Comparer(samePrefix)) != "" {
		t.Errorf("without --cluster-cidr: %v", got)
	}
	r := factRules{clusterCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.7.7/16"), netip.MustParsePrefix("10.0.0.0/16")}}
	if got := r.facts(hostAddresses{}, o).InternalSources; cmp.Diff(prefixes("10.0.0.0/16 10.244.0.0/16"), got, cmp.Comparer(samePrefix)) != "" {
		t.Errorf("with --cluster-cidr: %v, want masked and sorted, without the Node's", got)
	}
}

func samePrefix(a, b netip.Prefix) bool { return a == b }

func TestNodeObjectGivesZoneAddressesAndEligibility(t *testing.T) {
	n := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"topology.kubernetes.io/zone": "zone-a"}},
		Spec:       corev1.NodeSpec{PodCIDR: "10.244.3.0/24"},
		Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{
			{Type: corev1.NodeHostName, Address: "n1"}, {Type: corev1.NodeExternalIP, Address: "203.0.113.1"},
			{Type: corev1.NodeInternalIP, Address: "10.0.0.5"}, {Type: corev1.NodeInternalIP, Address: "not an address"},
			{Type: corev1.NodeInternalIP, Address: "2001:db8::5"},
		}},
	}
	o := parseNode(n, nodeObject{})
	if o.zone != "zone-a" || text(o.internalIPs...) != "10.0.0.5 2001:db8::5" || len(o.podCIDRs) != 1 || o.leaving {
		t.Errorf("parsed %+v", o)
	}
	tainted := n.DeepCopy()
	tainted.Spec.Taints = []corev1.Taint{{Key: "ToBeDeletedByClusterAutoscaler"}}
	if !parseNode(tainted, o).leaving {
		t.Error("a node that the autoscaler is about to remove is not leaving")
	}
	deleted := n.DeepCopy()
	deleted.DeletionTimestamp = &metav1.Time{Time: time.Now()}
	if !parseNode(deleted, o).leaving {
		t.Error("a node that is being deleted is not leaving")
	}
	if parseNode(n, parseNode(tainted, o)).leaving {
		t.Error("a node whose taint was taken off is still leaving")
	}
	if gone := parseNode(nil, o); !gone.leaving || gone.zone != "zone-a" {
		t.Errorf("a Node that is gone gives %+v, want leaving with its last facts", gone)
	}
}

func TestFactsNeverNameAnAddressThatIsNotOnTheHost(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		pool := addrs("10.0.0.1 10.0.0.2 10.96.0.1 127.0.0.1 169.254.0.1 192.168.0.1 ::1 2001:db8::1 fd00::1 fe80::1")
		pick := rapid.SliceOfDistinct(rapid.SampledFrom(pool), func(a netip.Addr) netip.Addr { return a })
		var h hostAddresses
		for _, a := range pool {
			if rapid.Bool().Draw(t, "on host") {
				h.all = append(h.all, hostAddress{Addr: a, deprecated: rapid.Bool().Draw(t, "deprecated")})
			}
		}
		words := rapid.SliceOf(rapid.SampledFrom([]string{"primary", "localhost", "all", "10.0.0.0/8", "fe80::/10", "::/0"})).Draw(t, "asked")
		nodePort, err := parseNodePortAddresses(words)
		if err != nil {
			t.Fatal(err)
		}
		r := factRules{nodeIPs: pick.Draw(t, "node IPs"), nodePort: nodePort, serviceCIDRs: prefixes("10.96.0.0/12")}
		f := r.facts(h, nodeObject{internalIPs: pick.Draw(t, "internal IPs")})
		named := append(append([]netip.Addr{}, f.Addresses...), f.NodePortAddresses...)
		for _, p := range []netip.Addr{f.PrimaryIPv4, f.PrimaryIPv6} {
			if p.IsValid() {
				named = append(named, p)
			}
		}
		for _, a := range named {
			if !h.has(a) {
				t.Fatalf("%s is not on host %v", a, h.all)
			}
		}
		for i := 1; i < len(f.Addresses); i++ {
			if !f.Addresses[i-1].Less(f.Addresses[i]) {
				t.Fatalf("Addresses %v are not sorted", f.Addresses)
			}
		}
	})
}
