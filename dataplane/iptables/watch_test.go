// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"testing"
	"time"

	"fairlead.dev/dataplane"
)

// signalled takes a signal that is there.
func signalled(d *Dataplane) bool {
	select {
	case <-d.Drifted():
		return true
	default:
		return false
	}
}

func TestAForeignChangeOfOurRulesIsNoticed(t *testing.T) {
	forEachFlavour(t, func(t *testing.T, l *lab) {
		d := l.open()
		one, six := command(l.options.Flavour, false, ""), command(l.options.Flavour, true, "")
		tab := tableOf(clusterIP("a", "10.96.0.1:80", dataplane.TCP, backends("10.244.1.1:80", "10.244.1.2:80")...))
		l.Sync(d, tab, 1)
		for _, spoil := range [][]string{
			{one, "-t", "nat", "-D", set(tab, "a"), "1"},
			{one, "-t", "nat", "-F"},
			{one, "-F"},
			{six, "-t", "nat", "-F", chainServices},
		} {
			time.Sleep(2 * legacyPoll)
			if signalled(d) {
				t.Fatal("own changes signalled drift")
			}
			l.run(spoil[0], spoil[1:]...)
			start := time.Now()
			select {
			case <-d.Drifted():
				t.Logf("%q was noticed after %v", spoil, time.Since(start))
			case <-time.After(time.Second):
				t.Errorf("%q was not noticed within a second", spoil)
			}
			if _, err := d.Sync(t.Context(), tab); err != nil {
				t.Fatal(err)
			}
			l.Holds(tab)
		}
	})
}

func TestForeignRulesAreNoDrift(t *testing.T) {
	l := newLab(t, NFT)
	d := l.open()
	l.Sync(d, tableOf(clusterIP("a", "10.96.0.1:80", dataplane.TCP, backends("10.244.1.1:80")...)), 1)
	l.run("iptables-nft", "-t", "nat", "-A", "POSTROUTING", "-s", "10.1.0.0/16", "-j", "MASQUERADE")
	l.run("iptables-nft", "-t", "nat", "-N", "KUBE-SERVICES")
	l.run("nft", "add", "table", "inet", "foreign")
	l.run("nft", "delete", "table", "inet", "foreign")
	time.Sleep(100 * time.Millisecond)
	if signalled(d) {
		t.Error("rules of others signalled drift")
	}
	l.Sync(d, tableOf(clusterIP("a", "10.96.0.1:80", dataplane.TCP, backends("10.244.1.1:80")...)), 0)
}

// A load makes more events than the socket's buffer holds.
func TestALoadIsNoDrift(t *testing.T) {
	l := newLab(t, NFT)
	d := l.open()
	tab := synthetic(1500, 10)
	l.Sync(d, tab, 1500)
	time.Sleep(100 * time.Millisecond)
	if signalled(d) {
		t.Error("an own load signalled drift")
	}
	l.Sync(d, tab, 0)
}
