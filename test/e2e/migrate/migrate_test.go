// SPDX-License-Identifier: Apache-2.0

package migrate

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"

	"fairlead.dev/test/internal/traffic"
)

const (
	// settling is how long load goes on before and after each step.
	settling = time.Second
	// glance is how long a Service may take to answer that may not be programmed
	// yet; it is asked again.
	glance = time.Second
)

func TestKubeProxyIsReplacedAndComesBackUnderLoadWithoutALoss(t *testing.T) {
	for _, c := range []struct {
		mode, dataplane string
		alone           bool // the agent does it, not `fairlead migrate`
	}{
		{"iptables", "ebpf", false}, {"iptables", "nftables", true}, {"nftables", "ebpf", true}, {"nftables", "nftables", false},
		{"iptables", "iptables", false}, {"ipvs", "ebpf", false},
		{"ipvs", "nftables", false}, {"ipvs", "iptables", true},
	} {
		t.Run(c.mode+" by "+c.dataplane, func(t *testing.T) {
			if c.mode == "ipvs" {
				needsIPVS(t)
			}
			w := newTown(t, c.mode, c.dataplane)
			w.settleIn(c.mode == "nftables")
			foreign := w.foreign()
			proxy := w.start(kubeProxy, "--config", w.config)
			w.serves(w.steady, "client", "outside")
			if c.dataplane != "iptables" {
				w.refuses(proxy)
			}
			pinned := w.expose("pinned", "a")
			w.serves(pinned, "client", "outside")
			w.settled()
			if c.mode == "ipvs" {
				w.complete(proxy)
			}
			loads, datagrams := w.load(), w.datagrams(pinned)
			time.Sleep(settling)

			since := traffic.Monotonic()
			agent := w.over(proxy, c.alone)
			w.answeredBy(datagrams, "b")
			if diff := cmp.Diff(foreign, w.withoutOurs(w.foreign())); diff != "" {
				t.Errorf("rules of others, before kube-proxy came and now:\n%s", diff)
			}
			w.nothingOfKubeProxy()
			var v verdict
			if c.mode == "ipvs" { // what carries its connections goes when they have ended
				v = w.judge(loads, since)
				w.within(forgotten, w.nothingOfIPVS)
			}
			added := w.expose("added-"+c.mode+"-"+c.dataplane, "b")
			w.serves(added, "client", "outside")
			later := w.load() // connections that fairlead decided
			time.Sleep(settling)

			back := w.back(agent)
			if c.mode != "ipvs" {
				v = w.judge(loads, since)
			}
			u := w.judge(later, since)
			if code := w.ends(back); code != 0 {
				t.Errorf("fairlead migrate --back: exit code %d:\n%s", code, back.log.String())
			}
			for _, f := range append(v.failures, u.failures...)[:min(20, len(v.failures)+len(u.failures))] {
				t.Error(f)
			}
			if out := w.output(fairlead, "cleanup", "--bpffs", w.node.BPFFS, "--cgroup-root", w.node.CgroupRoot); out != "nothing to remove\n" {
				t.Errorf("fairlead cleanup after the way back: want nothing to remove, seen %q", out)
			}
			w.serves(w.expose("back-"+c.mode+"-"+c.dataplane, "b"), "client", "outside")
			fmt.Printf("migrate: %s by %s and back: of kube-proxy's time %v; of fairlead's %v\n", c.mode, c.dataplane, v, u)
		})
	}
}

// over ends kube-proxy and gives the agent that runs instead.
func (w *town) over(proxy *process, alone bool) *process {
	w.t.Helper()
	w.stop(proxy)
	w.endpoints("pinned", "b") // nobody hears of it
	begin := time.Now()
	var agent *process
	if alone {
		// With the capabilities of manifests/components/takeover on top of the base.
		args := []string{"--bounding-set=-all,+sys_admin,+net_admin,+net_raw", "--inh-caps=-all", "--no-new-privs", fairlead}
		agent = w.start("setpriv", append(args, w.flags("run", "--take-over")...)...)
	} else {
		out := w.output(fairlead, w.flags("migrate", "-o", "json")...)
		var report struct {
			To, Error string
			Steps     []struct{ Action, What string }
		}
		// Warnings of the log are on stderr, which is in there too.
		if err := json.Unmarshal([]byte(out[strings.LastIndex(out, `{"to"`):]), &report); err != nil {
			w.t.Fatalf("%v:\n%s", err, out)
		}
		var actions []string
		for _, s := range report.Steps {
			actions = append(actions, s.Action)
		}
		for _, want := range []string{"found", "programmed", "checked", "removed", "done"} {
			if report.To != "fairlead" || report.Error != "" || !slices.Contains(actions, want) {
				w.t.Errorf("no step %q in:\n%s", want, out)
			}
		}
		w.t.Logf("%s", out)
		time.Sleep(settling) // nobody runs
		agent = w.start(fairlead, w.flags("run", "--take-over")...)
	}
	w.eventually(func() error {
		if d := w.dumped(); d != w.dataplane {
			return fmt.Errorf("in force is %q, want %s", d, w.dataplane)
		}
		if strings.Contains(w.rules(), "KUBE-SVC") || strings.Contains(w.rules(), "table ip kube-proxy") {
			return fmt.Errorf("rules of kube-proxy are left")
		}
		return nil
	})
	w.t.Logf("kube-proxy (%s) was followed by %s after %v", w.mode, w.dataplane, time.Since(begin).Round(time.Millisecond))
	return agent
}

