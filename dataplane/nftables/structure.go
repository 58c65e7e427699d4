// SPDX-License-Identifier: Apache-2.0

package nftables

import (
	"encoding/binary"
	"errors"
	"io/fs"
	"slices"

	"golang.org/x/sys/unix"

	"fairlead.dev/dataplane"
	"fairlead.dev/dataplane/nfnetlink"
)

// addTable appends the messages that make a family's table with its sets,
// counters and chains, all of it empty.
func (f *family) addTable(m *messages, o Options, n dataplane.Node) error {
	m.begin(unix.NFT_MSG_NEWTABLE, unix.NLM_F_CREATE, f.proto)
	m.text(unix.NFTA_TABLE_NAME, f.table)
	m.end()
	for id, l := range f.layout(o.AffinityMax) {
		l.add(m, f, setID(id))
	}
	for _, name := range dropReasons {
		m.begin(unix.NFT_MSG_NEWOBJ, unix.NLM_F_CREATE, f.proto)
		m.text(unix.NFTA_OBJ_TABLE, f.table)
		m.text(unix.NFTA_OBJ_NAME, name)
		m.u32(unix.NFTA_OBJ_TYPE, unix.NFT_OBJECT_COUNTER)
		m.unnest(m.nest(unix.NFTA_OBJ_DATA))
		m.end()
	}
	chains := f.chains(n)
	for i := range chains {
		chains[i].add(m, f)
	}
	for i := range chains {
		if err := chains[i].fill(m, f); err != nil {
			return err
		}
	}
	actions := elementList{}
	actions.add(&element{key: native32(actionReject), chain: chainNoBackends})
	actions.add(&element{key: native32(actionDrop), chain: chainNoLocal})
	actions.change(m, unix.NFT_MSG_NEWSETELEM, f, setActions)
	actions.change(m, unix.NFT_MSG_NEWSETELEM, f, setActionsExternal)
	return nil
}

func removeTable(m *messages, f *family, name string) {
	m.begin(unix.NFT_MSG_DELTABLE, 0, f.proto)
	m.text(unix.NFTA_TABLE_NAME, name)
	m.end()
}

func (l *setLayout) mapFlags() uint32 {
	if l.data != nil {
		return l.flags | unix.NFT_SET_MAP
	}
	return l.flags
}

func (l *setLayout) add(m *messages, f *family, id setID) {
	m.begin(unix.NFT_MSG_NEWSET, unix.NLM_F_CREATE, f.proto)
	m.text(unix.NFTA_SET_TABLE, f.table)
	m.text(unix.NFTA_SET_NAME, id.String())
	m.u32(unix.NFTA_SET_FLAGS, l.mapFlags())
	m.u32(unix.NFTA_SET_KEY_TYPE, typeOf(l.key))
	m.u32(unix.NFTA_SET_KEY_LEN, uint32(l.keyBytes()))
	if l.data != nil {
		m.u32(unix.NFTA_SET_DATA_TYPE, typeOf(l.data))
		if l.dataBytes() > 0 {
			m.u32(unix.NFTA_SET_DATA_LEN, uint32(l.dataBytes()))
		}
	}
	m.u32(unix.NFTA_SET_ID, uint32(id)+1) // names it within a transaction, which we don't
	if l.size > 0 || l.flags&setConcatenation != 0 {
		l.describe(m)
	}
	if len(l.key) == 1 && l.key[0].kind == typeMark {
		// NFTNL_UDATA_SET_KEYBYTEORDER: the machine's, for nft to print numbers.
		m.bytes(unix.NFTA_SET_USERDATA, append([]byte{0, 4}, native32(1)...))
	}
	m.end()
}

const (
	attrDescConcat = 2 // NFTA_SET_DESC_CONCAT
	attrFieldLen   = 1 // NFTA_SET_FIELD_LEN
)

func (l *setLayout) describe(m *messages) {
	at := m.nest(unix.NFTA_SET_DESC)
	if l.size > 0 {
		m.u32(unix.NFTA_SET_DESC_SIZE, uint32(l.size))
	}
	if l.flags&setConcatenation != 0 {
		concat := m.nest(attrDescConcat)
		for _, f := range l.key {
			one := m.nest(unix.NFTA_LIST_ELEM)
			m.u32(attrFieldLen, uint32(f.bytes))
			m.unnest(one)
		}
		m.unnest(concat)
	}
	m.unnest(at)
}

// structure is what the kernel has of a table but for the elements.
type structure struct {
	sets map[string]setShape
	// chains holds the user data of each chain's rules, in order.
	chains   map[string][]string
	bases    map[string]hook
	counters map[string]uint64 // packets
}

type setShape struct {
	flags, keyType, keyBytes, dataType, dataBytes uint32
}

func (l *setLayout) shape() setShape {
	s := setShape{flags: l.mapFlags(), keyType: typeOf(l.key), keyBytes: uint32(l.keyBytes())}
	if l.data != nil {
		s.dataType, s.dataBytes = typeOf(l.data), uint32(l.dataBytes())
	}
	return s
}

// fits reports whether a set has a shape. The kernel tells a size of verdicts
// that nobody gave it.
func (s setShape) fits(want setShape) bool {
	if want.dataType == typeVerdict {
		s.dataBytes = want.dataBytes
	}
	return s == want
}

