// SPDX-License-Identifier: Apache-2.0

package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const ownHeader = "apiVersion: fairlead.dev/v1alpha1\nkind: FairleadConfiguration\n"

func TestAnOwnFileSetsWhatItNamesAndLeavesTheDefaults(t *testing.T) {
	c, warnings, err := Parse([]byte(ownHeader + `
manifests: /etc/fairlead
clusterCIDR: 10.244.0.0/16, fd00:10::/56
serviceCIDR: [10.96.0.0/16]
metricsBindAddress: ""
healthzBindAddress: "::"
conntrackUDPTimeout: 1m
slotsMax: 4096
`))
	if err != nil {
		t.Fatal(err)
	}
	if len(warnings) != 0 {
		t.Errorf("warnings: %v", warnings)
	}
	want := Default()
	want.Manifests = "/etc/fairlead"
	want.ClusterCIDR = List{"10.244.0.0/16", "fd00:10::/56"}
	want.ServiceCIDR = List{"10.96.0.0/16"}
	want.MetricsBindAddress = ""
	want.HealthzBindAddress = "[::]:10256"
	want.ConntrackUDPTimeout = metav1.Duration{Duration: time.Minute}
	want.SlotsMax = 4096
	if diff := cmp.Diff(want, c); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestAnErrorInAFileNamesTheKey(t *testing.T) {
	for _, tc := range []struct{ name, file, want string }{
		{"empty", "", "the file is empty"},
		{"comments only", "# nothing\n", "the file is empty"},
		{"a list", "- a\n", "want an object with apiVersion and kind"},
		{"no kind", "manifests: /x\n", `kind "" of "" is not understood; want FairleadConfiguration of fairlead.dev/v1alpha1`},
		{"kind is no string", "kind: [1]\n", "kind: want a string"},
		{"another version", "kind: FairleadConfiguration\napiVersion: fairlead.dev/v9\n", `of "fairlead.dev/v9" is not understood`},
		{"unknown key", ownHeader + "manifest: /x\n", "unknown key manifest (line 3)"},
		{"two unknown keys", ownHeader + "a: 1\nb: 2\n", "unknown key a (line 3), unknown key b (line 4)"},
		{"key in another case", ownHeader + "Manifests: /x\n", "unknown key Manifests (line 3)"},
		{"repeated key", ownHeader + "pods: off\npods: off\n", `"pods" already`},
		{"two documents", ownHeader + "---\nkind: X\n", "line 3: a second document starts here"},
		{"wrong type", ownHeader + "slotsMax: many\n", "slotsMax (line 3): cannot be a string, want int"},
		{"bad list", ownHeader + "devices: {a: b}\n", "want a list of strings"},
		{"bad value", ownHeader + "clusterCIDR: 10.0.0.0\n", `clusterCIDR "10.0.0.0": want CIDRs`},
		{"bad choice", ownHeader + "dataplane: ipfw\n", `dataplane "ipfw": want auto, ebpf, nftables, iptables or ipvs`},
		{"both sources", ownHeader + "manifests: /x\nkubeconfig: /y\n", "kubeconfig and manifests are both set"},
		{"bad duration", ownHeader + "conntrackUDPTimeout: 1\n", ""},
		{"too large", strings.Repeat("#", maxFileBytes+1), "larger than"},
		{"not yaml", "\tx", "yaml: "},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, _, err := Parse([]byte(tc.file))
			if err == nil || !strings.Contains(err.Error(), tc.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("file %q\n got: %v\nwant: one line with %q", tc.file, err, tc.want)
			}
		})
	}
}

func TestAFileThatCannotBeReadIsNamed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "missing.yaml")
	if _, _, err := Load(path); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("error %v does not name %s", err, path)
	}
	bad := filepath.Join(t.TempDir(), "bad.yaml")
	if err := os.WriteFile(bad, []byte("x: 1"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := Load(bad); err == nil || !strings.HasPrefix(err.Error(), "--config "+bad+": ") {
		t.Errorf("error %v does not begin with the file", err)
	}
}

// FuzzParse: whatever the file, the outcome is a valid configuration or an
// error of one line.
func FuzzParse(f *testing.F) {
	kubeadm, err := os.ReadFile("testdata/kubeadm.yaml")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(kubeadm)
	f.Add([]byte(ownHeader + "manifests: /x\ndevices: eth*,ens1\nconntrackMax: 3\n"))
	f.Add([]byte(kubeProxyHeader + "conntrack: {maxPerCore: -1}\nfeatureGates: {A: true}\nlogging: {vmodule: [{filePattern: a, verbosity: 1}]}\n"))
	f.Add([]byte(ownHeader + "a: &a [*a]\n"))
	f.Add([]byte(`{"kind":"FairleadConfiguration","apiVersion":"fairlead.dev/v1alpha1","v":4}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		begin := time.Now()
		c, _, err := Parse(data)
		if took := time.Since(begin); took > 5*time.Second {
			t.Fatalf("Parse of %d bytes took %v", len(data), took)
		}
		if err != nil {
			if strings.Contains(err.Error(), "\n") {
				t.Fatalf("error of several lines: %q", err)
			}
			return
		}
		again := c
		if err := again.Validate(); err != nil {
			t.Fatalf("Parse gave an invalid configuration: %v", err)
		}
		if diff := cmp.Diff(c, again); diff != "" {
			t.Fatalf("a second Validate changes it:\n%s", diff)
		}
	})
}
