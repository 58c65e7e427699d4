// SPDX-License-Identifier: Apache-2.0

package migrate

import (
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// newNamespace gives the test a network namespace of its own, which ends with
// its goroutine.
func newNamespace(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root, to make a network namespace")
	}
	runtime.LockOSThread() // not unlocked: the thread is spent
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Skipf("no new network namespace: %v", err)
	}
}

func run(t *testing.T, in, name string, args ...string) string {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Skipf("needs %s", name)
	}
	cmd := exec.Command(name, args...)
	cmd.Stdin = strings.NewReader(in)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// foreign are the kubelet's rules and those of others.
const foreign = `*mangle
:KUBE-IPTABLES-HINT - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
COMMIT
*nat
:KUBE-MARK-DROP - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
:MINE - [0:0]
-A PREROUTING -m comment --comment "kubernetes is not mine" -j MINE
-A POSTROUTING -s 10.0.0.0/8 -o eth0 -m comment --comment "say \"KUBE-SERVICES -j KUBE-SVC-X\"" -j MASQUERADE
-A MINE -p tcp -m tcp --dport 81 -j REDIRECT --to-ports 82
-A KUBE-MARK-DROP -j MARK --set-xmark 0x8000/0x8000
COMMIT
*filter
:KUBE-FIREWALL - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
-A INPUT -j KUBE-FIREWALL
-A OUTPUT -j KUBE-FIREWALL
-A FORWARD -s 10.0.0.0/8 -j ACCEPT
-A KUBE-FIREWALL -m mark --mark 0x8000/0x8000 -j DROP
COMMIT
`

// kubeProxys is a small state of kube-proxy in its iptables mode.
const kubeProxys = `*mangle
:KUBE-PROXY-CANARY - [0:0]
COMMIT
*nat
:KUBE-SERVICES - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-PROXY-CANARY - [0:0]
:KUBE-SVC-LOLE4ISW44XBNF3G - [0:0]
:KUBE-EXT-LOLE4ISW44XBNF3G - [0:0]
:KUBE-SEP-LOLE4ISW44XBNF3G - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A KUBE-SERVICES -d 10.96.0.10/32 -p tcp -m comment --comment "default/web cluster IP" -m tcp --dport 80 -j KUBE-SVC-LOLE4ISW44XBNF3G
-A KUBE-SERVICES -m comment --comment "kubernetes service nodeports; NOTE: this must be the last rule in this chain" -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
-A KUBE-NODEPORTS -p tcp -m comment --comment default/web -m tcp --dport 30080 -j KUBE-EXT-LOLE4ISW44XBNF3G
-A KUBE-EXT-LOLE4ISW44XBNF3G -m comment --comment "masquerade traffic for default/web external destinations" -j KUBE-MARK-MASQ
-A KUBE-EXT-LOLE4ISW44XBNF3G -j KUBE-SVC-LOLE4ISW44XBNF3G
-A KUBE-SVC-LOLE4ISW44XBNF3G -m comment --comment "default/web -> 10.244.1.2:8080" -j KUBE-SEP-LOLE4ISW44XBNF3G
-A KUBE-SEP-LOLE4ISW44XBNF3G -s 10.244.1.2/32 -m comment --comment default/web -j KUBE-MARK-MASQ
-A KUBE-SEP-LOLE4ISW44XBNF3G -p tcp -m comment --comment default/web -m tcp -j DNAT --to-destination 10.244.1.2:8080
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0
-A KUBE-POSTROUTING -m comment --comment "kubernetes service traffic requiring SNAT" -j MASQUERADE
COMMIT
*filter
:KUBE-SERVICES - [0:0]
:KUBE-EXTERNAL-SERVICES - [0:0]
:KUBE-FORWARD - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-PROXY-FIREWALL - [0:0]
:KUBE-PROXY-CANARY - [0:0]
-A INPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL
-A INPUT -m comment --comment "kubernetes health check service ports" -j KUBE-NODEPORTS
-A FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD
-A OUTPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A KUBE-SERVICES -d 10.96.0.11/32 -p tcp -m comment --comment "default/none has no endpoints" -m tcp --dport 80 -j REJECT --reject-with icmp-port-unreachable
COMMIT
`

// rulesOf is iptables-save without what changes by itself.
func rulesOf(t *testing.T, command string) string {
	t.Helper()
	text := run(t, "", command+"-save")
	text = regexp.MustCompile(`(?m)^#.*\n`).ReplaceAllString(text, "")
	return regexp.MustCompile(`\[\d+:\d+\]`).ReplaceAllString(text, "[0:0]")
}