// back ends the agent and gives the node to a new kube-proxy. The command that
// does so goes on as long as connections do that fairlead carries.
func (w *town) back(agent *process) *process {
	w.t.Helper()
	w.stop(agent)
	back := w.start(fairlead, w.flags("migrate", "--back")...)
	w.says(back, "waiting     kube-proxy does not run on this node")
	w.start(kubeProxy, "--config", w.config)
	w.says(back, "checked     kube-proxy's rules (mode "+w.mode+") serve all ")
	w.says(back, "done        dataplane "+w.dataplane+" takes no new connection")
	time.Sleep(settling)
	return back
}

// says waits until a program has said something.
func (w *town) says(p *process, what string) {
	w.t.Helper()
	w.eventually(func() error {
		if text := p.log.String(); !strings.Contains(text, what) {
			return fmt.Errorf("%s: want %q in:\n%s", p.name, what, text)
		}
		return nil
	})
}

// refuses looks that nothing is done while kube-proxy runs, be it seen or not.
func (w *town) refuses(proxy *process) {
	w.t.Helper()
	for _, c := range []struct {
		in   []string
		want string
	}{
		{nil, fmt.Sprintf("kube-proxy runs on this node (process %d) and would write its rules again: take it off this node first: kubectl -n kube-system patch daemonset kube-proxy", proxy.cmd.Process.Pid)},
		{[]string{"unshare", "--pid", "--fork", "--kill-child", "--mount-proc"}, "kube-proxy runs on this node (who answers at http://127.0.0.1:10249/proxyMode)"},
	} {
		args := append(append(c.in, fairlead), w.flags("migrate")...)
		p := w.start(args[0], args[1:]...)
		if code, out := w.ends(p), p.log.String(); code != 1 || !strings.Contains(out, c.want) {
			w.t.Errorf("fairlead migrate beside a running kube-proxy: exit code %d, want 1 and %q:\n%s", code, c.want, out)
		}
	}
	if d := w.dumped(); d != "" {
		w.t.Errorf("dataplane %s was programmed beside a running kube-proxy", d)
	}
}

// serves waits until a Service answers from some places, over TCP and UDP.
func (w *town) serves(s *corev1.Service, members ...string) {
	w.t.Helper()
	for _, name := range members {
		m := w.member(name)
		plan := traffic.Plan{Patience: glance}
		for i, mode := range []traffic.Mode{traffic.TCPFresh, traffic.UDPFresh} {
			for f, ip := range s.Spec.ClusterIPs {
				at := netip.AddrPortFrom(netip.MustParseAddr(ip), 80)
				if name == "outside" {
					at = netip.AddrPortFrom([]netip.Addr{w.node.PrimaryIPv4, w.node.PrimaryIPv6}[f], uint16(s.Spec.Ports[i].NodePort))
				}
				plan.Streams = append(plan.Streams, traffic.Stream{Mode: mode, To: []netip.AddrPort{at}, Every: 50 * time.Millisecond})
			}
		}
		w.eventually(func() error {
			l, err := traffic.Start(name, m.PID, m.CgroupDir, plan)
			if err != nil {
				return err
			}
			time.Sleep(150 * time.Millisecond)
			report, err := l.Stop()
			if err != nil {
				return err
			}
			last := map[uint16]string{}
			for i := range report.Records {
				if r := &report.Records[i]; r.Failure != "" {
					last[r.Stream] = l.Question(r) + ": " + r.Failure
				} else {
					delete(last, r.Stream)
				}
			}
			for _, f := range last {
				return fmt.Errorf("%s: %s", s.Name, f)
			}
			return nil
		})
	}
}

// dumped is the dataplane that `fairlead dump` finds, "" for none.
func (w *town) dumped() string {
	w.t.Helper()
	p := w.start(fairlead, "dump", "services", "-o", "json", "--bpffs", w.node.BPFFS)
	if w.ends(p) != 0 {
		return ""
	}
	var d struct{ Dataplane string }
	if err := json.Unmarshal([]byte(p.log.String()), &d); err != nil {
		w.t.Fatal(err)
	}
	return d.Dataplane
}

// rules are all of the node.
func (w *town) rules() string {
	w.t.Helper()
	return w.output("iptables-nft-save") + w.output("ip6tables-nft-save") + w.output("nft", "list", "tables")
}

// withoutOurs takes fairlead's own chains out of iptables' rules.
func (w *town) withoutOurs(rules string) string {
	var kept []string
	for line := range strings.Lines(rules) {
		if !strings.Contains(line, "FAIRLEAD-") {
			kept = append(kept, line)
		}
	}
	return strings.ReplaceAll(strings.Join(kept, ""), "*raw\n:PREROUTING ACCEPT \n:OUTPUT ACCEPT \nCOMMIT\n", "")
}

func (w *town) nothingOfKubeProxy() {
	w.t.Helper()
	for line := range strings.Lines(w.rules()) {
		ours := strings.Contains(line, "KUBE-FIREWALL") || strings.Contains(line, "KUBE-KUBELET-CANARY") || strings.Contains(line, "KUBE-IPTABLES-HINT")
		if strings.Contains(line, "KUBE-") && !ours || strings.HasPrefix(line, "table") && strings.HasSuffix(strings.TrimSpace(line), " kube-proxy") {
			w.t.Errorf("left of kube-proxy: %s", line)
		}
	}
}

func (w *town) eventually(ok func() error) {
	w.t.Helper()
	w.within(bound, ok)
}

func (w *town) within(bound time.Duration, ok func() error) {
	w.t.Helper()
	deadline := time.Now().Add(bound)
	for {
		err := ok()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			w.t.Fatalf("after %v: %v", bound, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}
