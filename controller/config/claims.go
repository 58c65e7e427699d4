// SPDX-License-Identifier: Apache-2.0

package config

import "net/netip"

// ExternalIPPolicy is ExternalIPs, parsed: none of them are served, or those of
// these ranges, where there are any.
func (c *Configuration) ExternalIPPolicy() (deny bool, only []netip.Prefix, err error) {
	return addressPolicy("external-ips", c.ExternalIPs)
}

// LoadBalancerIPPolicy is LoadBalancerIPs, parsed likewise.
func (c *Configuration) LoadBalancerIPPolicy() (deny bool, only []netip.Prefix, err error) {
	return addressPolicy("load-balancer-ips", c.LoadBalancerIPs)
}

func addressPolicy(flag string, l List) (deny bool, only []netip.Prefix, err error) {
	if len(l) == 1 && (l[0] == "allow" || l[0] == "deny") {
		return l[0] == "deny", nil, nil
	}
	if only, err = prefixes(flag, l); err != nil {
		return false, nil, &InvalidError{flag, l.String(), "allow, deny, or CIDRs with commas between them"}
	}
	return false, only, nil
}

func (c *Configuration) validateClaims() error {
	if _, _, err := c.ExternalIPPolicy(); err != nil {
		return err
	}
	_, _, err := c.LoadBalancerIPPolicy()
	return err
}
