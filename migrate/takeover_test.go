// SPDX-License-Identifier: Apache-2.0

package migrate

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	"fairlead.dev/dataplane"
)

// web is a Service with a ClusterIP and a NodePort of one Backend.
func web() *dataplane.Table {
	name := dataplane.ServiceName{Namespace: "default", Name: "web"}
	set := dataplane.BackendSet{Backends: []dataplane.Backend{{Address: netip.MustParseAddr("10.244.1.2"), Port: 8080}}}
	s := &dataplane.Service{Name: name}
	for at, kind := range map[string]dataplane.Kind{"10.96.0.10:80": dataplane.ClusterIP, "192.0.2.1:30080": dataplane.NodePort, "[::1]:30080": dataplane.NodePort} {
		a := netip.MustParseAddrPort(at)
		s.Frontends = append(s.Frontends, dataplane.Frontend{
			FrontendKey: dataplane.FrontendKey{Address: a.Addr(), Port: a.Port(), Protocol: dataplane.TCP}, Kind: kind, Internal: set, External: set,
		})
	}
	return &dataplane.Table{Services: map[dataplane.ServiceName]*dataplane.Service{name: s}}
}

// kernel is what a successor holds.
type kernel struct {
	dataplane.Reader
	rows []dataplane.Row
}

func (k *kernel) Table() (dataplane.Dump, error) { return dataplane.Dump{Frontends: k.rows}, nil }
func (k *kernel) Close() error                   { return nil }

func TestNothingIsRemovedBeforeTheSuccessorIsSeenToServe(t *testing.T) {
	without := func(address string) func([]dataplane.Row) []dataplane.Row {
		return func(rows []dataplane.Row) (out []dataplane.Row) {
			for _, r := range rows {
				if r.Address.String() != address {
					out = append(out, r)
				}
			}
			return out
		}
	}
	all := func(rows []dataplane.Row) []dataplane.Row { return rows }
	for _, tc := range []struct {
		name    string
		kernel  func([]dataplane.Row) []dataplane.Row
		running string
		asked   []asked
		want    string
	}{
		{"all is well", all, "", nil, ""},
		{"netfilter has no NodePort on ::1", without("::1"), "", nil, ""},
		{"a Frontend is missing", without("10.96.0.10"), "", nil, "the kernel does not hold what was programmed, first default/web 10.96.0.10:80/TCP, internal; kube-proxy's rules are left"},
		{"another is in the kernel's", func(rows []dataplane.Row) []dataplane.Row {
			return append(rows, dataplane.Row{Service: "default/x", Protocol: "TCP"})
		}, "", nil, "first default/x"},
		{"a Backend differs", func(rows []dataplane.Row) []dataplane.Row {
			rows[0].Backends = nil
			return rows
		}, "", nil, "the kernel does not hold"},
		{"kube-proxy has come", all, "process 1", nil, "a kube-proxy has come (process 1) and would write its rules again: take it off this node first"},
		{"a Service is silent", all, "", []asked{{dataplane.ServiceName{Namespace: "default", Name: "web"}, netip.MustParseAddrPort("127.0.0.1:1")}},
			"1 of 1 TCP ClusterIPs that answered through kube-proxy's rules do not answer beside kube-proxy's rules, first default/web (127.0.0.1:1/TCP); kube-proxy's rules are left in force"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			newNamespace(t)
			run(t, "add table ip kube-proxy\n", "nft", "-f", "-")
			table := web()
			found, err := Find(t.Context())
			do(t, err)
			hooked, unhooked := 0, 0
			r := NewReport(nil)
			o := NewTakeOver(found, Options{
				Report: r, Running: func() (string, error) { return tc.running, nil },
				Read: func() (dataplane.Reader, error) { return &kernel{rows: tc.kernel(table.Rows())}, nil },
				Hook: func() error { hooked++; return nil }, Unhook: func() error { unhooked++; return nil },
			})
			o.answered, o.asked = tc.asked, true
			err = o.Begin(t.Context(), table)
			if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
				t.Fatalf("Begin: %v, want %q", err, tc.want)
			}
			left, ferr := Find(t.Context())
			if ferr != nil || left.Empty() != (tc.want == "") || (hooked == 1) != (tc.want == "") {
				t.Errorf("left %v, %v; hooked %d times", left.Lines(), ferr, hooked)
			}
			if tc.want != "" {
				return
			}
			if carries, err := o.Carries(); carries || err != nil {
				t.Errorf("Carries: %t, %v", carries, err)
			}
			if err := o.End(context.Background()); err != nil || unhooked != 1 {
				t.Errorf("End: %v, unhooked %d times", err, unhooked)
			}
			var steps strings.Builder
			for _, s := range r.Steps() {
				s.Write(&steps)
			}
			if want := "programmed  3 Frontends of 1 Service, beside kube-proxy's rules\nchecked     the kernel holds what was programmed\nremoved     nftables table ip kube-proxy\n"; steps.String() != want {
				t.Errorf("said\n%swant\n%s", &steps, want)
			}
		})
	}
}

