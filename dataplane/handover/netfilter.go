// SPDX-License-Identifier: Apache-2.0

package handover

import (
	"context"
	"errors"
	"slices"

	"fairlead.dev/dataplane"
	"fairlead.dev/dataplane/netfilter"
)

// Netfilter is a Predecessor whose flows are in the kernel's conntrack: they go
// on by themselves as long as something is hooked into its NAT.
type Netfilter struct {
	// Technology is its Name.
	Technology string
	// Shared: the successor's flows are there too, so it may end at once.
	Shared bool
	// Lasting: its flows are carried for as long as they last. What does it is
	// an empty chain, so there is no need to cut them.
	Lasting bool
	// Withdraw removes its rules and leaves NAT hooked in. It may be called
	// again.
	Withdraw func() error
	// Remove removes what is left.
	Remove func() error
	// EndStale ends flows by the same rules where it carries some elsewhere; nil
	// for nowhere.
	EndStale func([]netfilter.FlowRule) error

	conntrack *netfilter.Conntrack
	frontends map[dataplane.FrontendKey]dataplane.ServiceName
	services  map[dataplane.ServiceName]*dataplane.Service
}

var _ Predecessor = (*Netfilter)(nil)

// Name implements Predecessor.
func (n *Netfilter) Name() string { return n.Technology }

// Begin implements Predecessor. It is called in the network namespace of the
// flows.
func (n *Netfilter) Begin(_ context.Context, t *dataplane.Table) (err error) {
	if n.conntrack == nil {
		if n.conntrack, err = netfilter.Open(); err != nil {
			return err
		}
	}
	n.frontends, n.services = map[dataplane.FrontendKey]dataplane.ServiceName{}, map[dataplane.ServiceName]*dataplane.Service{}
	for _, s := range t.Services {
		n.know(s)
	}
	if err := n.Withdraw(); err != nil {
		return err
	}
	// Nobody may have followed the Services for some time.
	rules := netfilter.AllRules(t)
	if err := n.endElsewhere(rules); err != nil {
		return err
	}
	_, err = n.conntrack.EndStale(rules)
	return err
}

// endElsewhere comes before conntrack, which would be filled again.
func (n *Netfilter) endElsewhere(rules []netfilter.FlowRule) error {
	if n.EndStale == nil || len(rules) == 0 {
		return nil
	}
	return n.EndStale(rules)
}

// Lasts implements Lasting.
func (n *Netfilter) Lasts() bool { return n.Lasting }

func (n *Netfilter) know(s *dataplane.Service) {
	n.services[s.Name] = s
	for i := range s.Frontends {
		n.frontends[s.Frontends[i].FrontendKey] = s.Name
	}
}

// Apply implements Predecessor: UDP flows to removed Backends end. Where the
// successor shares conntrack it has ended them.
func (n *Netfilter) Apply(_ context.Context, c dataplane.Change) error {
	var rules []netfilter.FlowRule
	for name, s := range c.Services {
		rules = append(rules, netfilter.StaleRules(n.services[name], s)...)
		delete(n.services, name)
		if s != nil {
			n.know(s)
		}
	}
	err := n.endElsewhere(rules)
	if n.Shared || len(rules) == 0 {
		return err
	}
	_, cerr := n.conntrack.EndStale(rules)
	return errors.Join(err, cerr)
}

// datagramIdleSeconds is how long a UDP flow may be silent before it is let go:
// its next datagram asks the successor.
const datagramIdleSeconds = 30

// Masqueraded implements Masquerading.
func (n *Netfilter) Masqueraded() ([]dataplane.ConntrackRow, error) {
	if n.Shared {
		return nil, nil
	}
	rows, err := n.flows()
	return slices.DeleteFunc(rows, func(r dataplane.ConntrackRow) bool { return r.Masquerade == "" }), err
}

// flows are those to Frontends that there are or were.
func (n *Netfilter) flows() ([]dataplane.ConntrackRow, error) {
	return n.conntrack.Flows(func(k dataplane.FrontendKey) (string, string, bool) {
		name, ok := n.frontends[k]
		return name.String(), "", ok
	})
}

// Carries implements Predecessor: flows to Frontends that are not over. Those
// of Frontends that went meanwhile count too.
func (n *Netfilter) Carries() (bool, error) {
	if n.Shared {
		return false, nil
	}
	rows, err := n.flows()
	if err != nil {
		return false, err
	}
	for _, r := range rows {
		if r.State == "established" && (r.Protocol != "UDP" || r.IdleSeconds <= datagramIdleSeconds) {
			return true, nil
		}
	}
	return false, nil
}

// End implements Predecessor.
func (n *Netfilter) End(context.Context) error { return errors.Join(n.Remove(), n.Close()) }

// Close implements Predecessor.
func (n *Netfilter) Close() error {
	if n.conntrack == nil {
		return nil
	}
	err := n.conntrack.Close()
	n.conntrack = nil
	return err
}
