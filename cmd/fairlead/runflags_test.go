// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/pflag"

	"fairlead.dev/controller/config"
)

func TestEverySettingHasAFlagAndEveryFlagASetting(t *testing.T) {
	var flags, settings []string
	newRunCommand().Flags().VisitAll(func(f *pflag.Flag) {
		if f.Name != "config" && f.Name != "help" {
			flags = append(flags, f.Name)
		}
	})
	for i, c := 0, reflect.TypeFor[config.Configuration](); i < c.NumField(); i++ {
		settings = append(settings, c.Field(i).Tag.Get("flag"))
	}
	slices.Sort(flags)
	slices.Sort(settings)
	if diff := cmp.Diff(settings, flags); diff != "" {
		t.Errorf("(-Configuration +flags)\n%s", diff)
	}
}

// values are settings that differ from every default, as flags and in a file.
var values = map[string]string{
	"dataplane": "ebpf", "pods": "cri", "bind-address": "192.0.2.1,2001:db8::1", "service-cidr": "10.96.0.0/16", "cluster-cidr": "10.0.0.0/8,fd00::/8",
	"nodeport-addresses": "primary", "metrics-bind-address": "127.0.0.1:1", "healthz-bind-address": "127.0.0.1:2", "devices": "eth*,lo",
	"masquerade-ports": "1-2", "log-level": "warn", "log-format": "json", "profiling": "true", "kubeconfig": "", "v": "5",
	"iptables-masquerade-bit": "15", "ipvs-scheduler": "sh", "ipvs-strict-arp": "true", "pod-network": "host-gw", "cgroup-driver": "systemd",
	"eviction-hard": "memory.available<1Gi,nodefs.available<3%", "image-gc-high-threshold": "99", "image-gc-low-threshold": "7",
	"cluster-dns": "10.96.0.10", "pod-cidr": "10.244.1.0/24", "node-labels": "a=b", "register-with-taints": "a=b:NoSchedule", "drain-on-stop": "true", "kubelet-rotate-server-certificates": "true", "take-over": "true",
	"status-page": "true", "metrics-auth": "delegated", "external-ips": "deny", "load-balancer-ips": "203.0.113.0/24", "pod-log-dir": "/logs", "pod-cgroup-root": "/pods", "kubelet-bind-address": "127.0.0.1:1",
}

func valueOf(f *pflag.Flag) string {
	if v, ok := values[f.Name]; ok {
		return v
	}
	switch f.Value.Type() {
	case "int":
		return "4711"
	case "duration":
		return "4m0s"
	}
	return "some-" + f.Name
}

// parsed runs the flags, and a file where there is one, the way run does.
func parsed(t *testing.T, args []string, file string) config.Configuration {
	t.Helper()
	c := config.Default()
	f := pflag.NewFlagSet("run", pflag.ContinueOnError)
	addRunFlags(f, &c)
	if err := f.Parse(args); err != nil {
		t.Fatal(err)
	}
	if file != "" {
		loaded, _, err := config.Parse([]byte(file))
		if err != nil {
			t.Fatalf("%v in\n%s", err, file)
		}
		if err := underFlags(f, &c, loaded); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

func TestEachSettingMeansTheSameAsAFlagAndInAFileAndTheFlagWins(t *testing.T) {
	const header = "apiVersion: fairlead.dev/v1alpha1\nkind: FairleadConfiguration\n"
	c := config.Default()
	f := pflag.NewFlagSet("run", pflag.ContinueOnError)
	addRunFlags(f, &c)
	f.VisitAll(func(f *pflag.Flag) {
		t.Run(f.Name, func(t *testing.T) {
			v := valueOf(f)
			line := fmt.Sprintf("%s: %s\n", config.Key(f.Name), v)
			if f.Name == "kubeconfig" {
				line = ""
			}
			byFlag := parsed(t, []string{"--" + f.Name + "=" + v}, "")
			byFile := parsed(t, nil, header+line)
			if diff := cmp.Diff(byFlag, byFile); diff != "" {
				t.Errorf("(-flag +file)\n%s", diff)
			}
			if f.Name != "kubeconfig" && cmp.Equal(byFlag, config.Default()) {
				t.Errorf("--%s=%s changes nothing", f.Name, v)
			}
			// The default given explicitly wins over the file.
			if got := parsed(t, []string{"--" + f.Name + "=" + f.DefValue}, header+line); !cmp.Equal(got, config.Default()) {
				t.Errorf("an explicit --%s=%s does not win over %q:\n%s", f.Name, f.DefValue, line, cmp.Diff(config.Default(), got))
			}
		})
	})
}

func TestASourceOnTheCommandLineTakesThePlaceOfTheFiles(t *testing.T) {
	file := "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nclientConnection: {kubeconfig: /k}\n"
	if c := parsed(t, []string{"--manifests=/m"}, file); c.Manifests != "/m" || c.Kubeconfig != "" {
		t.Errorf("manifests %q, kubeconfig %q; want /m alone", c.Manifests, c.Kubeconfig)
	}
	file = "apiVersion: fairlead.dev/v1alpha1\nkind: FairleadConfiguration\nmanifests: /m\n"
	if c := parsed(t, []string{"--kubeconfig=/k"}, file); c.Manifests != "" || c.Kubeconfig != "/k" {
		t.Errorf("manifests %q, kubeconfig %q; want /k alone", c.Manifests, c.Kubeconfig)
	}
}

func TestTheLayoutIsThatOfThePrograms(t *testing.T) {
	h, err := os.ReadFile("../../bpf/layout.h")
	if err != nil {
		t.Fatal(err)
	}
	if want := fmt.Sprintf("#define FAIRLEAD_LAYOUT %d\n", bpfLayout); !strings.Contains(string(h), want) {
		t.Errorf("bpf/layout.h has no line %q", want)
	}
}
