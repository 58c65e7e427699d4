// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"fmt"
	"testing"
)

func TestASecondSyncChangesNothing(t *testing.T) {
	forEachFlavour(t, func(t *testing.T, l *lab) {
		tab := tableOf(clusterIP("a", "10.96.0.1:80", backends("10.244.1.1:8080", "10.244.1.2:8080")...), clusterIP("six", "[fd00:10:96::1]:80", backends("[fd00:10:244:1::1]:8080")...))
		d := l.open()
		l.sync(d, tab, 2)
		before := l.rules()
		for _, f := range d.families {
			saved, _, err := f.adopt(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			f.reset()
			f.setNode(tab.Node)
			f.stageAll(f.plan(tab.Services, nil, nil))
			for name, out := range f.tables {
				f.checkJumps(out, saved[name])
				for chain, rules := range out.next {
					t.Errorf("%s %s is\n%q\nwant\n%q", name, chain, fmt.Sprintf("%+v", saved[name].chains[chain]), rules)
				}
				t.Log(out.jumps, out.extra)
			}
		}
		d = l.open()
		l.sync(d, tab, 0)
		if after := l.rules(); after != before {
			t.Errorf("before:\n%s\nafter:\n%s", before, after)
		}
		l.holds(t, tab)
	})
}
