// SPDX-License-Identifier: Apache-2.0

package nftables

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"fairlead.dev/dataplane"
)

// drawService draws a Service with a few Frontends of every kind, in one family.
func drawService(t *rapid.T, n int) *dataplane.Service {
	six := rapid.Bool().Draw(t, "ipv6")
	address := func(four [4]byte) netip.Addr {
		if six {
			return netip.AddrFrom16([16]byte{0: 0xfd, 12: four[0], 13: four[1], 14: four[2], 15: four[3]})
		}
		return netip.AddrFrom4(four)
	}
	pool := make([]dataplane.Backend, rapid.IntRange(0, 24).Draw(t, "backends"))
	for i := range pool {
		pool[i] = dataplane.Backend{
			Address: address([4]byte{10, 244, byte(rapid.IntRange(1, 2).Draw(t, "node")), byte(i + 1)}), Port: 8080,
			State: dataplane.BackendState(rapid.IntRange(0, 1).Draw(t, "state")), Local: rapid.Bool().Draw(t, "local"),
		}
	}
	slices.SortFunc(pool, dataplane.CompareBackends)
	local := slices.DeleteFunc(slices.Clone(pool), func(b dataplane.Backend) bool { return !b.Local })
	ranges := [][]netip.Prefix{nil, {netip.MustParsePrefix("192.0.2.0/24")}, {netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("192.0.2.0/25"), netip.MustParsePrefix("203.0.113.7/32")}}
	if six {
		ranges = [][]netip.Prefix{nil, {netip.MustParsePrefix("2001:db8::/33"), netip.MustParsePrefix("2001:db8:ffff::1/128")}}
	}
	s := &dataplane.Service{Name: dataplane.ServiceName{Namespace: "default", Name: fmt.Sprintf("s%d", n)}}
	if rapid.IntRange(0, 9).Draw(t, "long") == 0 {
		s.Name.Name = fmt.Sprintf("pod:s%d%s", n, strings.Repeat("x", 240))
	}
	for port := range rapid.IntRange(0, 3).Draw(t, "ports") {
		f := dataplane.Frontend{
			FrontendKey: dataplane.FrontendKey{Address: address([4]byte{10, 96, 0, byte(n)}), Port: uint16(80 + port), Protocol: dataplane.TCP},
			Kind:        dataplane.ClusterIP, PortName: []string{"", "p1", "p2"}[rapid.IntRange(0, 2).Draw(t, "name")],
			Internal: dataplane.BackendSet{Backends: pool}, External: dataplane.BackendSet{Backends: pool},
			AffinitySeconds: uint32(rapid.SampledFrom([]int{0, 0, 60, 10800}).Draw(t, "affinity")), MasqueradeExternal: true,
		}
		s.Frontends = append(s.Frontends, f)
		if rapid.Bool().Draw(t, "external") {
			f.Kind, f.Address, f.MasqueradeExternal = dataplane.LoadBalancer, address([4]byte{198, 51, 100, byte(n)}), false
			f.External = dataplane.BackendSet{Backends: local, OnEmpty: dataplane.Drop}
			f.SourceRanges = rapid.SampledFrom(ranges).Draw(t, "ranges")
			s.Frontends = append(s.Frontends, f)
		}
		if rapid.Bool().Draw(t, "node port") {
			f.Kind, f.Address, f.SourceRanges = dataplane.NodePort, address([4]byte{127, 0, 0, byte(n)}), nil
			f.Internal = dataplane.BackendSet{Backends: local}
			s.Frontends = append(s.Frontends, f)
		}
	}
	return s
}

