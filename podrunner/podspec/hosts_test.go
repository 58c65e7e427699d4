// SPDX-License-Identifier: Apache-2.0

package podspec

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/utils/ptr"
)

func TestHostnameIsThePodsUnlessItSaysOtherwise(t *testing.T) {
	long := strings.Repeat("a", 62) + "-b"
	for _, c := range []struct {
		change             func(*corev1.Pod)
		name, domain, fqdn string
	}{
		{func(p *corev1.Pod) {}, "front", "", "front"},
		{func(p *corev1.Pod) { p.Name = long }, long[:62], "", long[:62]},
		{func(p *corev1.Pod) { p.Spec.Hostname, p.Spec.Subdomain = "h", "sub" }, "h", "sub.web.svc.cluster.local", "h"},
		{func(p *corev1.Pod) { p.Spec.Subdomain, p.Spec.SetHostnameAsFQDN = "sub", ptr.To(true) }, "front", "sub.web.svc.cluster.local", "front.sub.web.svc.cluster.local"},
		{func(p *corev1.Pod) { p.Spec.HostnameOverride, p.Spec.Hostname = ptr.To("a.b.example"), "h" }, "a.b.example", "", "a.b.example"},
	} {
		pod := testPod(c.change)
		name, domain, err := Hostname(pod, testFacts())
		if err != nil || name != c.name || domain != c.domain {
			t.Errorf("got %q %q %v, want %q %q", name, domain, err, c.name, c.domain)
		}
		if k, err := kernelHostname(pod, testFacts()); err != nil || k != c.fqdn {
			t.Errorf("kernel host name %q %v, want %q", k, err, c.fqdn)
		}
	}
	for want, change := range map[string]func(*corev1.Pod){
		`pod Hostname "A_" is not a valid DNS label`:             func(p *corev1.Pod) { p.Spec.Hostname = "A_" },
		`pod Subdomain "a.b" is not a valid DNS label`:           func(p *corev1.Pod) { p.Spec.Subdomain = "a.b" },
		`pod HostnameOverride "A" is not a valid DNS subdomain`:  func(p *corev1.Pod) { p.Spec.HostnameOverride = ptr.To("A") },
		"failed to construct FQDN from pod hostname and cluster": func(p *corev1.Pod) { p.Name, p.Spec.Subdomain, p.Spec.SetHostnameAsFQDN = long, "s", ptr.To(true) },
	} {
		_, err := Sandbox(testPod(change), 0, testFacts())
		var r *Refused
		if !errors.As(err, &r) || r.Reason != "FailedCreatePodSandBox" || !strings.HasPrefix(r.Message, want) {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}

func TestHostsFileHasThePodsAddressesAndAliases(t *testing.T) {
	const head = "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n" +
		"fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n"
	aliases := []corev1.HostAlias{{IP: "1.2.3.4", Hostnames: []string{"a", "b.example"}}, {IP: "::9", Hostnames: []string{"c"}}}
	const tail = "\n# Entries added by HostAliases.\n1.2.3.4\ta\tb.example\n::9\tc\n"
	for _, c := range []struct {
		change func(*corev1.Pod)
		facts  func(*Facts)
		want   string
	}{
		{func(p *corev1.Pod) {}, func(f *Facts) {}, head + "10.1.0.5\tfront\nfd00::5\tfront\n"},
		{func(p *corev1.Pod) { p.Spec.HostAliases, p.Spec.Subdomain = aliases, "s" }, func(f *Facts) {},
			head + "10.1.0.5\tfront.s.web.svc.cluster.local\tfront\nfd00::5\tfront.s.web.svc.cluster.local\tfront\n" + tail},
		{func(p *corev1.Pod) { p.Spec.HostNetwork, p.Spec.HostAliases = true, aliases }, func(f *Facts) { f.HostsFile, f.PodIPs = "127.0.0.1 node\n", nil },
			"# Kubernetes-managed hosts file (host network).\n127.0.0.1 node\n" + tail},
		{func(p *corev1.Pod) {}, func(f *Facts) { f.PodIPs = nil }, ""},
	} {
		f := testFacts()
		c.facts(f)
		got, err := Hosts(testPod(c.change), f)
		if d := cmp.Diff(c.want, string(got)); d != "" || err != nil || (got == nil) != (c.want == "") {
			t.Errorf("%v (-want +got):\n%s", err, d)
		}
	}
}
