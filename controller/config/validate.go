// SPDX-License-Identifier: Apache-2.0

package config

import (
	"fmt"
	"net"
	"net/netip"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
)

// maxEntries bounds the size of a map: at 64 Mi entries of the smallest map
// the kernel would be asked for more than 2 GiB.
const maxEntries = 64 << 20

// InvalidError says which setting cannot be used, and what would be.
type InvalidError struct {
	Flag  string // name of the flag, without dashes
	Value string
	Want  string
}

func (e *InvalidError) Error() string { return e.message("--" + e.Flag) }

func (e *InvalidError) message(name string) string {
	return fmt.Sprintf("%s %q: want %s", name, e.Value, e.Want)
}

// Key is the name in a FairleadConfiguration of what the flag sets, or "".
func Key(flag string) string {
	t := reflect.TypeFor[Configuration]()
	for i := range t.NumField() {
		if t.Field(i).Tag.Get("flag") == flag {
			return t.Field(i).Tag.Get("json")
		}
	}
	return ""
}

// Validate checks every value, and normalizes the addresses of the servers. Its
// error is an *InvalidError.
func (c *Configuration) Validate() error {
	for _, e := range []struct {
		flag, value string
		allowed     []string
	}{
		{"dataplane", c.Dataplane, []string{"auto", "ebpf", "nftables", "iptables", "ipvs"}},
		{"pods", c.Pods, []string{"off", "cri"}},
		{"metrics-auth", c.MetricsAuth, []string{"none", "delegated"}},
		{"pod-network", c.PodNetwork, []string{"off", "host-gw"}},
		{"cgroup-driver", c.CgroupDriver, []string{"cgroupfs", "systemd"}},
		{"log-level", c.LogLevel, []string{"debug", "info", "warn", "error"}},
		{"log-format", c.LogFormat, []string{"text", "json"}},
		{"ipvs-scheduler", c.IPVSScheduler, []string{"rr", "wrr", "lc", "wlc", "lblc", "lblcr", "sh", "dh", "mh", "sed", "nq", "fo", "ovf"}},
	} {
		if !slices.Contains(e.allowed, e.value) {
			last := len(e.allowed) - 1
			return &InvalidError{e.flag, e.value, strings.Join(e.allowed[:last], ", ") + " or " + e.allowed[last]}
		}
	}
	for _, check := range []func() error{c.validateAddresses, c.validateClaims, c.validateNumbers, c.validatePaths, c.validatePods} {
		if err := check(); err != nil {
			return err
		}
	}
	return nil
}

func (c *Configuration) validateAddresses() error {
	if _, err := c.NodeIPs(); err != nil {
		return err
	}
	if _, err := prefixes("cluster-cidr", c.ClusterCIDR); err != nil {
		return err
	}
	if _, err := prefixes("service-cidr", c.ServiceCIDR); err != nil {
		return err
	}
	for _, w := range c.NodePortAddresses {
		if w == "primary" || w == "localhost" || w == "all" {
			continue
		}
		if p, err := netip.ParsePrefix(w); err != nil || p.Addr().Is4In6() {
			return &InvalidError{"nodeport-addresses", w, "a CIDR, primary, localhost or all"}
		}
	}
	var err error
	if c.MetricsBindAddress, err = hostPort("metrics-bind-address", c.MetricsBindAddress, metricsPort); err != nil {
		return err
	}
	if c.KubeletBindAddress, err = hostPort("kubelet-bind-address", c.KubeletBindAddress, kubeletPort); err != nil {
		return err
	}
	c.HealthzBindAddress, err = hostPort("healthz-bind-address", c.HealthzBindAddress, healthzPort)
	return err
}

// hostPort takes HOST:PORT or, like kube-proxy, an IP alone.
func hostPort(flag, s, port string) (string, error) {
	if s == "" {
		return "", nil
	}
	if a, err := netip.ParseAddr(s); err == nil {
		return net.JoinHostPort(a.String(), port), nil
	}
	bad := &InvalidError{flag, s, "IP:PORT, an IP alone, or nothing to turn it off"}
	host, p, err := net.SplitHostPort(s)
	if err != nil {
		return "", bad
	}
	if n, err := strconv.ParseUint(p, 10, 16); err != nil || n == 0 {
		return "", bad
	}
	if _, err := netip.ParseAddr(host); err != nil && host != "" && host != "localhost" {
		return "", bad
	}
	return s, nil
}

