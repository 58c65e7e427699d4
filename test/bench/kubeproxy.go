// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// kubeProxyWith is a real kube-proxy in nftables mode, its configuration that
// of kubeadm but for what would touch the machine (conntrack's sysctls).
// minSyncPeriod "" is its default of a second.
func kubeProxyWith(name, minSyncPeriod string) contestant {
	c := contestant{name: name, flips: slowFlips, ready: kubeProxyReady}
	c.command = func(b *bench, p *place, kubeconfig string) (*exec.Cmd, error) {
		file := filepath.Join(p.dir, "kube-proxy.yaml")
		err := os.WriteFile(file, kubeProxyConfig(kubeconfig, minSyncPeriod), 0o600)
		return exec.Command(b.kubeProxy, "--config", file), err
	}
	return c
}

func kubeProxyConfig(kubeconfig, minSyncPeriod string) []byte {
	var text bytes.Buffer
	fmt.Fprintf(&text, `apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: nftables
hostnameOverride: %s
clientConnection: {kubeconfig: %q}
clusterCIDR: %s
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
`, nodeName, kubeconfig, clusterCIDRs)
	if minSyncPeriod != "" {
		fmt.Fprintf(&text, "nftables: {minSyncPeriod: %s}\n", minSyncPeriod)
	}
	return text.Bytes()
}

// kubeProxyReady waits for the first answer through the probed Service and, as
// kube-proxy logs nothing at that moment, for n Services in its rules.
func kubeProxyReady(ctx context.Context, r *race, n int) error {
	order := awaitOrder{To: netip.AddrPortFrom(probeIPv4, servicePort), First: firstBefore}
	if limit, ok := ctx.Deadline(); ok {
		order.Within = time.Until(limit)
	}
	if err := r.client.ask("appear", order, nil); err != nil {
		return fmt.Errorf("%w; kube-proxy said:\n%s", err, r.said.last())
	}
	var found int
	for ; ctx.Err() == nil; time.Sleep(50 * time.Millisecond) {
		var out []byte
		err := r.site.node.Do(func() (err error) {
			out, err = exec.CommandContext(ctx, "nft", "list", "map", "ip", "kube-proxy", "service-ips").CombinedOutput()
			return err
		})
		if err != nil {
			return fmt.Errorf("list kube-proxy's Services: %w\n%s", err, out)
		}
		if found = bytes.Count(out, []byte(" : goto ")); found > n { // the probed Service has two of IPv4
			return nil
		}
	}
	return fmt.Errorf("kube-proxy programmed %d Service ports of %d: %w", found, n+1, context.Cause(ctx))
}
