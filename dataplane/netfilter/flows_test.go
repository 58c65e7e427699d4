// SPDX-License-Identifier: Apache-2.0

package netfilter

import (
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"fairlead.dev/dataplane"
	"fairlead.dev/dataplane/nfnetlink"
)

func TestFlowsAreListedWithWhatTheyAre(t *testing.T) {
	l := newLab(t)
	must(t, os.WriteFile("/proc/sys/net/netfilter/nf_conntrack_timestamp", []byte("1"), 0o644))
	l.masquerade = true
	l.serve(backendA)
	dns, web, dead, past := udpFrontend(53), tcpFrontend(80), tcpFrontend(81), udpFrontend(54)
	l.send(dns, at(backendA))
	l.send(web, at(backendA))
	l.send(dead, at(silentA))
	u := l.udp(dns)
	l.wantAnswer(u, backendA.String(), "UDP")
	c, err := net.DialTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(client, 0)), net.TCPAddrFromAddrPort(addrPortOf(web)))
	must(t, err)
	defer c.Close()
	l.wantAnswer(c, backendA.String(), "TCP")
	l.halfOpen(dead)
	l.wantAnswer(l.udp(past), "", "past the Service")
	time.Sleep(2100 * time.Millisecond) // ages are whole seconds

	names := map[dataplane.FrontendKey][2]string{dns: {"ns/dns", "dns"}, web: {"ns/web", "http"}, dead: {"ns/web", "more"}}
	rows, err := l.ct.Flows(func(k dataplane.FrontendKey) (string, string, bool) {
		n, ok := names[k]
		return n[0], n[1], ok
	})
	must(t, err)
	for i := range rows {
		r := &rows[i]
		if r.AgeSeconds < 1 || r.AgeSeconds > 30 || r.IdleSeconds > r.AgeSeconds {
			t.Errorf("flow to %s: age %d s, idle %d s", r.Frontend, r.AgeSeconds, r.IdleSeconds)
		}
		if r.Protocol == "UDP" && r.IdleSeconds < 1 {
			t.Errorf("UDP flow to %s is idle for %d s, want 1 or more", r.Frontend, r.IdleSeconds)
		}
		seen, err := netip.ParseAddrPort(r.Masquerade)
		if err != nil || seen.Addr() != node {
			t.Errorf("flow to %s is masqueraded as %q, want an address of %s", r.Frontend, r.Masquerade, node)
		}
		if r.Client.Addr() != client {
			t.Errorf("flow to %s is of %s, want %s", r.Frontend, r.Client, client)
		}
		r.AgeSeconds, r.IdleSeconds, r.Masquerade, r.Client = 0, 0, "", netip.AddrPort{}
	}
	want := []dataplane.ConntrackRow{
		{Service: "ns/dns", PortName: "dns", Protocol: "UDP", Frontend: addrPortOf(dns), Backend: at(backendA), State: "established"},
		{Service: "ns/web", PortName: "http", Protocol: "TCP", Frontend: addrPortOf(web), Backend: at(backendA), State: "established"},
		{Service: "ns/web", PortName: "more", Protocol: "TCP", Frontend: addrPortOf(dead), Backend: at(silentA), State: "new"},
	}
	if diff := cmp.Diff(want, rows, cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); diff != "" {
		t.Errorf("flows (-want +got):\n%s", diff)
	}
	stale := l.flows(past)
	if len(stale) != 1 || stale[0].State != "stale" {
		t.Errorf("the flow that is not translated: %+v, want one, stale", stale)
	}
	c.Close()
	waitFor(t, 2*time.Second, func() bool {
		rows := l.flows(web)
		return len(rows) == 1 && rows[0].State == "closing"
	})
}

func TestLookupFindsTheServiceOfAFrontend(t *testing.T) {
	find := Lookup([]dataplane.Row{{Service: "ns/dns", PortName: "dns", Address: frontend, Port: 53, Protocol: "UDP"}})
	if name, port, ok := find(udpFrontend(53)); name != "ns/dns" || port != "dns" || !ok {
		t.Errorf("got %q, %q, %t", name, port, ok)
	}
	if _, _, ok := find(tcpFrontend(53)); ok {
		t.Error("found a Frontend of another protocol")
	}
}

// FuzzDecode: what the kernel sends is trusted, but a version may send what is
// not known here.
func FuzzDecode(f *testing.F) {
	ip := encodeTuple(tuple{netip.MustParseAddrPort("192.0.2.10:1"), netip.MustParseAddrPort("10.96.0.10:53"), dataplane.UDP})
	f.Add(nested(nested(make([]byte, nfnetlink.HeaderBytes), ctaTupleOrig, ip), ctaTupleReply, ip))
	f.Add([]byte{2, 0, 0, 0, 3, 0, 1, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		var fl flow
		if decode(b, &fl) && (!fl.orig.to.IsValid() || !fl.backend().IsValid()) {
			t.Errorf("decoded an incomplete flow: %+v", fl)
		}
	})
}
