// SPDX-License-Identifier: Apache-2.0

package podnetwork

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"pgregory.net/rapid"
)

func prefixes(texts ...string) (out []netip.Prefix) {
	for _, t := range texts {
		out = append(out, netip.MustParsePrefix(t))
	}
	return out
}

func addrs(texts ...string) (out []netip.Addr) {
	for _, t := range texts {
		out = append(out, netip.MustParseAddr(t))
	}
	return out
}

func TestRoutesLeadToTheRangesOfTheOtherNodes(t *testing.T) {
	nodes := []Node{
		{"one", prefixes("10.244.1.0/24"), addrs("10.0.0.1")}, // this one
		{"two", prefixes("10.244.2.0/24", "fd00:2::/64"), addrs("10.0.0.2", "fd00::2", "10.0.0.22")},
		{"three", prefixes("10.244.3.0/24", "fd00:3::/64"), addrs("10.0.0.3")},
		{"four", prefixes("10.244.2.128/25"), addrs("10.0.0.4")},
		{"five", prefixes("10.244.1.0/24"), addrs("10.0.0.5")},
		{"six", prefixes("0.0.0.0/0"), addrs("10.0.0.6")},
		{"seven", nil, addrs("10.0.0.7")},
	}
	routes, problems := wantedRoutes("one", nodes, nodes[0].PodCIDRs)
	var got []string
	for _, r := range routes {
		got = append(got, r.to.String()+" "+r.via.String())
	}
	want := []string{"10.244.1.0/24 invalid IP", "10.244.2.0/24 10.0.0.2", "fd00:2::/64 fd00::2", "10.244.3.0/24 10.0.0.3"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("routes (-want +got):\n%s", diff)
	}
	wantProblems := []string{
		"node three: it has no address to reach its range fd00:3::/64 by",
		"node four: its range of Pods 10.244.2.128/25 is also node two's",
		"node five: its range of Pods 10.244.1.0/24 is also node one's",
		"node six: its range of Pods 0.0.0.0/0 is no network",
	}
	if diff := cmp.Diff(wantProblems, problems); diff != "" {
		t.Errorf("problems (-want +got):\n%s", diff)
	}
}

func TestARangeOfPodsIsChecked(t *testing.T) {
	for text, want := range map[string]string{
		"10.244.1.0/24":               "",
		"10.244.1.0/24 fd00::/64":     "",
		"10.244.1.1/24":               "no network address",
		"10.244.1.0/31":               "too small",
		"10.244.1.0/24 10.244.2.0/24": "one of its family is enough",
	} {
		err := checkCIDRs(prefixes(strings.Fields(text)...))
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
}

func TestMergedRangesHoldTheSameAddressesAndAreApart(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var in []netip.Prefix
		for range rapid.IntRange(0, 8).Draw(t, "prefixes") {
			a := netip.AddrFrom4([4]byte{rapid.SampledFrom([]byte{0, 10, 255}).Draw(t, "a"), 0, rapid.SampledFrom([]byte{0, 1, 255}).Draw(t, "c"), rapid.Byte().Draw(t, "d")})
			in = append(in, netip.PrefixFrom(a, rapid.IntRange(0, 32).Draw(t, "bits")))
		}
		out := merge(in, true)
		for i, r := range out {
			if r.first.Compare(r.last) > 0 || i > 0 && (out[i-1].last.Compare(r.first) >= 0 || out[i-1].last.Next() == r.first) {
				t.Fatalf("%v of %v", out, in)
			}
		}
		contains := func(a netip.Addr) bool {
			for _, r := range out {
				if r.first.Compare(a) <= 0 && a.Compare(r.last) <= 0 {
					return true
				}
			}
			return false
		}
		var probes []netip.Addr
		for _, p := range in {
			probes = append(probes, p.Masked().Addr(), last(p), p.Masked().Addr().Prev(), last(p).Next())
		}
		for _, a := range probes {
			want := false
			for _, p := range in {
				want = want || p.Contains(a)
			}
			if a.IsValid() && contains(a) != want {
				t.Fatalf("%s in %v is %t, in %v %t", a, out, !want, in, want)
			}
		}
	})
}

func TestTheConfigurationNamesEachFamily(t *testing.T) {
	b, err := makeConflist(prefixes("10.244.1.0/24", "fd00:1::/64"), 1450, "/data")
	if err != nil {
		t.Fatal(err)
	}
	want := `{
  "cniVersion": "0.4.0",
  "name": "fairlead",
  "plugins": [
    {
      "type": "ptp",
      "mtu": 1450,
      "ipMasq": false,
      "ipam": {
        "type": "host-local",
        "dataDir": "/data",
        "ranges": [
          [
            {
              "subnet": "10.244.1.0/24"
            }
          ],
          [
            {
              "subnet": "fd00:1::/64"
            }
          ]
        ],
        "routes": [
          {
            "dst": "0.0.0.0/0"
          },
          {
            "dst": "::/0"
          }
        ]
      }
    }
  ]
}
`
	if diff := cmp.Diff(want, string(b)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestWhatCannotBeReadOfANodeIsLeftOut(t *testing.T) {
	o := &corev1.Node{}
	o.Name = "n"
	o.Spec.PodCIDR, o.Spec.PodCIDRs = "10.1.0.0/24", []string{"10.1.0.0/24", "nonsense", "fd00::1/64"}
	o.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeHostName, Address: "10.9.9.9"}, {Type: corev1.NodeInternalIP, Address: "x"}, {Type: corev1.NodeInternalIP, Address: "10.0.0.1"}}
	want := &Node{"n", prefixes("10.1.0.0/24", "fd00::/64"), addrs("10.0.0.1")}
	if diff := cmp.Diff(want, fromObject(o), cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
