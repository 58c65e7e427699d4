// SPDX-License-Identifier: Apache-2.0

package nftables

import (
	"net/netip"
	"slices"

	"fairlead.dev/dataplane"
)

// adoption compares what the kernel holds with what is wanted, element by
// element as they come, so that the kernel's table is never in memory. What is
// not wanted is put into t for deletion at once; what is wanted is ticked off.
type adoption struct {
	shadow *shadow
	head   *messages // repairs of the table itself
	t      *transaction

	// replaces: a table of another version is there, and is replaced whole.
	replaces bool
	// empty: no table was there, so no packet can see half of a Frontend before
	// its turn comes.
	empty bool
	// repaired: chains were not as they should be.
	repaired bool

	frontends      map[dataplane.FrontendKey]*adopted
	stickyIDs      map[stickyPort]uint32
	stickyOwners   map[stickyNumber]stickyPort
	seenClusterIPs map[netip.Addr]bool
	seenLocal      map[netip.Addr]bool
	seenUplinks    [2][]string
	uplinks        []string

	// asks are the slots that Frontends tell of, and the Backends in them that
	// clients may be kept on.
	asks     []slotsAsk
	eligible map[eligibleAsk]bool

	strays    map[dataplane.FrontendKey]bool // of Frontends that are not wanted
	shared    int
	differing int
}

// stickyPort is a Service port in one family.
type stickyPort struct {
	service  dataplane.ServiceName
	portName string
	family   *family
}

type stickyNumber struct {
	family *family
	id     uint32
}

// adopted is what was found of a wanted Frontend.
type adopted struct {
	service     *dataplane.Service
	f           *dataplane.Frontend
	split       bool
	named       bool
	acts        [2]bool
	orders      [2]order
	placed      [2][]bool
	eligible    [2][]bool
	stickyID    uint32
	restricted  bool
	keepsSource bool
	ranges      []netip.Prefix
	wrong       bool
}

// need makes room to tick off the Backends of a scope.
func (a *adopted) need(set *dataplane.BackendSet, scope dataplane.Scope) {
	if a.placed[scope] != nil {
		return
	}
	a.placed[scope] = make([]bool, len(set.Backends))
	a.orders[scope] = make(order, len(set.Backends))
	for i := range a.orders[scope] {
		a.orders[scope][i] = nowhere
	}
	if a.f.AffinitySeconds > 0 {
		a.eligible[scope] = make([]bool, len(set.Eligible()))
	}
}

// adopt looks at what is there. Where it is not to look deep, it lists the
// Frontends only, and asks for what belongs to those that are there or wanted:
// the kernel begins a listing anew for every 32 KiB of it, so that listing a set
// takes the square of its size.
func (d *Dataplane) adopt(wanted []*dataplane.Service, n dataplane.Node, deep bool) (*adoption, error) {
	a := &adoption{
		shadow: newShadow(), head: newBatch(), t: &transaction{}, frontends: map[dataplane.FrontendKey]*adopted{},
		stickyIDs: map[stickyPort]uint32{}, stickyOwners: map[stickyNumber]stickyPort{},
		seenClusterIPs: map[netip.Addr]bool{}, seenLocal: map[netip.Addr]bool{}, strays: map[dataplane.FrontendKey]bool{},
		uplinks: d.uplinks.Names(), eligible: map[eligibleAsk]bool{},
	}
	if d.shadow != nil { // chains that wait for their removal go on waiting
		for i := range families {
			a.shadow.actions[i].idle = d.shadow.actions[i].idle
		}
	}
	for _, s := range wanted {
		for i := range s.Frontends {
			f := &s.Frontends[i]
			a.frontends[f.FrontendKey] = &adopted{service: s, f: f, split: isSplit(f)}
			a.shadow.recount(nil, f, isSplit(f), 1)
		}
	}
	a.empty = true
	var there [2]bool
	for _, f := range families {
		var err error
		if there[f.index], err = d.adoptTable(a, f, n); err != nil {
			return nil, err
		}
		a.empty = a.empty && !there[f.index]
	}
	a.want(wanted)
	for _, f := range families {
		if !there[f.index] {
			continue
		}
		for id := range setCount {
			if !deep && !toldBy(id) {
				continue
			}
			if err := d.kernel.listElements(f, id, func(e *element) { a.see(f, id, e) }); err != nil {
				return nil, err
			}
		}
		if !deep {
			if err := a.askFor(d.kernel, f); err != nil {
				return nil, err
			}
		}
	}
	return a, nil
}

// want makes the picks that are needed, those of small sets before.
func (a *adoption) want(wanted []*dataplane.Service) {
	for _, act := range a.shadow.actions {
		for n := range ready {
			act.number(pick{backends: n + 1})
		}
	}
	for _, s := range wanted {
		for i := range s.Frontends {
			f := &s.Frontends[i]
			a.shadow.action(f, dataplane.Internal)
			if a.frontends[f.FrontendKey].split {
				a.shadow.action(f, dataplane.External)
			}
		}
	}
}

