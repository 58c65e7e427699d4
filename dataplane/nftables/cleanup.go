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

// Cleanup removes all that a Dataplane left, and what Empty did; established
// flows end with it. It says what it removed.
func Cleanup(Options) (removed []string, err error) {
	return replaceTables(func(*messages, *family) error { return nil }, tableName, drainTable)
}

// Empty replaces all that a Dataplane left by hooks without rules for new
// connections: established flows go on, as conntrack translates them as long as
// somebody has such hooks. It is for the time in which another Dataplane takes
// over; Cleanup ends it.
func Empty(Options) (removed []string, err error) {
	return replaceTables(func(m *messages, f *family) error {
		chains := f.hooks()
		m.begin(unix.NFT_MSG_NEWTABLE, unix.NLM_F_CREATE, f.proto)
		m.text(unix.NFTA_TABLE_NAME, drainTable)
		m.end()
		for i := range chains {
			c := &chains[i]
			c.rules = nil
			if c.name == chainPostrouting {
				// A rule that asks conntrack for something keeps it at work.
				c.rules = []rule{line("established flows go on", translated(), &expr.Verdict{Kind: expr.VerdictAccept})}
			}
			c.add(m, f, drainTable)
			if err := c.fill(m, f, drainTable); err != nil {
				return err
			}
		}
		return nil
	}, tableName)
}

// replaceTables removes tables of both families and adds others, at one instant.
// route_localnet goes back to what it was before.
func replaceTables(add func(*messages, *family) error, tables ...string) (removed []string, err error) {
	k, err := openSocket()
	if err != nil {
		return nil, err
	}
	defer k.close()
	g, err := readGuard(k)
	if err != nil {
		return nil, err
	}
	m := newBatch()
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
	if len(removed) == 0 {
		return nil, nil
	}
	for _, f := range families {
		if err := add(m, f); err != nil {
			return nil, err
		}
	}
	if g.there && g.ours {
		if err := setLocalnet(false); err != nil {
			return nil, err
		}
		removed = append(removed, "net.ipv4.conf.all.route_localnet=1")
	}
	return removed, k.commitMessages(m)
}
