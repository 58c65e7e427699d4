// SPDX-License-Identifier: Apache-2.0

// Package migrate knows what a kube-proxy, of whatever mode, holds in the kernel
// of one network namespace: it finds it, reads which Frontends it serves, takes
// it away once a Dataplane of fairlead has taken over, and waits for it on the
// way back. It touches nothing else: not the kubelet's chains, not the rules of
// others, no flow in conntrack that a Backend answers. It refuses to know how
// the Dataplanes work and where objects come from.
package migrate

import (
	"context"
	"errors"
	"fmt"
	"slices"
)

// Leftovers are what a kube-proxy made in the kernel.
type Leftovers struct {
	chains []*chainPlan
	tables []nftTable
	ipvs   *ipvsState
}

// Find looks for all of it in the calling thread's network namespace.
func Find(ctx context.Context) (l *Leftovers, err error) {
	l = &Leftovers{}
	if l.chains, err = findChains(ctx); err != nil {
		return nil, err
	}
	if l.tables, err = findTables(nftTableName); err != nil {
		return nil, err
	}
	if l.ipvs, err = findIPVS(); err != nil {
		return nil, err
	}
	return l, nil
}

// Empty reports whether there is nothing.
func (l *Leftovers) Empty() bool {
	return len(l.tables) == 0 && l.ipvs.empty() && !slices.ContainsFunc(l.chains, (*chainPlan).removes)
}

// Modes are those of kube-proxy that leave such things: iptables, nftables,
// ipvs.
func (l *Leftovers) Modes() (modes []string) {
	chains := slices.ContainsFunc(l.chains, (*chainPlan).removes)
	if chains && l.ipvs.empty() {
		modes = append(modes, "iptables")
	}
	if len(l.tables) > 0 {
		modes = append(modes, "nftables")
	}
	if !l.ipvs.empty() {
		modes = append(modes, "ipvs")
	}
	return modes
}

// Lines describe what is there, a line for each thing.
func (l *Leftovers) Lines() (lines []string) {
	for _, p := range l.chains {
		lines = append(lines, p.lines()...)
	}
	for _, t := range l.tables {
		lines = append(lines, t.String())
	}
	return append(lines, l.ipvs.lines()...)
}

// Warnings say what kube-proxy's rules did for others and will be missed, and
// what has to stay.
func (l *Leftovers) Warnings() (lines []string) {
	for _, p := range l.chains {
		lines = append(lines, p.warnings()...)
	}
	return lines
}

// Withdraw makes kube-proxy's state decide nothing new: rules go, and virtual
// servers get no new connection. Established flows go on as long as something
// is hooked into the kernel's NAT. It says what it removed.
func (l *Leftovers) Withdraw(ctx context.Context) (removed []string, err error) {
	var errs []error
	for _, p := range l.chains {
		if !p.removes() {
			continue
		}
		lines := p.lines()
		if err := p.remove(ctx); err != nil {
			errs = append(errs, err)
			continue
		}
		removed = append(removed, lines...)
	}
	for _, t := range l.tables {
		if err := t.remove(); err != nil {
			errs = append(errs, err)
			continue
		}
		removed = append(removed, t.String())
	}
	if err := l.ipvs.quiesce(); err != nil {
		errs = append(errs, err)
	}
	return removed, errors.Join(errs...)
}

// Carries reports whether established connections need what Withdraw left.
func (l *Leftovers) Carries() (bool, error) { return l.ipvs.carries() }

// Remove removes what Withdraw left. It says what it removed.
func (l *Leftovers) Remove() (removed []string, err error) { return l.ipvs.remove() }

// plural is "1 chain" or "3 chains".
func plural(n int, one string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %ss", n, one)
}