func TestServicesThatAnswerAreToldFromThoseThatDoNot(t *testing.T) {
	// Of this process's own network namespace: a port that nobody else has.
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	do(t, err)
	defer l.Close()
	name := dataplane.ServiceName{Namespace: "default", Name: "web"}
	open := asked{name, netip.MustParseAddrPort(l.Addr().String())}
	closed := asked{name, netip.MustParseAddrPort("127.0.0.1:1")}
	took := ask(t.Context(), []asked{closed, open}, 1)
	if len(took) != 1 || took[0] != open {
		t.Errorf("%v take connections, want %v", took, open)
	}
	if mute := silent([]asked{closed, open}, took); len(mute) != 1 || mute[0] != closed {
		t.Errorf("%v are silent, want %v", mute, closed)
	}
	list, all := askable(web())
	if want := "default/web (10.96.0.10:80/TCP)"; all != 1 || len(list) != 1 || list[0].String() != want {
		t.Errorf("asked are %v of %d, want %s", list, all, want)
	}
}

func TestKubeProxyIsInForceWhenItsRulesServeEveryFrontend(t *testing.T) {
	const nft = `add table ip kube-proxy
add chain ip kube-proxy service
add map ip kube-proxy service-ips { type ipv4_addr . inet_proto . inet_service : verdict ; }
add map ip kube-proxy service-nodeports { type inet_proto . inet_service : verdict ; }
`
	for _, tc := range []struct{ name, command, some, all, mode string }{
		{"nftables", "nft", nft + "add element ip kube-proxy service-ips { 10.96.0.10 . tcp . 80 : goto service }\n",
			"add element ip kube-proxy service-nodeports { tcp . 30080 : goto service }\n", "nftables"},
		{"iptables", "iptables-nft-restore", strings.Replace(kubeProxys, "-A KUBE-NODEPORTS -p tcp -m comment --comment default/web -m tcp --dport 30080 -j KUBE-EXT-LOLE4ISW44XBNF3G\n", "", 1),
			"*nat\n-A KUBE-NODEPORTS -p tcp -m comment --comment default/web -m tcp --dport 30080 -j KUBE-EXT-LOLE4ISW44XBNF3G\nCOMMIT\n", "iptables"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			newNamespace(t)
			apply := func(rules string) {
				if tc.command == "nft" {
					run(t, rules, "nft", "-f", "-")
				} else {
					run(t, rules, tc.command, "--noflush")
				}
			}
			runs := ""
			r := NewReport(nil)
			k := NewKubeProxy(r, func(context.Context) (string, error) { return runs, nil })
			for _, step := range []struct{ do, want string }{
				{"", "kube-proxy does not run on this node: start it first: kubectl label node"},
				{"", "kube-proxy's rules lack 2 of 2 Frontends, first default/web 10.96.0.10:80/TCP"},
				{tc.some, "kube-proxy's rules lack 1 of 2 Frontends, first default/web 192.0.2.1:30080/TCP"},
				{tc.all, ""},
			} {
				if step.do != "" {
					apply(step.do)
				}
				_, err := k.Sync(t.Context(), web())
				if step.want == "" && err != nil || step.want != "" && (err == nil || !strings.Contains(err.Error(), step.want)) {
					t.Errorf("Sync: %v, want %q", err, step.want)
				}
				runs = "process 1"
			}
			steps := r.Steps()
			if want := (Step{Checked, fmt.Sprintf("kube-proxy's rules (mode %s) serve all 2 Frontends", tc.mode)}); len(steps) != 4 || steps[3] != want {
				t.Errorf("said %v, want %v at last", steps, want)
			}
		})
	}
}
