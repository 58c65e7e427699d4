// SPDX-License-Identifier: Apache-2.0

package podnetwork

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// tableName is the table of the inet family that masquerades Pods.
const tableName = "fairlead-pods"

// ruleMark is the comment of the rules; with another version they are made anew.
var ruleMark = []byte("fairlead-pods 1")

// family is what differs between IPv4 and IPv6.
type family struct {
	is4         bool
	own, inside string // names of sets
	kind        nftables.SetDatatype
	protocol    byte
	src, dst    uint32 // offsets in the header
	length      uint32 // of an address
}

var families = []family{
	{true, "own4", "inside4", nftables.TypeIPAddr, unix.NFPROTO_IPV4, 12, 16, 4},
	{false, "own6", "inside6", nftables.TypeIP6Addr, unix.NFPROTO_IPV6, 8, 24, 16},
}

// syncMasquerade makes the table one that masquerades what this node's Pods
// send to where it is not inside. It is replaced as a whole in one transaction;
// flows that go on are conntrack's and do not notice.
func (n *Network) syncMasquerade(own, inside []netip.Prefix) error {
	same, err := n.masqueradeIs(own, inside)
	if err != nil {
		return err
	}
	if same {
		return nil
	}
	t := &nftables.Table{Name: tableName, Family: nftables.TableFamilyINet}
	n.conn.AddTable(t) // so that there is one to delete
	n.conn.DelTable(t)
	n.conn.AddTable(t)
	chain := n.conn.AddChain(&nftables.Chain{Name: "postrouting", Table: t, Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource})
	for _, f := range families {
		var sets [2]*nftables.Set
		for i, s := range []struct {
			name     string
			prefixes []netip.Prefix
		}{{f.own, own}, {f.inside, inside}} {
			sets[i] = &nftables.Set{Table: t, Name: s.name, Interval: true, KeyType: f.kind}
			if err := n.conn.AddSet(sets[i], elements(merge(s.prefixes, f.is4))); err != nil {
				return fmt.Errorf("masquerade Pods: set %s: %w", s.name, err)
			}
		}
		n.conn.AddRule(&nftables.Rule{Table: t, Chain: chain, UserData: comment(ruleMark), Exprs: f.rule(sets[0], sets[1])})
	}
	if err := n.conn.Flush(); err != nil {
		return fmt.Errorf("masquerade Pods: write table %s: %w", tableName, err)
	}
	return nil
}

// rule is: saddr in own, daddr not in inside: masquerade to a random port.
func (f family) rule(own, inside *nftables.Set) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{f.protocol}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: f.src, Len: f.length},
		&expr.Lookup{SourceRegister: 1, SetName: own.Name, SetID: own.ID},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: f.dst, Len: f.length},
		&expr.Lookup{SourceRegister: 1, SetName: inside.Name, SetID: inside.ID, Invert: true},
		&expr.Counter{},
		&expr.Masq{FullyRandom: true},
	}
}

// elements are ranges as nftables has them: where one begins, and the address
// behind its end. One that ends with the last address of all has no end.
func elements(ranges []addresses) (out []nftables.SetElement) {
	for _, r := range ranges {
		out = append(out, nftables.SetElement{Key: r.first.AsSlice()})
		if end := r.last.Next(); end.IsValid() {
			out = append(out, nftables.SetElement{Key: end.AsSlice(), IntervalEnd: true})
		}
	}
	return out
}

// comment is a rule's user data as nft shows it.
func comment(text []byte) []byte {
	const commentType = 0 // NFTNL_UDATA_RULE_COMMENT
	return append([]byte{commentType, byte(len(text) + 1)}, append(bytes.Clone(text), 0)...)
}

// masqueradeIs says whether the kernel has the table just so.
func (n *Network) masqueradeIs(own, inside []netip.Prefix) (bool, error) {
	t, err := findTable(n.conn)
	if t == nil || err != nil {
		return false, err
	}
	rules, err := n.conn.GetRules(t, &nftables.Chain{Name: "postrouting", Table: t})
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read table %s: %w", tableName, err)
	}
	marked := 0
	for _, r := range rules {
		if bytes.Equal(r.UserData, comment(ruleMark)) {
			marked++
		}
	}
	if len(rules) != len(families) || marked != len(families) {
		return false, nil
	}
	for _, f := range families {
		for name, prefixes := range map[string][]netip.Prefix{f.own: own, f.inside: inside} {
			have, err := n.conn.GetSetElements(&nftables.Set{Table: t, Name: name, KeyType: f.kind, Interval: true})
			if errors.Is(err, unix.ENOENT) {
				return false, nil
			}
			if err != nil {
				return false, fmt.Errorf("read table %s: set %s: %w", tableName, name, err)
			}
			if !sameElements(have, elements(merge(prefixes, f.is4))) {
				return false, nil
			}
		}
	}
	return true, nil
}

// sameElements compares regardless of order, and of the end of nothing with
// which the kernel begins some sets.
func sameElements(have, want []nftables.SetElement) bool {
	key := func(e nftables.SetElement) string { return fmt.Sprintf("%x %t", e.Key, e.IntervalEnd) }
	left := map[string]int{}
	for _, e := range want {
		left[key(e)]++
	}
	for _, e := range have {
		if e.IntervalEnd && len(bytes.Trim(e.Key, "\x00")) == 0 {
			continue
		}
		if left[key(e)]--; left[key(e)] < 0 {
			return false
		}
	}
	for _, n := range left {
		if n != 0 {
			return false
		}
	}
	return true
}

func findTable(conn *nftables.Conn) (*nftables.Table, error) {
	tables, err := conn.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return nil, fmt.Errorf("list the tables of nftables: %w", err)
	}
	for _, t := range tables {
		if t.Name == tableName {
			return t, nil
		}
	}
	return nil, nil
}

func removeMasquerade(Options) ([]string, error) {
	conn, err := nftables.New()
	if err != nil {
		return nil, fmt.Errorf("open nftables: %w", err)
	}
	t, err := findTable(conn)
	if t == nil || err != nil {
		return nil, err
	}
	conn.DelTable(t)
	if err := conn.Flush(); err != nil {
		return nil, fmt.Errorf("remove table %s: %w", tableName, err)
	}
	return []string{"nft table inet " + tableName}, nil
}
