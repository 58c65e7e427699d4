// SPDX-License-Identifier: Apache-2.0

package config

import (
	"os"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kubeproxy "k8s.io/kube-proxy/config/v1alpha1"
)

const kubeProxyHeader = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n"

func TestTheFileThatKubeadmWritesNeedsNoWarning(t *testing.T) {
	c, warnings, err := Load("testdata/kubeadm.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if len(warnings) != 0 {
		t.Errorf("warnings: %v", warnings)
	}
	want := Default()
	want.Kubeconfig = "/var/lib/kube-proxy/kubeconfig.conf"
	want.ClusterCIDR = List{"10.244.0.0/16", "fd00:10::/56"}
	want.BindAddress = List{"0.0.0.0"}
	if diff := cmp.Diff(want, c); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if ips, err := c.NodeIPs(); err != nil || len(ips) != 0 {
		t.Errorf("NodeIPs of the unspecified address: %v, %v; want none", ips, err)
	}
}

func TestAKubeProxyConfigurationIsMapped(t *testing.T) {
	for _, tc := range []struct {
		name, file string
		want       func(*Configuration)
	}{
		{"names and servers", `
hostnameOverride: Node-A
healthzBindAddress: 10.0.0.1
metricsBindAddress: 0.0.0.0:9999
logging: {format: json, verbosity: 4}
`, func(c *Configuration) {
			c.NodeName, c.HealthzBindAddress, c.MetricsBindAddress = "Node-A", "10.0.0.1:10256", "0.0.0.0:9999"
			c.LogFormat, c.V = "json", 4
		}},
		{"a server turned off with port 0", "metricsBindAddress: 127.0.0.1:0\n", func(c *Configuration) { c.MetricsBindAddress = "" }},
		{"an IPv6 bindAddress moves the servers", `bindAddress: "fd00::1"`, func(c *Configuration) {
			c.BindAddress = List{"fd00::1"}
			c.MetricsBindAddress, c.HealthzBindAddress = "[::1]:10249", "[::]:10256"
		}},
		{"nftables means primary", "mode: nftables\n", func(c *Configuration) { c.NodePortAddresses = List{"primary"} }},
		{"nodePortAddresses win over the mode", "mode: nftables\nnodePortAddresses: [10.0.0.0/8]\n", func(c *Configuration) {
			c.NodePortAddresses = List{"10.0.0.0/8"}
		}},
		{"NodeCIDR leaves clusterCIDR out", "detectLocalMode: NodeCIDR\nclusterCIDR: 10.0.0.0/8\n", func(c *Configuration) {}},
		{"conntrack", "conntrack: {maxPerCore: 1000, min: 2, tcpEstablishedTimeout: 2h, tcpCloseWaitTimeout: 30s, udpTimeout: 20s, udpStreamTimeout: 40s}\n",
			func(c *Configuration) {
				c.ConntrackMax = 2 * 1000 * runtime.NumCPU()
				c.ConntrackTCPTimeoutEstablished = metav1.Duration{Duration: 2 * time.Hour}
				c.ConntrackTCPTimeoutCloseWait = metav1.Duration{Duration: 30 * time.Second}
				c.ConntrackUDPTimeout = metav1.Duration{Duration: 20 * time.Second}
				c.ConntrackUDPTimeoutStream = metav1.Duration{Duration: 40 * time.Second}
			}},
		{"iptables and ipvs", "iptables: {masqueradeBit: 20}\nipvs: {scheduler: sh, strictARP: true, excludeCIDRs: [10.1.0.0/16], tcpTimeout: 1h, tcpFinTimeout: 1m, udpTimeout: 2m}\n",
			func(c *Configuration) {
				c.IPTablesMasqueradeBit, c.IPVSScheduler, c.IPVSStrictARP = 20, "sh", true
				c.IPVSTCPTimeout, c.IPVSTCPFinTimeout = metav1.Duration{Duration: time.Hour}, metav1.Duration{Duration: time.Minute}
				c.IPVSUDPTimeout = metav1.Duration{Duration: 2 * time.Minute}
			}},
		{"conntrack.min is a floor", "conntrack: {maxPerCore: 1, min: 500000}\n", func(c *Configuration) { c.ConntrackMax = 2 * 500000 }},
		{"conntrack.maxPerCore 0 ignores min", "conntrack: {maxPerCore: 0, min: 500000}\n", func(c *Configuration) {}},
		{"conntrack is bounded", "conntrack: {maxPerCore: 2147483647}\n", func(c *Configuration) { c.ConntrackMax = maxEntries }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, _, err := Parse([]byte(kubeProxyHeader + tc.file))
			if err != nil {
				t.Fatal(err)
			}
			want := Default()
			tc.want(&want)
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

func TestAKeyThatDoesNotApplyIsNamed(t *testing.T) {
	for _, tc := range []struct {
		name, file string
		want       []string
	}{
		{"kube-proxy's defaults written out", `
iptables: {masqueradeBit: 14, syncPeriod: 30s, minSyncPeriod: 1000ms, localhostNodePorts: true}
nftables: {masqueradeBit: 14}
oomScoreAdj: -999
configSyncPeriod: 15m
clientConnection: {qps: 5, burst: 10, contentType: application/vnd.kubernetes.protobuf}
detectLocalMode: ClusterCIDR
`, nil},
		{"several, in the order of the reference", `
portRange: 1-2
ipvs: {scheduler: wrr, strictARP: true, minSyncPeriod: 5s}
mode: ipvs
featureGates: {A: true}
enableProfiling: true
iptables: {localhostNodePorts: false, masqueradeAll: true}
`, []string{"featureGates", "mode", "iptables.masqueradeAll", "iptables.localhostNodePorts", "ipvs.minSyncPeriod", "portRange"}},
		{"local traffic by interface", "detectLocalMode: BridgeInterface\ndetectLocal: {bridgeInterface: cni0}\n",
			[]string{"detectLocalMode", "detectLocal.bridgeInterface"}},
		{"clusterCIDR beside NodeCIDR", "detectLocalMode: NodeCIDR\nclusterCIDR: 10.0.0.0/8\n", []string{"clusterCIDR"}},
		{"what fairlead always does", "bindAddressHardFail: true\nconntrack: {tcpBeLiberal: true}\n", nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, warnings, err := Parse([]byte(kubeProxyHeader + tc.file))
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, w := range warnings {
				got = append(got, w.Key)
				if w.Advice == "" {
					t.Errorf("%s: no advice", w.Key)
				}
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

func TestAKubeProxyConfigurationIsRefused(t *testing.T) {
	for _, tc := range []struct{ name, file, want string }{
		{"unknown key", "iptables:\n  masqueradeBits: 3\n", "unknown key iptables.masqueradeBits (line 4)"},
		{"wrong type", "conntrack: {min: many}\n", "conntrack.min (line 3): cannot be a string, want int32"},
		{"windows", "mode: kernelspace\n", "for Windows"},
		{"unknown mode", "mode: userspace\n", `mode (line 3) "userspace": want iptables, ipvs or nftables`},
		{"unknown detectLocalMode", "detectLocalMode: Magic\n", `detectLocalMode "Magic": want ClusterCIDR`},
		{"bad clusterCIDR", "clusterCIDR: x\n", `clusterCIDR "x": want CIDRs`},
		{"negative conntrack", "conntrack: {min: -3}\n", "conntrack.maxPerCore and conntrack.min"},
		{"negative timeout", "conntrack: {udpTimeout: -3s}\n", `conntrack.udpTimeout "-3s"`},
		{"bad nodePortAddresses", "nodePortAddresses: [here]\n", `nodePortAddresses "here": want a CIDR, primary, localhost or all`},
		{"bad log format", "logging: {format: xml}\n", `logging.format "xml": want text or json`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, _, err := Parse([]byte(kubeProxyHeader + tc.file))
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("\n got: %v\nwant: %q", err, tc.want)
			}
		})
	}
}

func TestEveryKeyOfKubeProxyHasItsTreatment(t *testing.T) {
	var known []string
	for _, k := range kubeProxyKeys {
		known = append(known, k.path)
	}
	leaves := keysOf(reflect.TypeFor[kubeproxy.KubeProxyConfiguration](), "", known)
	slices.Sort(leaves)
	slices.Sort(known)
	if diff := cmp.Diff(leaves, known); diff != "" {
		t.Errorf("(-KubeProxyConfiguration +kubeProxyKeys)\n%s", diff)
	}
}

// keysOf lists the paths of a type's keys. A path in whole is not entered.
func keysOf(t reflect.Type, prefix string, whole []string) []string {
	var keys []string
	for i := range t.NumField() {
		f := t.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case name == "-":
		case f.Anonymous && name == "":
			keys = append(keys, keysOf(f.Type, prefix, whole)...)
		case f.Type.Kind() == reflect.Struct && f.Type.PkgPath() != "k8s.io/apimachinery/pkg/apis/meta/v1" &&
			!slices.Contains(whole, prefix+name):
			keys = append(keys, keysOf(f.Type, prefix+name+".", whole)...)
		default:
			keys = append(keys, prefix+name)
		}
	}
	return keys
}

func TestTheMigrationPageShowsTheTreatmentOfEveryKey(t *testing.T) {
	page, err := os.ReadFile("../../docs/migration.md")
	if err != nil {
		t.Fatal(err)
	}
	var table strings.Builder
	table.WriteString("| key | treatment | what becomes of it |\n| --- | --- | --- |\n")
	for _, k := range kubeProxyKeys {
		table.WriteString(k.row())
	}
	if !strings.Contains(string(page), table.String()) {
		t.Errorf("docs/migration.md has not this table:\n%s", table.String())
	}
}

func (k kubeProxyKey) row() string {
	how, what := string(k.treatment), k.advice
	if len(k.loud) > 0 {
		how += ", in part"
		what += "; warned for " + strings.Join(k.loud, ", ") + ": " + k.loudAdvice
	}
	if len(k.quiet) > 0 && k.treatment == warned {
		what += " (no warning for " + strings.Join(k.quiet, ", ") + ")"
	}
	return "| `" + k.path + "` | " + how + " | " + what + " |\n"
}