// adoptTable looks at all of a table but its elements. What is wrong with its
// chains is put into head; a table that is missing, or of another layout, is
// made there. It reports whether there are elements to look at.
func (d *Dataplane) adoptTable(a *adoption, f *family, n dataplane.Node) (there bool, err error) {
	s, err := d.kernel.readStructure(f, tableName)
	if err != nil {
		return false, err
	}
	if s == nil || !s.fits(f, d.options) {
		if s != nil {
			a.replaces = true
			removeTable(a.head, f, tableName)
		}
		return false, f.addTable(a.head, d.options, n)
	}
	chains := f.chains(n)
	for i := range chains {
		if err := a.checkChain(f, s, &chains[i]); err != nil {
			return false, err
		}
	}
	return true, a.adoptPicks(d.kernel, f, s)
}

func (a *adoption) checkChain(f *family, s *structure, c *chain) error {
	ok, err := s.holds(f, c)
	if err != nil || ok {
		return err
	}
	a.repaired = true
	return c.put(a.head, f)
}

// adoptPicks takes over the actions whose chains are whole.
func (a *adoption) adoptPicks(k *socket, f *family, s *structure) error {
	act := a.shadow.actions[f.index]
	var static [2][2]bool
	referred := map[string]bool{}
	for scope, id := range []setID{setActions, setActionsExternal} {
		var odd elementList
		err := k.listElements(f, id, func(e *element) {
			number := nativeU32(e.key)
			p, ok := parsePick(e.chain)
			switch {
			case number == actionReject && e.chain == chainNoBackends:
				static[scope][0] = true
			case number == actionDrop && e.chain == chainNoLocal:
				static[scope][1] = true
			case ok && int(p.scope) == scope && p.valid(number) && act.numbers[p] == 0:
				act.numbers[p] = number
				referred[e.chain] = true
				if number >= act.next && number != actionDrop {
					act.next = number + 1
				}
			default:
				a.repaired = true
				odd.add(&element{key: slices.Clone(e.key)})
			}
		})
		if err != nil {
			return err
		}
		odd.change(a.head, msgDeleteElements, f, id)
		a.restore(f, id, static[scope])
	}
	for p := range act.numbers {
		c := p.chain(f)
		if err := a.checkChain(f, s, &c); err != nil {
			return err
		}
	}
	for name := range s.chains {
		if _, ok := parsePick(name); ok && !referred[name] {
			removeChain(a.head, f, name)
		}
	}
	return nil
}

// restore puts back the actions that are always there.
func (a *adoption) restore(f *family, id setID, there [2]bool) {
	var missing elementList
	if !there[0] {
		missing.add(&element{key: native32(actionReject), chain: chainNoBackends})
	}
	if !there[1] {
		missing.add(&element{key: native32(actionDrop), chain: chainNoLocal})
	}
	a.repaired = a.repaired || missing.count > 0
	missing.change(a.head, msgAddElements, f, id)
}

// valid reports whether a pick may have a number.
func (p pick) valid(number uint32) bool {
	if p.affinitySeconds == 0 {
		return number == uint32(p.backends) && number <= backendsMax
	}
	return number >= actionSticky && number < actionDrop
}

// see ticks an element off, or has it deleted.
func (a *adoption) see(f *family, id setID, e *element) {
	switch id {
	case setAffinity, setActions, setActionsExternal:
		return
	case setFrontends, setFrontendsExternal:
		a.told(f, id, e)
	case setStickySlots, setStickySlotsExternal:
		a.toldEligible(f, id, e)
	}
	switch id {
	case setClusterIPs, setLocalBackends:
		addr, _ := netip.AddrFromSlice(e.key[:min(len(e.key), f.addressBytes)])
		wanted, seen := a.shadow.clusterIPs, a.seenClusterIPs
		if id == setLocalBackends {
			wanted, seen = a.shadow.local, a.seenLocal
		}
		if wanted[addr] > 0 {
			seen[addr] = true
			return
		}
		a.shared++
	case setUplinks:
		if name := cString(e.key); slices.Contains(a.uplinks, name) {
			a.seenUplinks[f.index] = append(a.seenUplinks[f.index], name)
			return
		}
	default:
		k, _ := f.decodeTuple(e.key)
		found := a.frontends[k]
		if found != nil && a.matches(f, id, e, found) {
			return
		}
		if found != nil {
			found.wrong = true
		} else {
			a.strays[k] = true
		}
	}
	a.t.remove(f, id, e)
}