func TestOnlyKubeProxysChainsAreRemoved(t *testing.T) {
	for _, command := range []string{"iptables-nft", "ip6tables-nft", "iptables-legacy", "ip6tables-legacy"} {
		t.Run(command, func(t *testing.T) {
			newNamespace(t)
			of := func(rules string) string {
				if strings.HasPrefix(command, "ip6") {
					rules = strings.NewReplacer("10.96.0.", "fd00::10:", "/32", "/128", "10.244.1.2:8080", "[fd00::2]:8080", "10.244.1.2/", "fd00::2/",
						"10.0.0.0/8", "fd00::/16", "icmp-port", "icmp6-port").Replace(rules)
				}
				return rules
			}
			run(t, of(foreign), command+"-restore")
			if l, err := Find(t.Context()); err != nil || !l.Empty() {
				t.Fatalf("the kubelet's rules and those of others are taken for kube-proxy's: %v, %v", l.Lines(), err)
			}
			want := rulesOf(t, command)
			run(t, of(kubeProxys), command+"-restore", "--noflush")
			l, err := Find(t.Context())
			if err != nil || l.Empty() || cmp.Diff([]string{"iptables"}, l.Modes()) != "" {
				t.Fatalf("found %v, %v", l.Lines(), err)
			}
			removed, err := l.Withdraw(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, rulesOf(t, command)); diff != "" {
				t.Errorf("rules of others (-before +after):\n%s", diff)
			}
			wantLines := []string{
				command + " filter: 4 jumps from FORWARD, INPUT, OUTPUT",
				command + " filter: 6 chains KUBE-EXTERNAL-SERVICES, KUBE-FORWARD, KUBE-NODEPORTS, KUBE-PROXY-CANARY, KUBE-PROXY-FIREWALL, KUBE-SERVICES",
				command + " mangle: 1 chain KUBE-PROXY-CANARY",
				command + " nat: 3 jumps from OUTPUT, POSTROUTING, PREROUTING",
				command + " nat: 8 chains 1 KUBE-EXT-*, KUBE-MARK-MASQ, KUBE-NODEPORTS, KUBE-POSTROUTING, KUBE-PROXY-CANARY, 1 KUBE-SEP-*, KUBE-SERVICES, 1 KUBE-SVC-*",
			}
			if diff := cmp.Diff(wantLines, removed); diff != "" {
				t.Errorf("what was said to be removed (-want +got):\n%s", diff)
			}
			if l, err := Find(t.Context()); err != nil || !l.Empty() {
				t.Errorf("after all: %v, %v", l.Lines(), err)
			}
		})
	}
}

func TestChainsOfIPVSModeAreKubeProxysToo(t *testing.T) {
	// As kube-proxy v1.37 makes them.
	got := planTable("filter", map[string][]string{
		"INPUT": {
			`-m comment --comment "kubernetes ipvs access filter" -j KUBE-IPVS-FILTER`, `-m comment --comment "kube-proxy firewall rules" -j KUBE-PROXY-FIREWALL`,
			`-m comment --comment "kubernetes health check rules" -j KUBE-NODE-PORT`, "-j KUBE-FIREWALL",
		},
		"FORWARD":                     {`-m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD`, `-m comment --comment "kube-proxy firewall rules" -j KUBE-PROXY-FIREWALL`},
		"OUTPUT":                      {`-m comment --comment "kubernetes ipvs access filter" -j KUBE-IPVS-OUT-FILTER`, "-j KUBE-FIREWALL"},
		"KUBE-FIREWALL":               {"-m mark --mark 0x8000/0x8000 -j DROP"},
		"KUBE-IPVS-FILTER":            {"-m set --match-set KUBE-LOAD-BALANCER dst,dst -j RETURN"},
		"KUBE-IPVS-OUT-FILTER":        nil,
		"KUBE-PROXY-FIREWALL":         {"-m set --match-set KUBE-LOAD-BALANCER-FW dst,dst -j KUBE-SOURCE-RANGES-FIREWALL"},
		"KUBE-SOURCE-RANGES-FIREWALL": {"-j DROP"},
		"KUBE-NODE-PORT":              {"-m set --match-set KUBE-HEALTH-CHECK-NODE-PORT dst -j ACCEPT"},
		"KUBE-FORWARD":                {"-m mark --mark 0x4000/0x4000 -j ACCEPT"},
	})
	want := []string{"KUBE-FORWARD", "KUBE-IPVS-FILTER", "KUBE-IPVS-OUT-FILTER", "KUBE-NODE-PORT", "KUBE-PROXY-FIREWALL", "KUBE-SOURCE-RANGES-FIREWALL"}
	if diff := cmp.Diff(want, got.chains); diff != "" || len(got.jumps) != 6 || len(got.kept) != 0 {
		t.Errorf("%d jumps, kept %v, chains (-want +got):\n%s", len(got.jumps), got.kept, diff)
	}
	for _, set := range []string{"KUBE-CLUSTER-IP", "KUBE-6-NODE-PORT-LOCAL-SCTP-HAS", "KUBE-IPVS-IPS"} {
		if !isKubeProxySet(set) {
			t.Errorf("ipset %s is not taken for kube-proxy's", set)
		}
	}
	for _, set := range []string{"KUBE-MINE", "CLUSTER-IP", "KUBE-NWPLCY-X", "KUBE-SRC-X"} { // kube-router has the last two
		if isKubeProxySet(set) {
			t.Errorf("ipset %s is taken for kube-proxy's", set)
		}
	}
}

