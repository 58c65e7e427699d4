// SPDX-License-Identifier: Apache-2.0

package config

import (
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

func (c *Configuration) validatePods() error {
	if c.MaxPods < 1 || c.MaxPods > 10_000 {
		return &InvalidError{"max-pods", strconv.Itoa(c.MaxPods), "1 to 10000"}
	}
	for _, e := range []struct{ flag, value string }{{"pod-log-dir", c.PodLogDir}, {"pod-cgroup-root", c.PodCgroupRoot}} {
		if !filepath.IsAbs(e.value) {
			return &InvalidError{e.flag, e.value, "an absolute path"}
		}
	}
	for _, check := range []func() error{
		func() error { _, err := c.ClusterDNSAddresses(); return err },
		func() error { _, err := c.PodPrefixes(); return err },
		func() error { _, err := c.NodeLabelMap(); return err },
		func() error { _, err := c.Taints(); return err },
		func() error { _, err := c.Shortages(); return err },
		c.validateImageGC,
	} {
		if err := check(); err != nil {
			return err
		}
	}
	return nil
}

// ClusterDNSAddresses is ClusterDNS, parsed.
func (c *Configuration) ClusterDNSAddresses() (out []netip.Addr, err error) {
	for _, s := range c.ClusterDNS {
		a, err := netip.ParseAddr(s)
		if err != nil || a.Zone() != "" {
			return nil, &InvalidError{"cluster-dns", s, "IPs with commas between them"}
		}
		out = append(out, a)
	}
	return out, nil
}

// PodPrefixes is PodCIDR, parsed and masked, one of a family at most.
func (c *Configuration) PodPrefixes() ([]netip.Prefix, error) {
	ps, err := prefixes("pod-cidr", c.PodCIDR)
	if err != nil {
		return nil, err
	}
	if len(ps) > 2 || len(ps) == 2 && ps[0].Addr().Is4() == ps[1].Addr().Is4() {
		return nil, &InvalidError{"pod-cidr", c.PodCIDR.String(), "one CIDR of a family at most"}
	}
	return ps, nil
}

// NodeLabelMap is NodeLabels, parsed.
func (c *Configuration) NodeLabelMap() (map[string]string, error) {
	labels := map[string]string{}
	for _, s := range c.NodeLabels {
		key, value, ok := strings.Cut(s, "=")
		if !ok || key == "" {
			return nil, &InvalidError{"node-labels", s, "KEY=VALUE with commas between them"}
		}
		labels[key] = value
	}
	return labels, nil
}

// Taints is RegisterWithTaints, parsed.
func (c *Configuration) Taints() (out []corev1.Taint, err error) {
	for _, s := range c.RegisterWithTaints {
		rest, effect, ok := strings.Cut(s, ":")
		key, value, _ := strings.Cut(rest, "=")
		switch e := corev1.TaintEffect(effect); {
		case ok && key != "" && (e == corev1.TaintEffectNoSchedule || e == corev1.TaintEffectPreferNoSchedule || e == corev1.TaintEffectNoExecute):
			out = append(out, corev1.Taint{Key: key, Value: value, Effect: e})
		default:
			return nil, &InvalidError{"register-with-taints", s, "KEY=VALUE:EFFECT, the effect being NoSchedule, PreferNoSchedule or NoExecute"}
		}
	}
	return out, nil
}
