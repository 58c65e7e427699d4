// SPDX-License-Identifier: Apache-2.0

package nftables

import (
	"fmt"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Present reports whether a Dataplane of this kind holds state in the calling
// thread's network namespace. What Empty leaves does not count.
func Present(Options) (bool, error) {
	k, err := openSocket()
	if err != nil {
		return false, err
	}
	defer k.close()
	return k.hasTables()
}

// Draining reports whether hooks that Empty or Hook left are there.
func Draining(Options) (bool, error) {
	k, err := openSocket()
	if err != nil {
		return false, err
	}
	defer k.close()
	for _, f := range families {
		if there, err := k.hasTable(f, drainTable); err != nil || there {
			return there, err
		}
	}
	return false, nil
}

// Cleanup removes all that a Dataplane left, and what Empty did; established
// flows end with it. It says what it removed.
func Cleanup(Options) (removed []string, err error) {
	k, err := openSocket()
	if err != nil {
		return nil, err
	}
	defer k.close()
	var ours bool
	for _, table := range []string{tableName, drainTable} {
		g, err := readGuard(k, table)
		if err != nil {
			return nil, err
		}
		ours = ours || g.there && g.ours
	}
	m := newBatch()
	if removed, err = removeTables(k, m, tableName, drainTable, checkTable); err != nil || len(removed) == 0 {
		return nil, err
	}
	if ours { // before the guard goes
		if err := setLocalnet(false); err != nil {
			return nil, err
		}
		removed = append(removed, "net.ipv4.conf.all.route_localnet=1")
	}
	return removed, k.commitMessages(m)
}

// Empty replaces all that a Dataplane left by hooks without rules for new
// connections: established flows go on, as conntrack translates them as long as
// somebody has such hooks. It is for the time in which another Dataplane takes
// over; Cleanup ends it.
func Empty(Options) (removed []string, err error) {
	k, err := openSocket()
	if err != nil {
		return nil, err
	}
	defer k.close()
	g, err := readGuard(k, tableName)
	if err != nil {
		return nil, err
	}
	m := newBatch()
	if removed, err = removeTables(k, m, tableName); err != nil || len(removed) == 0 {
		return nil, err
	}
	for _, f := range families {
		if err := f.in(drainTable).addDrain(m, g); err != nil {
			return nil, err
		}
	}
	return removed, k.commitMessages(m)
}

// Hook makes the hooks that Empty leaves, where they are not there: for another
// Dataplane whose flows are in conntrack and whose rules go.
func Hook(Options) error {
	k, err := openSocket()
	if err != nil {
		return err
	}
	defer k.close()
	m := newBatch()
	for _, f := range families {
		there, err := k.hasTable(f, drainTable)
		if err != nil {
			return err
		}
		if there {
			continue
		}
		if err := f.in(drainTable).addDrain(m, &guardState{}); err != nil {
			return err
		}
	}
	return k.commitMessages(m)
}

// addDrain appends what makes the hooks; a guard of loopback is kept.
func (f *family) addDrain(m *messages, g *guardState) error {
	m.begin(unix.NFT_MSG_NEWTABLE, unix.NLM_F_CREATE, f.proto)
	m.text(unix.NFTA_TABLE_NAME, f.table)
	m.end()
	chains := f.hooks()
	for i := range chains {
		chains[i].rules = nil
		if chains[i].name == chainPostrouting {
			// A rule that asks conntrack for something keeps it at work.
			chains[i].rules = []rule{line("established flows go on", translated(), &expr.Verdict{Kind: expr.VerdictAccept})}
		}
	}
	if g.there && f.index == 0 {
		chains = append(chains, guard(g.ours))
	}
	for i := range chains {
		chains[i].add(m, f)
		if err := chains[i].fill(m, f); err != nil {
			return err
		}
	}
	return nil
}

// removeTables appends what removes those that are there, and names them.
func removeTables(k *socket, m *messages, tables ...string) (removed []string, err error) {
	for _, f := range families {
		for _, name := range tables {
			there, err := k.hasTable(f, name)
			if err != nil {
				return nil, err
			}
			if there {
				removeTable(m, f, name)
				removed = append(removed, fmt.Sprintf("nftables table %s %s", f, name))
			}
		}
	}
	return removed, nil
}