// readStructure gives nil where the table is not there.
func (s *socket) readStructure(f *family, table string) (*structure, error) {
	t := &structure{sets: map[string]setShape{}, chains: map[string][]string{}, bases: map[string]hook{}, counters: map[string]uint64{}}
	there, err := s.hasTable(f, table)
	if err != nil || !there {
		return nil, err
	}
	err = s.list(unix.NFT_MSG_GETSET, f.proto, func(m *messages) { m.text(unix.NFTA_SET_TABLE, table) }, func(attrs []byte) {
		t.sets[cString(attribute(attrs, unix.NFTA_SET_NAME))] = setShape{
			flags:   nfnetlink.Uint32(attribute(attrs, unix.NFTA_SET_FLAGS)),
			keyType: nfnetlink.Uint32(attribute(attrs, unix.NFTA_SET_KEY_TYPE)), keyBytes: nfnetlink.Uint32(attribute(attrs, unix.NFTA_SET_KEY_LEN)),
			dataType: nfnetlink.Uint32(attribute(attrs, unix.NFTA_SET_DATA_TYPE)), dataBytes: nfnetlink.Uint32(attribute(attrs, unix.NFTA_SET_DATA_LEN)),
		}
	})
	if err != nil {
		return nil, err
	}
	err = s.list(unix.NFT_MSG_GETCHAIN, f.proto, nil, func(attrs []byte) {
		if cString(attribute(attrs, unix.NFTA_CHAIN_TABLE)) == table {
			t.addChain(attrs)
		}
	})
	if err != nil {
		return nil, err
	}
	err = s.list(unix.NFT_MSG_GETRULE, f.proto, func(m *messages) { m.text(unix.NFTA_RULE_TABLE, table) }, func(attrs []byte) {
		if cString(attribute(attrs, unix.NFTA_RULE_TABLE)) == table {
			name := cString(attribute(attrs, unix.NFTA_RULE_CHAIN))
			t.chains[name] = append(t.chains[name], string(attribute(attrs, unix.NFTA_RULE_USERDATA)))
		}
	})
	if err != nil {
		return nil, err
	}
	err = s.list(unix.NFT_MSG_GETOBJ, f.proto, func(m *messages) { m.text(unix.NFTA_OBJ_TABLE, table) }, func(attrs []byte) {
		if cString(attribute(attrs, unix.NFTA_OBJ_TABLE)) == table {
			t.counters[cString(attribute(attrs, unix.NFTA_OBJ_NAME))] = be64(attribute(attribute(attrs, unix.NFTA_OBJ_DATA), unix.NFTA_COUNTER_PACKETS))
		}
	})
	return t, err
}

func (t *structure) addChain(attrs []byte) {
	name := cString(attribute(attrs, unix.NFTA_CHAIN_NAME))
	t.chains[name] = nil
	if at := attribute(attrs, unix.NFTA_CHAIN_HOOK); at != nil {
		t.bases[name] = hook{
			kind: cString(attribute(attrs, unix.NFTA_CHAIN_TYPE)), number: nfnetlink.Uint32(attribute(at, unix.NFTA_HOOK_HOOKNUM)),
			priority: int32(nfnetlink.Uint32(attribute(at, unix.NFTA_HOOK_PRIORITY))),
		}
	}
}

// hasTable reports whether a table is there.
func (s *socket) hasTable(f *family, table string) (there bool, err error) {
	err = s.list(unix.NFT_MSG_GETTABLE, f.proto, nil, func(attrs []byte) {
		there = there || cString(attribute(attrs, unix.NFTA_TABLE_NAME)) == table
	})
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return there, err
}

// hasTables reports whether the table of a Dataplane is there in any family.
func (s *socket) hasTables() (bool, error) {
	for _, f := range families {
		if there, err := s.hasTable(f, tableName); err != nil || there {
			return there, err
		}
	}
	return false, nil
}

// fits reports whether the table is one of this version: what is wrong with its
// rules can be repaired, another layout can't.
func (t *structure) fits(f *family, o Options) bool {
	for id, l := range f.layout(o.AffinityMax) {
		if have, ok := t.sets[setID(id).String()]; !ok || !have.fits(l.shape()) {
			return false
		}
	}
	for _, name := range dropReasons {
		if _, ok := t.counters[name]; !ok {
			return false
		}
	}
	for _, c := range f.hooks() {
		if have, ok := t.bases[c.name]; !ok || have != *c.hook {
			return false
		}
	}
	return true
}

// holds reports whether a chain is there with just its rules.
func (t *structure) holds(f *family, c *chain) (bool, error) {
	have, ok := t.chains[c.name]
	if !ok || len(have) != len(c.rules) {
		return false, nil
	}
	for i := range c.rules {
		exprs, err := c.rules[i].encode(f)
		if err != nil {
			return false, err
		}
		if have[i] != string(c.rules[i].userData(exprs)) {
			return false, nil
		}
	}
	return true, nil
}

// put appends the messages that give a chain its rules, whether it is there or
// not: in one transaction, so a packet passes the old rules or the new ones.
func (c *chain) put(m *messages, f *family) error {
	c.add(m, f)
	c.flush(m, f)
	return c.fill(m, f)
}

// sameChains reports whether the chains that depend on the node are the same.
func (f *family) sameChains(a, b dataplane.Node) bool {
	return slices.Equal(f.internal(a), f.internal(b))
}

func nativeU32(b []byte) uint32 {
	if len(b) != 4 {
		return 0
	}
	return binary.NativeEndian.Uint32(b)
}
