// SPDX-License-Identifier: Apache-2.0

package podspec

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/utils/ptr"
)

const resolvConf = `# node
nameserver 192.0.2.53
; another comment
nameserver 2001:db8::53
search ignored.example
search corp.example. .  lab.example
options ndots:2 edns0
options ndots:3
nameserver
`

type dns struct{ Servers, Searches, Options []string }

func dnsOf(c *runtimeapi.DNSConfig) dns { return dns{c.Servers, c.Searches, c.Options} }

func TestDNSFollowsThePolicy(t *testing.T) {
	host := dns{[]string{"192.0.2.53", "2001:db8::53"}, []string{"corp.example", "lab.example"}, []string{"ndots:3", "edns0"}}
	cluster := dns{[]string{"10.96.0.10"}, []string{"web.svc.cluster.local", "svc.cluster.local", "cluster.local", "corp.example", "lab.example"}, []string{"ndots:5"}}
	for _, c := range []struct {
		policy      corev1.DNSPolicy
		hostNetwork bool
		want        dns
	}{
		{corev1.DNSClusterFirst, false, cluster},
		{corev1.DNSClusterFirst, true, host},
		{corev1.DNSClusterFirstWithHostNet, true, cluster},
		{corev1.DNSDefault, false, host},
		{corev1.DNSNone, false, dns{}},
		{"", false, cluster},
	} {
		f := testFacts()
		f.HostResolvConf = resolvConf
		pod := testPod(func(p *corev1.Pod) { p.Spec.DNSPolicy, p.Spec.HostNetwork = c.policy, c.hostNetwork })
		got, warnings := DNS(pod, f)
		if d := cmp.Diff(c.want, dnsOf(got)); d != "" || warnings != nil {
			t.Errorf("%s, host network %v (-want +got):\n%s%v", c.policy, c.hostNetwork, d, warnings)
		}
	}
}

func TestDNSConfigIsAddedAndDuplicatesAreMerged(t *testing.T) {
	f := testFacts()
	f.HostResolvConf = resolvConf
	pod := testPod(func(p *corev1.Pod) {
		p.Spec.DNSPolicy = corev1.DNSDefault
		p.Spec.DNSConfig = &corev1.PodDNSConfig{
			Nameservers: []string{"192.0.2.53", "192.0.2.99"},
			Searches:    []string{"lab.example", "my.example"},
			Options:     []corev1.PodDNSConfigOption{{Name: "ndots", Value: ptr.To("9")}, {Name: "rotate"}},
		}
	})
	got, _ := DNS(pod, f)
	want := dns{[]string{"192.0.2.53", "2001:db8::53", "192.0.2.99"}, []string{"corp.example", "lab.example", "my.example"}, []string{"ndots:9", "edns0", "rotate"}}
	if d := cmp.Diff(want, dnsOf(got)); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

func TestDNSWithoutAClusterResolverFallsBackAndSaysSo(t *testing.T) {
	f := testFacts()
	f.ClusterDNS = nil
	got, warnings := DNS(testPod(), f)
	want := dns{[]string{"127.0.0.1", "::1"}, []string{"."}, nil} // nor has the node a resolv.conf
	if d := cmp.Diff(want, dnsOf(got)); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	const say = `pod: "front_web(0b1c-2d)". kubelet does not have ClusterDNS IP configured and cannot create Pod using "ClusterFirst" policy. Falling back to "Default" policy.`
	if len(warnings) != 1 || warnings[0] != (Warning{"MissingClusterDNS", say}) {
		t.Errorf("warnings %q, want %q", warnings, say)
	}
}

func TestDNSIsCutToItsLimits(t *testing.T) {
	pod := testPod(func(p *corev1.Pod) {
		p.Spec.DNSPolicy = corev1.DNSNone
		c := &corev1.PodDNSConfig{Nameservers: []string{"1.1.1.1", "1.1.1.2", "1.1.1.3", "1.1.1.4"}, Searches: []string{strings.Repeat("x", 254), "a.example"}}
		for i := range 40 {
			c.Searches = append(c.Searches, fmt.Sprintf("%d.%s", i, strings.Repeat("y", 100)))
		}
		p.Spec.DNSConfig = c
	})
	got, warnings := DNS(pod, testFacts())
	if len(got.Servers) != 3 || len(got.Searches) > 32 || got.Searches[0] != "a.example" || len(strings.Join(got.Searches, " ")) > 2048 || len(got.Searches) < 19 {
		t.Errorf("%d servers, %d searches of %d characters", len(got.Servers), len(got.Searches), len(strings.Join(got.Searches, " ")))
	}
	if len(warnings) != 2 || !strings.HasPrefix(warnings[0].Message, "Nameserver limits were exceeded") || !strings.HasPrefix(warnings[1].Message, "Search Line limits were exceeded") ||
		warnings[0].Reason != "DNSConfigForming" {
		t.Errorf("warnings %q", warnings)
	}
}

func FuzzResolvConf(f *testing.F) {
	f.Add(resolvConf)
	f.Add("options a a:1 a:2\nsearch .\nnameserver x y")
	f.Fuzz(func(t *testing.T, s string) {
		c := parseResolvConf(s)
		again := parseResolvConf("search " + strings.Join(c.Searches, " ") + "\nnameserver " + strings.Join(c.Servers, "\nnameserver ") + "\noptions " + strings.Join(c.Options, " "))
		for _, d := range c.Searches { // a name of dots only loses one each time
			if strings.HasSuffix(d, ".") || d == "" {
				return
			}
		}
		if d := cmp.Diff(dnsOf(c), dnsOf(again)); d != "" {
			t.Errorf("%q is not read again as it was (-want +got):\n%s", s, d)
		}
	})
}
