// SPDX-License-Identifier: Apache-2.0

package config

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kubeproxy "k8s.io/kube-proxy/config/v1alpha1"
)

// kube-proxy's defaults where one of the two is set and the other is not.
const (
	defaultConntrackPerCore = 32 * 1024
	defaultConntrackMin     = 128 * 1024
)

// kubeProxy maps a KubeProxyConfiguration onto c.
func (d *document) kubeProxy(c *Configuration) ([]Warning, error) {
	var k kubeproxy.KubeProxyConfiguration
	if err := d.decode(&k); err != nil {
		return nil, err
	}
	if k.Mode == "kernelspace" || k.WindowsRunAsService {
		return nil, errors.New("mode kernelspace and windowsRunAsService are for Windows; fairlead runs on Linux")
	}
	if !slices.Contains([]kubeproxy.ProxyMode{"", "iptables", "ipvs", "nftables"}, k.Mode) {
		return nil, fmt.Errorf("%s %q: want iptables, ipvs or nftables", d.at("mode"), k.Mode)
	}

	c.Kubeconfig = k.ClientConnection.Kubeconfig
	c.NodeName = k.HostnameOverride
	if k.Logging.Format != "" {
		c.LogFormat = k.Logging.Format
	}
	c.V = int(min(k.Logging.Verbosity, 100))
	mapAddresses(c, &k)
	if err := mapLocal(c, &k); err != nil {
		return nil, err
	}
	mapConntrack(c, &k.Conntrack)
	mapTechnologies(c, &k)
	return d.warnings()
}

func mapAddresses(c *Configuration, k *kubeproxy.KubeProxyConfiguration) {
	c.Profiling = k.EnableProfiling
	c.BindAddress = ParseList(k.BindAddress)
	if a, err := netip.ParseAddr(k.BindAddress); err == nil && a.Is6() {
		c.MetricsBindAddress = "[::1]:" + metricsPort
		c.HealthzBindAddress = "[::]:" + healthzPort
	}
	for _, e := range []struct {
		from string
		to   *string
	}{{k.MetricsBindAddress, &c.MetricsBindAddress}, {k.HealthzBindAddress, &c.HealthzBindAddress}} {
		if e.from == "" {
			continue
		}
		*e.to = e.from
		// kube-proxy's own way to turn a server off from a file.
		if _, port, err := net.SplitHostPort(e.from); err == nil && port == "0" {
			*e.to = ""
		}
	}
	c.NodePortAddresses = k.NodePortAddresses
	if len(k.NodePortAddresses) == 0 && k.Mode == "nftables" {
		c.NodePortAddresses = List{"primary"}
	}
}

func mapLocal(c *Configuration, k *kubeproxy.KubeProxyConfiguration) error {
	switch k.DetectLocalMode {
	case "", "ClusterCIDR", "BridgeInterface", "InterfaceNamePrefix":
		c.ClusterCIDR = ParseList(k.ClusterCIDR)
	case "NodeCIDR":
	default:
		return fmt.Errorf("detectLocalMode %q: want ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix", k.DetectLocalMode)
	}
	return nil
}

// mapTechnologies takes what is about iptables and IPVS, for the Dataplanes of
// these names.
func mapTechnologies(c *Configuration, k *kubeproxy.KubeProxyConfiguration) {
	if k.IPTables.MasqueradeBit != nil {
		c.IPTablesMasqueradeBit = int(*k.IPTables.MasqueradeBit)
	}
	if k.IPVS.Scheduler != "" {
		c.IPVSScheduler = k.IPVS.Scheduler
	}
	c.IPVSStrictARP = k.IPVS.StrictARP
	c.IPVSTCPTimeout, c.IPVSTCPFinTimeout, c.IPVSUDPTimeout = k.IPVS.TCPTimeout, k.IPVS.TCPFinTimeout, k.IPVS.UDPTimeout
}

func mapConntrack(c *Configuration, k *kubeproxy.KubeProxyConntrackConfiguration) {
	if perCore, least := k.MaxPerCore, k.Min; perCore != nil || least != nil {
		n, m := defaultConntrackPerCore, defaultConntrackMin
		if perCore != nil {
			n = int(*perCore)
		}
		if least != nil {
			m = int(*least)
		}
		switch {
		case n < 0 || m < 0:
			c.ConntrackMax = -1 // Validate names both keys
		case n > 0:
			// kube-proxy counts flows, a flow takes two entries.
			c.ConntrackMax = min(2*max(n*runtime.NumCPU(), m), maxEntries)
		}
	}
	for _, e := range []struct {
		from *metav1.Duration
		to   *metav1.Duration
	}{
		{k.TCPEstablishedTimeout, &c.ConntrackTCPTimeoutEstablished},
		{k.TCPCloseWaitTimeout, &c.ConntrackTCPTimeoutCloseWait},
		{&k.UDPTimeout, &c.ConntrackUDPTimeout},
		{&k.UDPStreamTimeout, &c.ConntrackUDPTimeoutStream},
	} {
		if e.from != nil {
			*e.to = *e.from
		}
	}
}

// warnings looks for keys that are set and do not apply, in the table's order.
func (d *document) warnings() ([]Warning, error) {
	var tree any
	if err := json.Unmarshal(d.json, &tree); err != nil {
		return nil, err
	}
	var ws []Warning
	for _, key := range kubeProxyKeys {
		v := at(tree, key.path)
		if unset(v) || v == false && !slices.Contains(key.quiet, "true") {
			continue
		}
		switch text := normal(v); {
		case key.treatment == warned && !slices.Contains(key.quiet, text):
			ws = append(ws, Warning{key.path, key.advice})
		case slices.Contains(key.loud, text):
			ws = append(ws, Warning{key.path, key.loudAdvice})
		}
	}
	if s, _ := at(tree, "detectLocalMode").(string); s == "NodeCIDR" && !unset(at(tree, "clusterCIDR")) {
		ws = append(ws, Warning{"clusterCIDR", "detectLocalMode is NodeCIDR"})
	}
	return ws, nil
}

func at(tree any, path string) any {
	for part := range strings.SplitSeq(path, ".") {
		m, ok := tree.(map[string]any)
		if !ok {
			return nil
		}
		tree = m[part]
	}
	return tree
}

// unset reports whether v says nothing: kubeadm writes every key, most with a
// value like these. false is left to the caller: it says something where the
// default is true.
func unset(v any) bool {
	switch v := v.(type) {
	case nil:
		return true
	case bool:
		return false
	case string:
		return v == "" || v == "0" || v == "0s"
	case float64:
		return v == 0
	case []any:
		return len(v) == 0
	case map[string]any:
		for _, e := range v {
			if !unset(e) && e != false {
				return false
			}
		}
		return true
	}
	return false
}

// normal writes a value as the table does: durations as Go prints them.
func normal(v any) string {
	if s, ok := v.(string); ok {
		if t, err := time.ParseDuration(s); err == nil {
			return t.String()
		}
		return s
	}
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Sprint(v)
	}
	return string(b)
}