func TestKernelFollowsAnyChangeAndSurvivesAnyRestart(t *testing.T) {
	l := newLab(t)
	ctx := context.Background()
	d := l.open()
	rapid.Check(t, func(rt *rapid.T) {
		tab := table()
		if _, err := d.Sync(ctx, tab); err != nil { // what the run before left goes
			rt.Fatal(err)
		}
		for range rapid.IntRange(1, 12).Draw(rt, "steps") {
			c := dataplane.Change{Services: map[dataplane.ServiceName]*dataplane.Service{}}
			for range rapid.IntRange(1, 3).Draw(rt, "services") {
				n := rapid.IntRange(1, 5).Draw(rt, "service")
				s := drawService(rt, n)
				// The addresses are the number's: what else had them goes.
				for name := range tab.Services {
					if strings.HasPrefix(strings.TrimPrefix(name.Name, "pod:"), fmt.Sprintf("s%d", n)) {
						c.Services[name] = nil
					}
				}
				for name := range c.Services {
					if strings.HasPrefix(strings.TrimPrefix(name.Name, "pod:"), fmt.Sprintf("s%d", n)) {
						c.Services[name] = nil
					}
				}
				if rapid.IntRange(0, 3).Draw(rt, "remove") > 0 {
					c.Services[s.Name] = s
				}
			}
			maps.Copy(tab.Services, c.Services)
			maps.DeleteFunc(tab.Services, func(_ dataplane.ServiceName, s *dataplane.Service) bool { return s == nil })
			restart := rapid.IntRange(0, 40).Draw(rt, "restart")
			if restart == 0 { // the agent dies before the Change, and finds it after its start
				d.Close()
				d = l.open()
				if _, err := d.Sync(ctx, tab); err != nil {
					rt.Fatal(err)
				}
			} else if err := d.Apply(ctx, c); err != nil {
				rt.Fatal(err)
			}
			l.holds(tab)
			if restart <= 8 {
				if n, err := d.Sync(ctx, tab); n != 0 || err != nil {
					rt.Fatalf("full check after Apply changed %d Frontends, error %v", n, err)
				}
			}
		}
	})
}

func TestRestartChangesNothing(t *testing.T) {
	l := newLab(t)
	tab := syntheticTable(200, 7)
	d := l.open()
	l.sync(d, tab, 200)
	d.Close()
	before, err := generationOf(t)
	if err != nil {
		t.Fatal(err)
	}
	d = l.open()
	l.sync(d, tab, 0)
	if after, err := generationOf(t); err != nil || after != before {
		t.Errorf("a start changed the rule set: generation %d, then %d (%v)", before, after, err)
	}
}

func generationOf(t *testing.T) (uint32, error) {
	k, err := openSocket()
	if err != nil {
		t.Fatal(err)
	}
	defer k.close()
	return k.generation()
}

func TestDriftIsRepairedAndCounted(t *testing.T) {
	a := clusterIP("a", "10.96.0.1:80", dataplane.TCP, backends("10.244.1.1:80", "10.244.1.2:80")...)
	b := clusterIP("b", "10.96.0.2:80", dataplane.TCP, backends("10.244.1.1:80")...)
	foreign := clusterIP("c", "10.96.0.3:80", dataplane.TCP, backends("10.244.1.9:80")...)
	ip := families[0]
	for _, c := range []struct {
		name   string
		change func(*messages)
		want   int
	}{
		{"a Frontend is gone", func(m *messages) {
			var tr transaction
			tr.tupleTo(setFrontends, a.Frontends[0].FrontendKey, 0, 0, "", false)
			tr.write(m)
		}, 1},
		{"a slot is gone", func(m *messages) {
			var tr transaction
			tr.slot(setSlots, a.Frontends[0].FrontendKey, 1, nil)
			tr.write(m)
		}, 1},
		{"a slot leads elsewhere", func(m *messages) {
			var tr transaction
			tr.slot(setSlots, a.Frontends[0].FrontendKey, 1, nil)
			tr.slot(setSlots, a.Frontends[0].FrontendKey, 1, &foreign.Frontends[0].Internal.Backends[0])
			tr.write(m)
		}, 1},
		{"a Frontend of nobody", func(m *messages) {
			var tr transaction
			newShadow().plan(&tr, nil, foreign)
			tr.write(m)
		}, 1},
		{"a chain has no rules", func(m *messages) { (&chain{name: chainDispatch}).flush(m, ip) }, 1},
		{"a pick has no rules", func(m *messages) { (&chain{name: "pick-2"}).flush(m, ip) }, 1},
		{"a hook is gone", func(m *messages) {
			(&chain{name: chainOutput}).flush(m, ip)
			removeChain(m, ip, chainOutput)
		}, 2},
		{"the whole table is gone", func(m *messages) { removeTable(m, ip, tableName) }, 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := newLab(t)
			d := l.open()
			tab := table(a, b)
			l.sync(d, tab, 2)
			k, err := openSocket()
			if err != nil {
				t.Fatal(err)
			}
			defer k.close()
			if err := k.commit(c.change); err != nil {
				t.Fatal(err)
			}
			<-d.Drifted()
			l.sync(d, tab, c.want)
			l.holds(tab)
			l.sync(d, tab, 0)
			select {
			case <-d.Drifted():
				t.Error("the repair itself was taken for drift")
			default:
			}
		})
	}
}

