// SPDX-License-Identifier: Apache-2.0

package nftables

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"

	"fairlead.dev/dataplane"
)

// transaction gathers the elements to delete and to add, by set.
type transaction struct {
	deletes, adds [2][setCount]elementList
	bytes         int
	key, data     []byte // scratch
}

// write appends its messages: deletions first, so that an element can be
// replaced.
func (t *transaction) write(m *messages) {
	for i, f := range families {
		for id := range setCount {
			t.deletes[i][id].change(m, unix.NFT_MSG_DELSETELEM, f, id)
		}
	}
	for i, f := range families {
		for id := range setCount {
			t.adds[i][id].change(m, unix.NFT_MSG_NEWSETELEM, f, id)
		}
	}
}

func (t *transaction) add(f *family, id setID, e *element) {
	t.adds[f.index][id].add(e)
	t.bytes += len(e.key) + len(e.data) + len(e.comment) + 32
}

func (t *transaction) remove(f *family, id setID, e *element) {
	t.deletes[f.index][id].add(&element{key: e.key, keyEnd: e.keyEnd})
	t.bytes += len(e.key) + 16
}

// put adds or removes an element.
func (t *transaction) put(f *family, id setID, e *element, there bool) {
	if there {
		t.add(f, id, e)
	} else {
		t.remove(f, id, e)
	}
}

// tuple adds or removes an element that has a Frontend's tuple for key.
func (t *transaction) tuple(id setID, k dataplane.FrontendKey, there bool) {
	t.key = appendTuple(t.key[:0], k)
	t.put(familyOf(k.Address), id, &element{key: t.key}, there)
}

// tupleTo is tuple in a map to numbers, which are wide: before the number proper
// is one that packets do not see.
func (t *transaction) tupleTo(id setID, k dataplane.FrontendKey, aside, number uint32, comment string, there bool) {
	t.key = appendTuple(t.key[:0], k)
	t.data = binary.NativeEndian.AppendUint32(t.data[:0], aside)
	t.data = binary.NativeEndian.AppendUint32(t.data, number)
	t.put(familyOf(k.Address), id, &element{key: t.key, data: t.data, comment: comment}, there)
}

// service adds or removes the element that names a Frontend.
func (t *transaction) service(k dataplane.FrontendKey, names string, there bool) {
	t.key = appendTuple(t.key[:0], k)
	t.put(familyOf(k.Address), setServices, &element{key: t.key, comment: names, counted: true}, there)
}

// slot adds a slot, or removes it where b is nil.
func (t *transaction) slot(id setID, k dataplane.FrontendKey, index uint32, b *dataplane.Backend) {
	t.key = binary.NativeEndian.AppendUint32(appendTuple(t.key[:0], k), index)
	e := element{key: t.key}
	if b != nil {
		t.data = t.data[:0]
		if isSticky(id) {
			t.data = append(t.data, 0, 0, 0, 0)
		}
		t.data = appendBackend(t.data, b.AddrPort())
		e.data, e.comment = t.data, slotComment(b)
	}
	t.put(familyOf(k.Address), id, &e, b != nil)
}

func (t *transaction) eligible(id setID, k dataplane.FrontendKey, b *dataplane.Backend, there bool) {
	t.key = appendBackend(appendTuple(t.key[:0], k), b.AddrPort())
	t.put(familyOf(k.Address), id, &element{key: t.key}, there)
}

// allowed adds or removes a source range: from, and in keyEnd to, inclusive.
func (t *transaction) allowed(k dataplane.FrontendKey, p netip.Prefix, there bool) {
	t.key = appendAddress(appendTuple(t.key[:0], k), p.Addr())
	t.data = appendAddress(appendTuple(t.data[:0], k), lastOf(p))
	t.put(familyOf(k.Address), setAllowed, &element{key: t.key, keyEnd: t.data}, there)
}

func (t *transaction) address(id setID, a netip.Addr, there bool) {
	t.key = appendAddress(t.key[:0], a)
	if id == setLocalBackends {
		t.key = appendAddress(t.key, a)
	}
	t.put(familyOf(a), id, &element{key: t.key}, there)
}

// lastOf is the last address of a prefix.
func lastOf(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i, m := range mask(p) {
		b[i] |= ^m
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// slotComments are the comments of slots, for dump and nft.
var slotComments = [...]string{"", "local", "terminating", "terminating local"}

func slotComment(b *dataplane.Backend) string {
	i := 0
	if b.Local {
		i = 1
	}
	if b.State == dataplane.Terminating {
		i += 2
	}
	return slotComments[i]
}