func (c *Configuration) validateNumbers() error {
	for _, e := range []struct {
		flag  string
		value int
	}{
		{"conntrack-max", c.ConntrackMax}, {"frontends-max", c.FrontendsMax}, {"slots-max", c.SlotsMax},
		{"services-max", c.ServicesMax}, {"affinity-max", c.AffinityMax}, {"datagrams-max", c.DatagramsMax},
	} {
		if e.value < 0 || e.value > maxEntries {
			return &InvalidError{e.flag, strconv.Itoa(e.value), fmt.Sprintf("0 (default) to %d entries", maxEntries)}
		}
	}
	for _, e := range []struct {
		flag  string
		value time.Duration
	}{
		{"conntrack-tcp-timeout-established", c.ConntrackTCPTimeoutEstablished.Duration},
		{"conntrack-tcp-timeout-close-wait", c.ConntrackTCPTimeoutCloseWait.Duration},
		{"conntrack-udp-timeout", c.ConntrackUDPTimeout.Duration},
		{"conntrack-udp-timeout-stream", c.ConntrackUDPTimeoutStream.Duration},
		{"ipvs-tcp-timeout", c.IPVSTCPTimeout.Duration},
		{"ipvs-tcpfin-timeout", c.IPVSTCPFinTimeout.Duration},
		{"ipvs-udp-timeout", c.IPVSUDPTimeout.Duration},
	} {
		if e.value != 0 && (e.value < time.Second || e.value > 30*24*time.Hour) {
			return &InvalidError{e.flag, e.value.String(), "0 (default) or 1s to 720h"}
		}
	}
	if _, _, err := c.MasqueradePortRange(); err != nil {
		return err
	}
	if c.IPTablesMasqueradeBit < 0 || c.IPTablesMasqueradeBit > 31 {
		return &InvalidError{"iptables-masquerade-bit", strconv.Itoa(c.IPTablesMasqueradeBit), "0 to 31"}
	}
	if c.V < 0 {
		return &InvalidError{"v", strconv.Itoa(c.V), "a number from 0"}
	}
	return nil
}

func (c *Configuration) validatePaths() error {
	for _, e := range []struct{ flag, value string }{{"bpffs", c.BPFFS}, {"state-dir", c.StateDir}} {
		if e.value == "" {
			return &InvalidError{e.flag, e.value, "a directory"}
		}
	}
	for _, d := range c.Devices {
		// IFNAMSIZ is 16 with the terminating zero (linux/if.h).
		if name := strings.TrimSuffix(d, "*"); len(name) > 15 || strings.ContainsAny(name, "*/ \t\n") || d == "" {
			return &InvalidError{"devices", d, "names of devices, or beginnings of names followed by *"}
		}
	}
	return nil
}

// NodeIPs are the addresses of BindAddress, at most one of each family; the
// unspecified ones stand for nothing, as in kube-proxy.
func (c *Configuration) NodeIPs() ([]netip.Addr, error) {
	bad := func(s string) error { return &InvalidError{"bind-address", s, "an IP, at most one of each family"} }
	var ips []netip.Addr
	for _, s := range c.BindAddress {
		a, err := netip.ParseAddr(s)
		if err != nil || a.Zone() != "" || a.Is4In6() {
			return nil, bad(s)
		}
		if a.IsUnspecified() {
			continue
		}
		if slices.ContainsFunc(ips, func(o netip.Addr) bool { return o.Is4() == a.Is4() }) {
			return nil, bad(s)
		}
		ips = append(ips, a)
	}
	return ips, nil
}

// MasqueradePortRange is MasqueradePorts, parsed; 0 and 0 where it is empty.
func (c *Configuration) MasqueradePortRange() (first, last uint16, err error) {
	if c.MasqueradePorts == "" {
		return 0, 0, nil
	}
	low, high, _ := strings.Cut(c.MasqueradePorts, "-")
	a, errA := strconv.ParseUint(low, 10, 16)
	b, errB := strconv.ParseUint(high, 10, 16)
	if errA != nil || errB != nil || a == 0 || a > b {
		return 0, 0, &InvalidError{"masquerade-ports", c.MasqueradePorts, "FIRST-LAST, such as 1024-29999"}
	}
	return uint16(a), uint16(b), nil
}

// ClusterPrefixes is ClusterCIDR, parsed and masked.
func (c *Configuration) ClusterPrefixes() ([]netip.Prefix, error) {
	return prefixes("cluster-cidr", c.ClusterCIDR)
}

// ServicePrefixes is ServiceCIDR, parsed and masked.
func (c *Configuration) ServicePrefixes() ([]netip.Prefix, error) {
	return prefixes("service-cidr", c.ServiceCIDR)
}

func prefixes(flag string, l List) ([]netip.Prefix, error) {
	var ps []netip.Prefix
	for _, s := range l {
		p, err := netip.ParsePrefix(s)
		if err != nil || p.Addr().Is4In6() {
			return nil, &InvalidError{flag, s, "CIDRs with commas between them, such as 10.244.0.0/16,fd00:10::/56"}
		}
		ps = append(ps, p.Masked())
	}
	return ps, nil
}