func TestWhatOthersUseOfKubeProxysStays(t *testing.T) {
	newNamespace(t)
	run(t, kubeProxys, "iptables-nft-restore")
	const portmaps = `-A CNI-HOSTPORT-SETMARK -m comment --comment "CNI portfwd masquerade mark" -j KUBE-MARK-MASQ`
	run(t, "*nat\n:CNI-HOSTPORT-SETMARK - [0:0]\n"+portmaps+"\nCOMMIT\n*filter\n:FORWARD DROP [0:0]\nCOMMIT\n", "iptables-nft-restore", "--noflush")
	l, err := Find(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	warnings := strings.Join(l.Warnings(), "\n")
	for _, want := range []string{
		"nat: chain KUBE-MARK-MASQ stays, a rule of somebody else needs it: " + portmaps, "nat: chain KUBE-POSTROUTING stays", "policy of FORWARD is DROP",
	} {
		if !strings.Contains(warnings, want) {
			t.Errorf("no warning %q in\n%s", want, warnings)
		}
	}
	if _, err := l.Withdraw(t.Context()); err != nil {
		t.Fatal(err)
	}
	nat := run(t, "", "iptables-nft-save", "-t", "nat")
	for _, want := range []string{portmaps, "-A POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING", "-A KUBE-MARK-MASQ -j MARK", "requiring SNAT\" -j MASQUERADE"} {
		if !strings.Contains(nat, want) {
			t.Errorf("%q is gone:\n%s", want, nat)
		}
	}
	if strings.Contains(nat, "KUBE-SERVICES") || strings.Contains(nat, "KUBE-SVC") {
		t.Errorf("left:\n%s", nat)
	}
	if l, err := Find(t.Context()); err != nil || !l.Empty() {
		t.Errorf("what has to stay is taken for something to remove: %v, %v", l.Lines(), err)
	}
}

func TestChainsThatCannotBeRemovedForLackOfIptablesAreAnError(t *testing.T) {
	newNamespace(t)
	run(t, foreign, "iptables-nft-restore")
	path := os.Getenv("PATH")
	t.Setenv("PATH", t.TempDir())
	if l, err := Find(t.Context()); err != nil || !l.Empty() {
		t.Errorf("rules of others: %v, %v", l, err)
	}
	t.Setenv("PATH", path)
	run(t, kubeProxys, "iptables-nft-restore", "--noflush")
	t.Setenv("PATH", t.TempDir())
	if _, err := Find(t.Context()); err == nil || !strings.Contains(err.Error(), "iptables-nft-save cannot list it: install iptables 1.8 or newer") {
		t.Errorf("kube-proxy's rules: %v", err)
	}
}

func TestTablesOfNftablesModeAreRemovedAndNoOthers(t *testing.T) {
	newNamespace(t)
	run(t, "add table ip mine\nadd chain ip mine services\nadd table inet kube-proxy\nadd table ip kube-proxy-2\n", "nft", "-f", "-")
	before := run(t, "", "nft", "list", "ruleset")
	run(t, "add table ip kube-proxy\nadd chain ip kube-proxy services\nadd table ip6 kube-proxy\nadd map ip6 kube-proxy service-ips { type ipv6_addr . inet_proto . inet_service : verdict ; }\n", "nft", "-f", "-")
	l, err := Find(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	removed, err := l.Withdraw(t.Context())
	if want := []string{"nftables table ip kube-proxy", "nftables table ip6 kube-proxy"}; err != nil || cmp.Diff(want, removed) != "" {
		t.Errorf("removed %v, %v, want %v", removed, err, want)
	}
	if diff := cmp.Diff(before, run(t, "", "nft", "list", "ruleset")); diff != "" {
		t.Errorf("rules of others (-before +after):\n%s", diff)
	}
}
