// SPDX-License-Identifier: Apache-2.0

package podspec

import (
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Limits of a resolv.conf, as the API validates them in dnsConfig: what is
// over them is left out.
const (
	maxNameservers = 3
	maxSearches    = 32
	maxSearchChars = 2048
)

// Warning is for an Event about a Pod that runs, but not quite as it asks for.
type Warning struct{ Reason, Message string }

// DNS returns what a Pod's resolv.conf says: by its dnsPolicy the cluster's
// resolver, the node's, or none, with its dnsConfig added. warnings are for
// Events about the Pod.
func DNS(pod *corev1.Pod, f *Facts) (c *runtimeapi.DNSConfig, warnings []Warning) {
	cluster := false
	c = new(runtimeapi.DNSConfig)
	switch pod.Spec.DNSPolicy {
	case corev1.DNSNone:
	case corev1.DNSDefault:
		c = hostDNS(f)
	case corev1.DNSClusterFirst:
		if cluster = !pod.Spec.HostNetwork; !cluster {
			c = hostDNS(f)
		}
	default: // ClusterFirstWithHostNet, or not said
		cluster = true
	}
	switch {
	case cluster && len(f.ClusterDNS) > 0:
		host := parseResolvConf(f.HostResolvConf)
		c = &runtimeapi.DNSConfig{Servers: addrs(f.ClusterDNS), Searches: host.Searches, Options: []string{"ndots:5"}}
		if d := f.ClusterDomain; d != "" {
			c.Searches = slices.Concat([]string{pod.Namespace + ".svc." + d, "svc." + d, d}, host.Searches)
		}
	case cluster:
		policy := pod.Spec.DNSPolicy
		if policy == "" {
			policy = corev1.DNSClusterFirst
		}
		warnings = append(warnings, Warning{"MissingClusterDNS", `pod: "` + describe(pod) + `". kubelet does not have ClusterDNS IP configured and cannot create Pod using "` +
			string(policy) + `" policy. Falling back to "Default" policy.`})
		c = hostDNS(f)
	}
	if d := pod.Spec.DNSConfig; d != nil {
		c.Servers = append(c.Servers, d.Nameservers...)
		c.Searches = append(c.Searches, d.Searches...)
		for _, o := range d.Options {
			option := o.Name
			if o.Value != nil && *o.Value != "" {
				option += ":" + *o.Value
			}
			c.Options = append(c.Options, option)
		}
	}
	c.Servers, c.Searches, c.Options = unique(c.Servers), unique(c.Searches), lastOptions(c.Options)
	return c, append(warnings, limitDNS(c)...)
}

// hostDNS is the node's own; a node without a resolv.conf asks itself.
func hostDNS(f *Facts) *runtimeapi.DNSConfig {
	if f.HostResolvConf != "" {
		return parseResolvConf(f.HostResolvConf)
	}
	c := &runtimeapi.DNSConfig{Searches: []string{"."}}
	for _, a := range f.HostIPs {
		if a.Is6() {
			c.Servers = append(c.Servers, "::1")
		} else {
			c.Servers = append(c.Servers, "127.0.0.1")
		}
	}
	if len(c.Servers) == 0 {
		c.Servers = []string{"127.0.0.1"}
	}
	return c
}

// parseResolvConf reads a resolv.conf (resolv.conf(5)): nameservers add up,
// the last search line counts, of an option the last one.
func parseResolvConf(s string) *runtimeapi.DNSConfig {
	c := new(runtimeapi.DNSConfig)
	for line := range strings.Lines(s) {
		w := strings.Fields(line)
		if len(w) < 2 {
			continue
		}
		switch w[0] {
		case "nameserver":
			c.Servers = append(c.Servers, w[1])
		case "search":
			c.Searches = nil
			for _, d := range w[1:] {
				if d != "." {
					c.Searches = append(c.Searches, strings.TrimSuffix(d, "."))
				}
			}
		case "options":
			c.Options = append(c.Options, w[1:]...)
		}
	}
	c.Options = lastOptions(c.Options)
	return c
}

// lastOptions keeps of each option (by its name before the colon) the last,
// in the place of the first.
func lastOptions(options []string) []string {
	var kept []string
	at := map[string]int{}
	for _, o := range options {
		name, _, _ := strings.Cut(o, ":")
		if i, ok := at[name]; ok {
			kept[i] = o
			continue
		}
		at[name] = len(kept)
		kept = append(kept, o)
	}
	return kept
}

func limitDNS(c *runtimeapi.DNSConfig) (warnings []Warning) {
	warn := func(what string, kept []string) {
		warnings = append(warnings, Warning{"DNSConfigForming", what + strings.Join(kept, " ")})
	}
	if len(c.Servers) > maxNameservers {
		c.Servers = c.Servers[:maxNameservers]
		warn("Nameserver limits were exceeded, some nameservers have been omitted, the applied nameserver line is: ", c.Servers)
	}
	kept := slices.DeleteFunc(slices.Clone(c.Searches), func(s string) bool { return len(s) > validation.DNS1123SubdomainMaxLength })
	kept = kept[:min(len(kept), maxSearches)]
	for len(strings.Join(kept, " ")) > maxSearchChars {
		kept = kept[:len(kept)-1]
	}
	if len(kept) < len(c.Searches) {
		c.Searches = kept
		warn("Search Line limits were exceeded, some search paths have been omitted, the applied search line is: ", kept)
	}
	return warnings
}

func unique(list []string) []string {
	seen := map[string]bool{}
	return slices.DeleteFunc(list, func(s string) bool {
		if seen[s] {
			return true
		}
		seen[s] = true
		return false
	})
}

func addrs(list []netip.Addr) []string {
	s := make([]string, len(list))
	for i, a := range list {
		s[i] = a.String()
	}
	return s
}
