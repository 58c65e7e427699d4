// SPDX-License-Identifier: Apache-2.0

package nftables

import (
	"context"
	"errors"
	"strings"
	"testing"

	"fairlead.dev/dataplane"
	"fairlead.dev/dataplane/dataplanetest"
)

func TestKernelFollowsAnyChangeAndSurvivesAnyRestart(t *testing.T) {
	l := newLab(t)
	dataplanetest.Follows(t, dataplanetest.FollowOptions{
		Open:  func() (dataplane.Dataplane, error) { return New(context.Background(), l.options) },
		Read:  l.Read,
		Steps: 12, RestartOneIn: 41,
	})
}

func TestRestartChangesNothing(t *testing.T) {
	l := newLab(t)
	tab := syntheticTable(200, 7)
	d := l.open()
	l.Sync(d, tab, 200)
	d.Close()
	before, err := generationOf(t)
	if err != nil {
		t.Fatal(err)
	}
	d = l.open()
	l.Sync(d, tab, 0)
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
			l.Sync(d, tab, 2)
			k, err := openSocket()
			if err != nil {
				t.Fatal(err)
			}
			defer k.close()
			if err := k.commit(c.change); err != nil {
				t.Fatal(err)
			}
			<-d.Drifted()
			l.Sync(d, tab, c.want)
			l.Holds(tab)
			l.Sync(d, tab, 0)
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
	l.Sync(d, table(a), 1)
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
	l.Holds(table(fewer))
	l.Sync(d, table(fewer), 0)
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
	l.Holds(table(good))
	better := clusterIP("good", "10.96.0.2:80", dataplane.TCP, backends("10.244.1.1:80")...)
	err = d.Apply(context.Background(), dataplane.Change{Services: map[dataplane.ServiceName]*dataplane.Service{bad.Name: bad, good.Name: better}})
	if !errors.As(err, &ae) || len(ae.Failed) != 1 {
		t.Fatalf("error %v, want one for the Service with the long name", err)
	}
	l.Holds(table(better))
}

func TestFrontendMovesBetweenServicesInOneChange(t *testing.T) {
	l := newLab(t)
	d := l.open()
	a := clusterIP("a", "10.96.0.1:80", dataplane.TCP, backends("10.244.1.1:80")...)
	b := clusterIP("b", "10.96.0.1:80", dataplane.TCP, backends("10.244.1.2:80")...)
	l.Sync(d, table(a), 1)
	for range 8 { // the order of a map is not always the same
		for _, s := range []*dataplane.Service{b, a} {
			other := map[*dataplane.Service]*dataplane.Service{a: b, b: a}[s]
			c := dataplane.Change{Services: map[dataplane.ServiceName]*dataplane.Service{other.Name: nil, s.Name: s}}
			if err := d.Apply(context.Background(), c); err != nil {
				t.Fatal(err)
			}
			l.Holds(table(s))
		}
	}
	l.Sync(d, table(a), 0)
}