// matches reports whether an element of a Frontend is as wanted.
func (a *adoption) matches(f *family, id setID, e *element, found *adopted) bool {
	scope := dataplane.Internal
	switch id {
	case setFrontendsExternal, setSlotsExternal, setStickySlotsExternal, setEligibleExternal:
		scope = dataplane.External
		if !found.split {
			return false
		}
	}
	switch id {
	case setServices:
		first, _, _ := comments(found.service.Name, found.f)
		found.named = e.comment == first
		return found.named
	case setFrontends, setFrontendsExternal:
		rest := ""
		if scope == dataplane.Internal {
			_, rest, _ = comments(found.service.Name, found.f)
		}
		found.acts[scope] = wideU32(e.data) == a.shadow.action(found.f, scope) && nativeU32(e.data[:4]) == idle(found.f, scope) && e.comment == rest
		return found.acts[scope]
	case setSlots, setSlotsExternal, setStickySlots, setStickySlotsExternal:
		return id == slotSet(found.f, scope) && found.seeSlot(f, scope, slotData(id, e), e)
	case setEligible, setEligibleExternal:
		return found.seeEligible(f, scope, e)
	case setRestricted:
		found.restricted = len(found.f.SourceRanges) > 0
		return found.restricted
	case setKeepSource:
		found.keepsSource = !found.f.MasqueradeExternal
		return found.keepsSource
	case setAllowed:
		return found.seeRange(f, e)
	case setStickyIDs:
		return a.seeSticky(f, wideU32(e.data), found)
	}
	return false
}

// slotData is where a slot says which Backend it has.
func slotData(id setID, e *element) []byte {
	if isSticky(id) && len(e.data) > wideBytes {
		return e.data[wideBytes:]
	}
	return e.data
}

// wideU32 is the number in wide data.
func wideU32(data []byte) uint32 {
	if len(data) != wideBytes+4 {
		return 0
	}
	return nativeU32(data[wideBytes:])
}

func (a *adopted) seeSlot(f *family, scope dataplane.Scope, data []byte, e *element) bool {
	at, ok := f.decodeBackend(data)
	if !ok || len(e.key) != f.tupleBytes()+4 {
		return false
	}
	set := a.f.Set(scope)
	n := len(set.Eligible())
	p := place(nativeU32(e.key[f.tupleBytes():]), n, len(set.Backends))
	if p < 0 {
		return false
	}
	b := dataplane.Backend{Address: at.Addr(), Port: at.Port(), State: dataplane.Active}
	switch e.comment {
	case slotComments[1]:
		b.Local = true
	case slotComments[2]:
		b.State = dataplane.Terminating
	case slotComments[3]:
		b.Local, b.State = true, dataplane.Terminating
	case "":
	default:
		return false
	}
	j := indexOf(&set, &b)
	a.need(&set, scope)
	if j < 0 || (j < n) != (p < n) || a.placed[scope][j] {
		return false
	}
	a.orders[scope][p], a.placed[scope][j] = uint16(j), true
	return true
}

func (a *adopted) seeEligible(f *family, scope dataplane.Scope, e *element) bool {
	if a.f.AffinitySeconds == 0 {
		return false
	}
	at, ok := f.decodeBackend(e.key[f.tupleBytes():])
	set := a.f.Set(scope)
	a.need(&set, scope)
	i, found := slices.BinarySearchFunc(set.Eligible(), at, func(b dataplane.Backend, at netip.AddrPort) int { return b.AddrPort().Compare(at) })
	if !ok || !found {
		return false
	}
	a.eligible[scope][i] = true
	return true
}

func (a *adopted) seeRange(f *family, e *element) bool {
	n := f.tupleBytes()
	if len(e.key) != n+f.addressBytes || len(e.keyEnd) != len(e.key) {
		return false
	}
	for _, p := range rangesOf(a.f) {
		if slices.Equal(p.Addr().AsSlice(), e.key[n:]) && slices.Equal(lastOf(p).AsSlice(), e.keyEnd[n:]) {
			a.ranges = append(a.ranges, p)
			return true
		}
	}
	return false
}

// seeSticky takes a Service port's number over, if it is its own and the same
// at all its Frontends.
func (a *adoption) seeSticky(f *family, id uint32, found *adopted) bool {
	if found.f.AffinitySeconds == 0 || id == 0 {
		return false
	}
	p := stickyPort{found.service.Name, found.f.PortName, f}
	owner, taken := a.stickyOwners[stickyNumber{f, id}]
	has, ok := a.stickyIDs[p]
	if taken && owner != p || ok && has != id {
		return false
	}
	a.stickyOwners[stickyNumber{f, id}], a.stickyIDs[p] = p, id
	found.stickyID = id
	if id >= a.shadow.nextSticky {
		a.shadow.nextSticky = id + 1
	}
	return true
}
