// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"net"
	"strings"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// checkOtherProxies looks for what kube-proxy leaves in the kernel. Its rules
// catch packets before or after ours, so some of it must go first.
func checkOtherProxies() []checkRow {
	const cost = "its rules also answer for Services: take over from it with `fairlead run --take-over` or `fairlead migrate`, see docs/migration.md"
	row := checkRow{Name: "no-other-proxy", OK: true, Detail: "no IPVS device, no nftables or iptables-nft chains of kube-proxy"}
	found, err := otherProxies()
	if err != nil {
		row.OK, row.Detail, row.Cost = false, fmt.Sprintf("cannot list nftables chains: %v", err), "rules of another proxy would not be noticed"
		return []checkRow{row}
	}
	if len(found) > 0 {
		row.OK, row.Detail, row.Cost = false, strings.Join(found, ", "), cost
	}
	return []checkRow{row}
}

// otherProxies names the signs of a kube-proxy that reading netlink shows.
// Package migrate finds all of it.
func otherProxies() (found []string, err error) {
	if _, err := net.InterfaceByName("kube-ipvs0"); err == nil {
		found = append(found, "device kube-ipvs0 (kube-proxy in ipvs mode)")
	}
	tables, err := kubeProxyTables()
	return append(found, tables...), err
}

// kubeProxyTables names the tables with chains of kube-proxy: its own table
// "kube-proxy", or chains KUBE-SERVICES that iptables-nft made. A kernel
// without nftables has none.
func kubeProxyTables() ([]string, error) {
	req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETCHAIN, unix.NLM_F_DUMP)
	// struct nfgenmsg of linux/netfilter/nfnetlink.h: any family, version 0.
	req.AddRawData([]byte{unix.NFPROTO_UNSPEC, 0, 0, 0})
	msgs, err := req.Execute(unix.NETLINK_NETFILTER, 0)
	if errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var found []string
	for _, m := range msgs {
		if name := proxyTable(m); name != "" && !strings.Contains(strings.Join(found, ","), name) {
			found = append(found, name)
		}
	}
	return found, nil
}

// proxyTable describes a NFT_MSG_NEWCHAIN message where its chain is
// kube-proxy's.
func proxyTable(msg []byte) string {
	if len(msg) < 4 {
		return ""
	}
	attrs, err := nl.ParseRouteAttr(msg[4:])
	if err != nil {
		return ""
	}
	var table, chain string
	for _, a := range attrs {
		switch a.Attr.Type {
		case unix.NFTA_CHAIN_TABLE:
			table = unix.ByteSliceToString(a.Value)
		case unix.NFTA_CHAIN_NAME:
			chain = unix.ByteSliceToString(a.Value)
		}
	}
	family := map[byte]string{unix.NFPROTO_IPV4: "ip", unix.NFPROTO_IPV6: "ip6"}[msg[0]]
	switch {
	case table == "kube-proxy":
		return fmt.Sprintf("nftables table %s kube-proxy (kube-proxy in nftables mode)", family)
	case chain == "KUBE-SERVICES":
		return fmt.Sprintf("chain KUBE-SERVICES in table %s %s (kube-proxy in iptables or ipvs mode)", family, table)
	}
	return ""
}