func TestApplyAfterAForeignFlushFailsAndTheNextOneRepairs(t *testing.T) {
	l := newLab(t)
	d := l.open()
	a := clusterIP("a", "10.96.0.1:80", dataplane.TCP, backends("10.244.1.1:80", "10.244.1.2:80")...)
	fewer := clusterIP("a", "10.96.0.1:80", dataplane.TCP, backends("10.244.1.1:80")...)
	l.sync(d, table(a), 1)
	k, err := openSocket()
	if err != nil {
		t.Fatal(err)
	}
	defer k.close()
	if err := k.commit(func(m *messages) { removeTable(m, families[0], tableName) }); err != nil {
		t.Fatal(err)
	}
	c := dataplane.Change{Services: map[dataplane.ServiceName]*dataplane.Service{a.Name: fewer}}
	if err := d.Apply(context.Background(), c); err == nil {
		t.Fatal("Apply to a table that is gone: no error")
	}
	if err := d.Apply(context.Background(), c); err != nil {
		t.Fatal(err)
	}
	l.holds(table(fewer))
	l.sync(d, table(fewer), 0)
}

func TestServiceWithNamesTooLongFailsAlone(t *testing.T) {
	l := newLab(t)
	d := l.open()
	bad := clusterIP(strings.Repeat("x", 600), "10.96.0.1:80", dataplane.TCP)
	good := clusterIP("good", "10.96.0.2:80", dataplane.TCP)
	_, err := d.Sync(context.Background(), table(bad, good))
	var ae *dataplane.ApplyError
	if !errors.As(err, &ae) || len(ae.Failed) != 1 || ae.Failed[bad.Name] == nil {
		t.Fatalf("error %v, want one for the Service with the long name", err)
	}
	l.holds(table(good))
	better := clusterIP("good", "10.96.0.2:80", dataplane.TCP, backends("10.244.1.1:80")...)
	err = d.Apply(context.Background(), dataplane.Change{Services: map[dataplane.ServiceName]*dataplane.Service{bad.Name: bad, good.Name: better}})
	if !errors.As(err, &ae) || len(ae.Failed) != 1 {
		t.Fatalf("error %v, want one for the Service with the long name", err)
	}
	l.holds(table(better))
}

func TestFrontendMovesBetweenServicesInOneChange(t *testing.T) {
	l := newLab(t)
	d := l.open()
	a := clusterIP("a", "10.96.0.1:80", dataplane.TCP, backends("10.244.1.1:80")...)
	b := clusterIP("b", "10.96.0.1:80", dataplane.TCP, backends("10.244.1.2:80")...)
	l.sync(d, table(a), 1)
	for range 8 { // the order of a map is not always the same
		for _, s := range []*dataplane.Service{b, a} {
			other := map[*dataplane.Service]*dataplane.Service{a: b, b: a}[s]
			c := dataplane.Change{Services: map[dataplane.ServiceName]*dataplane.Service{other.Name: nil, s.Name: s}}
			if err := d.Apply(context.Background(), c); err != nil {
				t.Fatal(err)
			}
			l.holds(table(s))
		}
	}
	l.sync(d, table(a), 0)
}
