// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"context"
	"fmt"
	"os"
	"strings"

	"fairlead.dev/dataplane"
	"fairlead.dev/dataplane/nsthread"
)

// Check probes what this machine has: it writes rules of each sort in network
// namespaces of its own, which end with it.
func Check(o Options) []dataplane.CheckResult {
	o = o.withDefaults()
	if err := o.validate(); err != nil {
		return []dataplane.CheckResult{dataplane.Checked("options", "", err, "nothing is done", true)}
	}
	f := o.Flavour
	if f == Auto {
		var err error
		if f, err = detect(); err != nil {
			return []dataplane.CheckResult{dataplane.Checked("iptables", "", err, "no rule can be written", true)}
		}
	}
	checks := []dataplane.CheckResult{checkVersion(f, false), checkVersion(f, true)}
	for _, feature := range features {
		checks = append(checks, dataplane.Checked(feature.name, "", probe(f, false, feature.rules), feature.cost, feature.required))
	}
	checks = append(checks, dataplane.Checked("IPv6 NAT", "", probe(f, true, natFeature), "IPv6 Services are not served", false))
	return append(append(checks, checkRecent()), dataplane.CheckForwarding()...)
}

// feature is a sort of rule that the kernel and the commands must both know.
type feature struct {
	name, rules, cost string
	required          bool
}

const (
	natFeature    = "*nat\n:FAIRLEAD-PROBE - [0:0]\n-A FAIRLEAD-PROBE -p tcp -j DNAT --to-destination 192.0.2.1:80\n-I PREROUTING 1 -j FAIRLEAD-PROBE\nCOMMIT\n"
	recentFeature = "*nat\n:FAIRLEAD-PROBE - [0:0]\n-A FAIRLEAD-PROBE -m recent --set --name fairlead-probe\nCOMMIT\n"
)

func natRule(rule string) string {
	return "*nat\n:FAIRLEAD-PROBE - [0:0]\n-A FAIRLEAD-PROBE " + rule + "\nCOMMIT\n"
}

func filterRule(rule string) string {
	return "*filter\n:FAIRLEAD-PROBE - [0:0]\n-A FAIRLEAD-PROBE " + rule + "\nCOMMIT\n"
}

var features = []feature{
	{"NAT", natFeature, "no Service is served", true},
	{"random choice (statistic)", natRule("-m statistic --mode random --probability 0.5"), "no Service with two Backends is served", true},
	{"comments", natRule(`-m comment --comment "fairlead probe"`), "nothing could be read back", true},
	{"connection states (conntrack)", filterRule("-m conntrack --ctstate NEW,DNAT"), "nothing is refused, nothing masqueraded for hairpins", true},
	{"marks", natRule("-m mark --mark 0x4000/0x4000 -j MARK --set-xmark 0x0/0x4000"), "nothing is masqueraded", true},
	{"local sources (addrtype)", natRule("-m addrtype --src-type LOCAL"), "the node's own traffic is not known", true},
	{"masquerading", "*nat\n:FAIRLEAD-PROBE - [0:0]\n-A FAIRLEAD-PROBE -j MASQUERADE\n-I POSTROUTING 1 -j FAIRLEAD-PROBE\nCOMMIT\n", "clients beyond the cluster get no answer", true},
	{"random source ports (--random-fully)", natRule("-j MASQUERADE --random-fully"), "many connections at once may collide", false},
	{"refusing (REJECT)", filterRule("-p tcp -j REJECT --reject-with tcp-reset"), "Services without Backends are silent", true},
	{"SCTP", natRule("-p sctp -m sctp --dport 80 -j DNAT --to-destination 192.0.2.1:80"), "SCTP Services are not served", false},
	{"client memory (recent)", recentFeature, "Services with sessionAffinity are not served", false},
}

// probe commits rules in a network namespace that ends with it.
func probe(f Flavour, v6 bool, rules string) error {
	if v6 {
		rules = strings.Replace(rules, "192.0.2.1:80", "[2001:db8::1]:80", 1)
	}
	return nsthread.InNew(func() error {
		t := &tool{flavour: f, v6: v6}
		return t.restore(context.Background(), []byte(rules), DefaultLockWait)
	})
}

func checkVersion(f Flavour, v6 bool) dataplane.CheckResult {
	name := command(f, v6, "restore")
	t, err := newTool(f, v6)
	if err != nil {
		return dataplane.Checked(name, "", err, "no rule can be written", !v6)
	}
	a, b, c := t.one.GetIptablesVersion()
	return dataplane.Checked(name, fmt.Sprintf("version %d.%d.%d", a, b, c), nil, "", !v6)
}

// recentTotal is how many clients an xt_recent list remembers. It can be set
// only when the module is loaded.
const recentTotal = "/sys/module/xt_recent/parameters/ip_list_tot"

func checkRecent() dataplane.CheckResult {
	v, err := os.ReadFile(recentTotal)
	if err != nil {
		return dataplane.Checked("clients with affinity", "xt_recent is not loaded: its default is 100 for each Backend", nil, "", false)
	}
	n := strings.TrimSpace(string(v))
	if n == "100" {
		err = fmt.Errorf("100 for each Backend; more with xt_recent.ip_list_tot=N at boot (modprobe option)")
	}
	return dataplane.Checked("clients with affinity", n+" for each Backend", err, "of more clients than that the one unseen for longest loses its affinity", false)
}
