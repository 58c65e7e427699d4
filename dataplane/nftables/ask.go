// SPDX-License-Identifier: Apache-2.0

package nftables

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"fairlead.dev/dataplane"
	"fairlead.dev/dataplane/nfnetlink"
)

// slotsAsk are the slots of a Frontend in the kernel.
type slotsAsk struct {
	key      dataplane.FrontendKey
	set      setID
	eligible int
	idle     int
}

// eligibleAsk is an element of a set of eligible Backends.
type eligibleAsk struct {
	key string
	set setID
}

// toldBy reports whether a set is listed even if there are many Services: it
// tells of the elements that are in others, or belongs to no Frontend.
func toldBy(id setID) bool {
	switch id {
	case setFrontends, setFrontendsExternal, setUplinks, setLocalBackends, setAllowed:
		return true
	}
	return false
}

// tupleSets have an element for a Frontend at most.
var tupleSets = []setID{setServices, setRestricted, setKeepSource, setStickyIDs}

// told notes which slots a Frontend in the kernel has, wanted or not.
func (a *adoption) told(f *family, id setID, e *element) {
	k, ok := f.decodeTuple(e.key)
	number := wideU32(e.data)
	if !ok || number == actionReject || number == actionDrop {
		return
	}
	scope := dataplane.Internal
	if id == setFrontendsExternal {
		scope = dataplane.External
	}
	ask := slotsAsk{key: k, set: slotSets[scope], eligible: int(number), idle: int(nativeU32(e.data[:wideBytes]))}
	if number >= actionSticky {
		p := a.shadow.actions[f.index].sticky(number)
		ask.set, ask.eligible = stickySets[scope], p.backends
	}
	if ask.eligible <= backendsMax && ask.idle <= backendsMax {
		a.asks = append(a.asks, ask)
	}
}

// sticky finds the pick of a number.
func (a *actions) sticky(number uint32) (p pick) {
	for p, n := range a.numbers {
		if n == number {
			return p
		}
	}
	return pick{}
}

// toldEligible notes that the Backend in a slot may be in the set of eligible
// ones.
func (a *adoption) toldEligible(f *family, id setID, e *element) {
	n := f.tupleBytes()
	if len(e.key) != n+4 || nativeU32(e.key[n:]) >= idleSlot {
		return
	}
	set := setEligible
	if id == setStickySlotsExternal {
		set = setEligibleExternal
	}
	a.eligible[eligibleAsk{string(e.key[:n]) + string(slotData(id, e)), set}] = true
}

// askFor asks for all that was told, and for what is wanted to be eligible.
func (a *adoption) askFor(k *socket, f *family) error {
	q := &question{kernel: k, family: f, see: func(id setID, e *element) { a.see(f, id, e) }}
	if err := a.askForTuples(q); err != nil {
		return err
	}
	var key []byte
	for _, s := range a.asks {
		if familyOf(s.key.Address) != f {
			continue
		}
		for i := range s.eligible + s.idle {
			key = binary.NativeEndian.AppendUint32(appendTuple(key[:0], s.key), slotIndex(i, s.eligible))
			if err := q.ask(s.set, key); err != nil {
				return err
			}
		}
	}
	if err := q.flush(); err != nil {
		return err
	}
	for _, found := range a.frontends {
		a.wantEligible(f, found)
	}
	for e := range a.eligible {
		if len(e.key) != f.tupleBytes()+f.backendBytes() {
			continue // of the other family
		}
		if err := q.ask(e.set, []byte(e.key)); err != nil {
			return err
		}
	}
	return q.flush()
}

// askForTuples asks for what Frontends have one of, those that are wanted and
// those that are not but there.
func (a *adoption) askForTuples(q *question) error {
	var key []byte
	addresses := map[netip.Addr]bool{}
	ask := func(k dataplane.FrontendKey) error {
		if familyOf(k.Address) != q.family {
			return nil
		}
		addresses[k.Address] = true
		key = appendTuple(key[:0], k)
		for _, id := range tupleSets {
			if err := q.ask(id, key); err != nil {
				return err
			}
		}
		return nil
	}
	for k := range a.frontends {
		if err := ask(k); err != nil {
			return err
		}
	}
	for k := range a.strays {
		if err := ask(k); err != nil {
			return err
		}
	}
	for addr := range addresses {
		if err := q.ask(setClusterIPs, appendAddress(key[:0], addr)); err != nil {
			return err
		}
	}
	return q.flush()
}

func (a *adoption) wantEligible(f *family, found *adopted) {
	if found.f.AffinitySeconds == 0 || familyOf(found.f.Address) != f {
		return
	}
	for _, scope := range (&frontendState{split: found.split}).scopes() {
		set := found.f.Set(scope)
		for _, b := range set.Eligible() {
			key := appendBackend(appendTuple(nil, found.f.FrontendKey), b.AddrPort())
			a.eligible[eligibleAsk{string(key), eligibleSets[scope]}] = true
		}
	}
}

// question asks for single elements, many at a time. Those that are not there
// are not seen.
type question struct {
	kernel *socket
	family *family
	see    func(id setID, e *element)
	m      messages
	sets   []setID // of the messages
}

// asksAtOnce bounds the answers that wait in the receive buffer.
const asksAtOnce = 256

func (q *question) ask(id setID, key []byte) error {
	q.m.begin(unix.NFT_MSG_GETSETELEM, 0, q.family.proto)
	q.m.text(unix.NFTA_SET_ELEM_LIST_TABLE, q.family.table)
	q.m.text(unix.NFTA_SET_ELEM_LIST_SET, id.String())
	at := q.m.nest(unix.NFTA_SET_ELEM_LIST_ELEMENTS)
	e := element{key: key}
	e.append(&q.m)
	q.m.unnest(at)
	q.m.end()
	if q.sets = append(q.sets, id); len(q.sets) < asksAtOnce {
		return nil
	}
	return q.flush()
}

func (q *question) flush() error {
	if len(q.sets) == 0 {
		return nil
	}
	sets, b := slices.Clone(q.sets), q.m.b
	q.sets, q.m.b = q.sets[:0], q.m.b[:0]
	first, _ := q.kernel.number(b, -1)
	if err := unix.Sendto(q.kernel.fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("ask for elements: %w", err)
	}
	var e element
	for answered := 0; answered < len(sets); {
		err := q.kernel.receive(func(kind, _ uint16, sequence uint32, payload []byte) error {
			i := int(sequence - first)
			if i < 0 || i >= len(sets) {
				return nil
			}
			answered++ // by the element, or by an error that says there is none
			if kind == unix.NLMSG_ERROR {
				if errno := unix.Errno(-int32(binary.NativeEndian.Uint32(payload))); errno != 0 && errno != unix.ENOENT {
					return fmt.Errorf("ask for an element of %s: %w", sets[i], errno)
				}
				return nil
			}
			for _, one := range nfnetlink.Attributes(attribute(payload[nfnetlink.HeaderBytes:], unix.NFTA_SET_ELEM_LIST_ELEMENTS)) {
				e.decode(one)
				q.see(sets[i], &e)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}
