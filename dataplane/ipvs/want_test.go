// SPDX-License-Identifier: Apache-2.0

package ipvs

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"fairlead.dev/dataplane"
	"fairlead.dev/dataplane/dataplanetest"
)

func testPlanner() *planner {
	return &planner{marks: Options{}.withDefaults().marks(), ports: newNumbers(), number: newNumbers(), nodeAddresses: map[netip.Addr]bool{}}
}

func marksOf(st *state) []uint32 { return slices.Sorted(maps.Keys(st.marks())) }

func TestFrontendsWithOneBackendSetShareAServer(t *testing.T) {
	s := serviceAt("web", "10.96.0.10:80", dataplane.TCP, backends("10.244.1.1:80", "10.244.2.1:80")...)
	nodePort := s.Frontends[0]
	nodePort.Kind, nodePort.Address, nodePort.Port = dataplane.NodePort, netip.MustParseAddr("192.0.2.11"), 30080
	s.Frontends = append(s.Frontends, nodePort)
	p := testPlanner()
	before, err := p.plan(s, nil)
	if err != nil {
		t.Fatal(err)
	}
	if n := len(before.marks()); n != 1 {
		t.Errorf("two Frontends with the same Backends have %d servers; want 1", n)
	}
	// externalTrafficPolicy Local: the NodePort's external set is another.
	local := *s
	local.Frontends = slices.Clone(s.Frontends)
	local.Frontends[1].External = dataplane.BackendSet{Backends: s.Frontends[0].Internal.Backends[:1]}
	after, err := p.plan(&local, before)
	if err != nil {
		t.Fatal(err)
	}
	if n := len(after.marks()); n != 2 || !after.marks()[marksOf(before)[0]] {
		t.Errorf("servers %x after %x; want the one of before and another", marksOf(after), marksOf(before))
	}
}

func TestAServerKeepsItsMarkWhateverChangesInIt(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		p := testPlanner()
		var before *state
		for range 5 {
			s := dataplanetest.DrawService(rt, 1, dataplanetest.Shape{})
			s.Name = dataplane.ServiceName{Namespace: "default", Name: "web"}
			st, err := p.plan(s, before)
			if err != nil {
				rt.Fatal(err)
			}
			again, err := p.plan(s, st)
			if err != nil {
				rt.Fatal(err)
			}
			if d := difference(st.own, again.own); !d.empty() {
				rt.Fatalf("the same Service planned again differs: %v %v", d.deletes, d.adds)
			}
			// What is read back plans the same.
			found := decode(st.own).states()[s.Name]
			if found == nil && len(s.Frontends) > 0 {
				rt.Fatal("the Service was not found in its own elements")
			}
			read, err := p.plan(s, found)
			if err != nil {
				rt.Fatal(err)
			}
			if d := difference(st.own, read.own); !d.empty() {
				rt.Fatalf("planned after a restart it differs: %v %v", d.deletes, d.adds)
			}
			before = st
		}
	})
}

func TestLongNamesAreReadBack(t *testing.T) {
	s := serviceAt("pod:"+strings.Repeat("n", 253), "10.96.0.1:80", dataplane.TCP)
	st, err := testPlanner().plan(s, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range namesIn(st.own) {
		if name.service != s.Name || name.port != "http" {
			t.Errorf("read back %v; want %v http", name, s.Name)
		}
	}
}

func TestNumbersAreNotUsedAgainSoon(t *testing.T) {
	n := newNumbers()
	first, err := n.take()
	if err != nil {
		t.Fatal(err)
	}
	n.free(first)
	if next, err := n.take(); err != nil || next == first {
		t.Errorf("next number %d, error %v; want another than %d", next, err, first)
	}
}
