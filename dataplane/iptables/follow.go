// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	goiptables "github.com/coreos/go-iptables/iptables"

	"fairlead.dev/dataplane"
)

// follow reads the chains that packets to a destination may come to, beginning
// with some: a handful of all that there are. nft gives one without the others.
func (t *tool) follow(table string, at dataplane.FrontendKey, roots ...string) (*savedTable, error) {
	s := &savedTable{chains: map[string]*savedChain{}}
	for next := roots; len(next) > 0; {
		name := next[0]
		next = next[1:]
		if s.chains[name] != nil {
			continue
		}
		lines, err := t.one.List(table, name)
		if missing := (*goiptables.Error)(nil); errors.As(err, &missing) && missing.IsNotExist() {
			continue
		} else if err != nil {
			return nil, fmt.Errorf("read chain %s of table %s: %w", name, table, err)
		}
		s.chains[name] = &savedChain{}
		for _, line := range lines {
			if !strings.HasPrefix(line, "-A ") {
				continue // -N or -P, the chain itself
			}
			if err := s.addRule(line, 0); err != nil {
				return nil, err
			}
		}
		for _, rule := range s.chains[name].rules {
			if to := target(rule); strings.HasPrefix(to, prefix) && mayMatch(rule, at) && !slices.Contains(next, to) {
				next = append(next, to)
			}
		}
	}
	return s, nil
}

// mayMatch is false only where a rule is certainly not for packets to a
// destination.
func mayMatch(rule string, at dataplane.FrontendKey) bool {
	if p := option(rule, "-p"); p != "" && !strings.EqualFold(p, at.Protocol.String()) {
		return false
	}
	if ports := option(rule, "--dport"); ports != "" {
		first, last, many := strings.Cut(ports, ":")
		if !many {
			last = first
		}
		low, lerr := strconv.ParseUint(first, 10, 16)
		high, herr := strconv.ParseUint(last, 10, 16)
		if lerr == nil && herr == nil && (at.Port < uint16(low) || uint16(high) < at.Port) {
			return false
		}
	}
	want, mask, ok := strings.Cut(option(rule, "-d"), "/")
	if !ok {
		return true
	}
	if _, err := strconv.Atoi(mask); err == nil {
		p, err := netip.ParsePrefix(want + "/" + mask)
		return err != nil || p.Contains(at.Address)
	}
	value, verr := netip.ParseAddr(want)
	bits, berr := netip.ParseAddr(mask)
	if verr != nil || berr != nil || bits.BitLen() != at.Address.BitLen() {
		return true
	}
	address, wanted, which := at.Address.AsSlice(), value.AsSlice(), bits.AsSlice()
	for i := range which {
		if address[i]&which[i] != wanted[i] {
			return false
		}
	}
	return true
}
