// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"fmt"
	"net/netip"
	"testing"

	"fairlead.dev/dataplane"
)

// inspectedRules are of a node with one Service that has Backends and one that
// has none, and a ClusterIP that is in no Service CIDR.
const inspectedRules = `*nat
:FAIRLEAD-SERVICES - [0:0]
:FAIRLEAD-A - [0:0]
:FAIRLEAD-MARK - [0:0]
:FAIRLEAD-UPLINK - [0:0]
:FAIRLEAD-P-aaaaaaaaaaaa-0 - [0:0]
:FAIRLEAD-R-aaaaaaaaaaaa-0 - [0:0]
:FAIRLEAD-S-aaaaaaaaaaaa-0 - [0:0]
:FAIRLEAD-P-bbbbbbbbbbbb-0 - [0:0]
-A FAIRLEAD-SERVICES -j FAIRLEAD-A
-A FAIRLEAD-A -d 10.96.0.1/32 -p tcp -m tcp --dport 80 -j FAIRLEAD-R-aaaaaaaaaaaa-0
-A FAIRLEAD-A -d 10.96.0.2/32 -p udp -m udp --dport 53 -j FAIRLEAD-P-bbbbbbbbbbbb-0
-A FAIRLEAD-MARK -s 127.0.0.0/8 -j MARK --set-xmark 0x4000/0x4000
-A FAIRLEAD-MARK -s 10.244.0.0/16 -g FAIRLEAD-UPLINK
-A FAIRLEAD-MARK -m addrtype --src-type LOCAL -j RETURN
-A FAIRLEAD-UPLINK -i eth0 -j MARK --set-xmark 0x4000/0x4000
-A FAIRLEAD-UPLINK -i bond+ -j MARK --set-xmark 0x4000/0x4000
-A FAIRLEAD-R-aaaaaaaaaaaa-0 -s 192.0.2.0/24 -j FAIRLEAD-P-aaaaaaaaaaaa-0
-A FAIRLEAD-P-aaaaaaaaaaaa-0 -j FAIRLEAD-MARK
-A FAIRLEAD-P-aaaaaaaaaaaa-0 -j FAIRLEAD-S-aaaaaaaaaaaa-0
-A FAIRLEAD-P-aaaaaaaaaaaa-0 -m comment --comment "fairlead default/web http LoadBalancer 600 0 !drop"
-A FAIRLEAD-S-aaaaaaaaaaaa-0 -p tcp -j DNAT --to-destination 10.244.1.11:8080
-A FAIRLEAD-S-aaaaaaaaaaaa-0 -m comment --comment "fairlead A,10.244.2.11:8080t"
-A FAIRLEAD-P-bbbbbbbbbbbb-0 -m comment --comment "fairlead default/dns - ClusterIP 0 !reject !reject"
COMMIT
*filter
:FAIRLEAD-SERVICES - [0:0]
:FAIRLEAD-A - [0:0]
:FAIRLEAD-A-1 - [0:0]
-A FAIRLEAD-SERVICES -j FAIRLEAD-A
-A FAIRLEAD-SERVICES -d 10.96.0.0/16 -j FAIRLEAD-UNKNOWN
-A FAIRLEAD-A-1 -d 172.20.0.1/32 -j FAIRLEAD-UNKNOWN
COMMIT
`

func TestFrontendsAreReadFromTheRules(t *testing.T) {
	saved, err := parseSave([]byte(inspectedRules))
	if err != nil {
		t.Fatal(err)
	}
	nat := saved["nat"]
	r := rulesOf(nat)
	if got, want := fmt.Sprint(r.InternalSources, r.Uplinks), "[10.244.0.0/16] [eth0 bond*]"; got != want {
		t.Errorf("internal sources and uplinks %s, want %s", got, want)
	}
	at := func(address string, port uint16, p dataplane.Protocol) *dataplane.Inspection {
		t.Helper()
		in := &dataplane.Inspection{}
		if err := inspectFrontend(in, nat, dataplane.FrontendKey{Address: netip.MustParseAddr(address), Port: port, Protocol: p}); err != nil {
			t.Fatal(err)
		}
		return in
	}
	web := at("10.96.0.1", 80, dataplane.TCP)
	want := dataplane.Frontend{
		FrontendKey: dataplane.FrontendKey{Address: netip.MustParseAddr("10.96.0.1"), Port: 80, Protocol: dataplane.TCP},
		Kind:        dataplane.LoadBalancer, PortName: "http", AffinitySeconds: 600, MasqueradeExternal: true,
		SourceRanges: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")},
		Internal: dataplane.BackendSet{Backends: []dataplane.Backend{
			{Address: netip.MustParseAddr("10.244.1.11"), Port: 8080, Local: true},
			{Address: netip.MustParseAddr("10.244.2.11"), Port: 8080, State: dataplane.Terminating},
		}},
		External: dataplane.BackendSet{OnEmpty: dataplane.Drop},
	}
	if web.Frontend == nil || !web.Frontend.Equal(&want) || web.Service.String() != "default/web" {
		t.Errorf("read %+v of %s, want %+v", web.Frontend, web.Service, want)
	}
	if _, is := web.Unreadable(dataplane.UnreadMasquerade); is {
		t.Error("whether external clients of web are masked is said to be unreadable")
	}
	dns := at("10.96.0.2", 53, dataplane.UDP)
	if _, is := dns.Unreadable(dataplane.UnreadMasquerade); !is || dns.Frontend == nil || len(dns.Frontend.Internal.Backends) != 0 {
		t.Errorf("dns, which has no Backends: %+v; want it without them, and masquerading unreadable", dns)
	}
	if none := at("10.96.0.1", 81, dataplane.TCP); none.Frontend != nil {
		t.Errorf("port 81 is %+v", none.Frontend)
	}
	for address, want := range map[string]string{
		"10.96.7.7": "the address is in 10.96.0.0/16, a range of ClusterIPs", "172.20.0.1": "the address is a ClusterIP", "172.20.0.2": "",
	} {
		if got := refusedPort(saved["filter"], netip.MustParseAddr(address)); got != want {
			t.Errorf("other ports of %s: %q, want %q", address, got, want)
		}
	}
}
