// SPDX-License-Identifier: Apache-2.0

package netfilter

import (
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"fairlead.dev/dataplane"
	"fairlead.dev/dataplane/nfnetlink"
)

// exactMost is up to how many ports of one family and protocol are asked for
// one by one. Each makes the kernel walk its table again, but copy only what
// matches; beyond, one walk for all of the protocol is cheaper
// (BenchmarkEndStale).
const exactMost = 2

// EndStale deletes the flows that the rules do not keep: of UDP all of them, of
// TCP and SCTP those still opening, for an established connection is the
// endpoint's to end. The next packet of such a flow is a new one's first.
//
// The rules of one call are of one state: where two are for the same Frontend,
// what either keeps stays. It returns how many flows were deleted; one that is
// gone already is not an error, and an error does not keep others from being
// deleted.
//
// StaleRules' rules for TCP and SCTP are followed within laterAfter, those of
// many calls in one walk of the table, which takes milliseconds: what waits for
// an answer asks again after a second at the earliest (RFC 6298). Then only
// flows to the Backends that were lost are ended, unless they are back, so that
// a connection to a Backend that came meanwhile is safe. What goes wrong with
// them is returned by the next call.
func (c *Conntrack) EndStale(rules []FlowRule) (ended int, err error) {
	now := rulesByFrontend{}
	var later []FlowRule
	for _, r := range rules {
		if r.waits() {
			later = append(later, r)
		} else {
			now[r.Frontend] = append(now[r.Frontend], r)
		}
	}
	err = c.queue.put(later, c.end)
	if len(now) == 0 {
		return 0, err
	}
	ended, failed := c.end(now)
	return ended, errors.Join(err, failed)
}

// rulesByFrontend are those of one state.
type rulesByFrontend map[dataplane.FrontendKey][]FlowRule

// end ends flows at once.
func (c *Conntrack) end(rules rulesByFrontend) (ended int, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := ending{c: c, rules: rules}
	if !c.unfiltered {
		err := e.filtered()
		if !errors.Is(err, errNoFilter) {
			return e.ended, errors.Join(err, e.failed)
		}
		c.unfiltered = true
	}
	err = c.dump(selection{}, e.look)
	return e.ended, errors.Join(err, e.failed)
}

// errNoFilter: the kernel sends flows that were not asked for, or refuses.
var errNoFilter = errors.New("conntrack: no filter by tuple")

// ending is one call of end.
type ending struct {
	c      *Conntrack
	rules  rulesByFrontend
	ended  int
	failed error // the first one
}

// filtered asks for what the rules are about and little more.
func (e *ending) filtered() error {
	groups := map[selection]map[uint16][]dataplane.FrontendKey{}
	for key := range e.rules {
		// SCTP stays assured when it begins anew, so it can't be selected.
		s := selection{family: familyOf(key.Address), protocol: key.Protocol, opening: key.Protocol == dataplane.TCP}
		if groups[s] == nil {
			groups[s] = map[uint16][]dataplane.FrontendKey{}
		}
		groups[s][key.Port] = append(groups[s][key.Port], key)
	}
	for s, ports := range groups {
		most := exactMost
		if s.opening { // few flows are: one walk is all there is to pay
			most = 1
		}
		if len(ports) > most {
			if err := e.c.dump(s, e.look); err != nil {
				return err
			}
			continue
		}
		for port, keys := range ports {
			s.port, s.address = port, netip.Addr{}
			if len(keys) == 1 && keys[0].Address.Is4() {
				s.address = keys[0].Address
			}
			if err := e.c.dump(s, e.look); err != nil {
				return err
			}
		}
	}
	return nil
}

// look ends a flow if it is to be.
func (e *ending) look(f *flow) {
	rules, ok := e.rules[f.frontend()]
	if !ok || f.orig.protocol != dataplane.UDP && !f.opening() {
		return
	}
	for _, r := range rules {
		if r.Keep != nil && r.Keep(f.backend()) {
			return
		}
	}
	switch err := e.c.delete(f); {
	case err == nil:
		e.ended++
	case errors.Is(err, unix.ENOENT): // it ended, or another has its tuple
	case e.failed == nil:
		e.failed = fmt.Errorf("end flow %s -> %s: %w", f.orig.from, f.frontend(), err)
	}
}

// dump hands the selected flows to each, one at a time.
func (c *Conntrack) dump(s selection, each func(*flow)) error { return c.read(s, s.encode(), each) }

// read is dump with the selection in the kernel's terms.
func (c *Conntrack) read(s selection, terms []byte, each func(*flow)) error {
	var f flow
	ignored := false
	err := c.reads.ask(commandGet, unix.NLM_F_DUMP, s.family, terms, func(payload []byte) {
		if !decode(payload, &f) {
			return
		}
		if !s.selects(&f) {
			ignored = true
			return
		}
		each(&f)
	})
	if ignored || s.protocol != 0 && (errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP)) {
		return errNoFilter
	}
	if err != nil {
		return fmt.Errorf("list conntrack: %w", err)
	}
	return nil
}

// delete names a flow by how its answers come, its zone and its id, so that a
// younger one of the same client to another Backend is not hit. The id alone
// is not enough: the kernel hashes it of the original tuple and an address in
// memory, which the younger one may have got.
func (c *Conntrack) delete(f *flow) error {
	b := nested(make([]byte, 0, 128), ctaTupleReply, f.replyRaw)
	if f.zoneRaw != nil {
		b = nfnetlink.AppendAttribute(b, ctaZone, f.zoneRaw)
	}
	if f.idRaw != nil {
		b = nfnetlink.AppendAttribute(b, ctaID, f.idRaw)
	}
	return c.deletes.ask(commandDelete, unix.NLM_F_ACK, familyOf(f.orig.to.Addr()), b, nil)
}
