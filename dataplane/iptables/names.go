// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"crypto/sha256"
	"encoding/base32"
	"net/netip"
	"strconv"
	"strings"

	"fairlead.dev/dataplane"
)

// prefix begins the name of every chain of ours and of no other.
const prefix = "FAIRLEAD-"

// Chains that are always there. What they are for is in base.go.
const (
	chainServices    = "FAIRLEAD-SERVICES"
	chainNode        = "FAIRLEAD-NODE"
	chainMark        = "FAIRLEAD-MARK"
	chainInternal    = "FAIRLEAD-INTERNAL"
	chainUplink      = "FAIRLEAD-UPLINK"
	chainPostrouting = "FAIRLEAD-POSTROUTING"
	chainMasqUplink  = "FAIRLEAD-MASQ-UPLINK"
	chainHairpin     = "FAIRLEAD-HAIRPIN"
	chainRefuse      = "FAIRLEAD-REFUSE"
	chainForward     = "FAIRLEAD-FORWARD"
	chainReject      = "FAIRLEAD-REJECT"
	chainUnknown     = "FAIRLEAD-UNKNOWN"
	chainNoLocal     = "FAIRLEAD-NOLOCAL"
	chainRange       = "FAIRLEAD-RANGE"
	chainLocalnet    = "FAIRLEAD-LOCALNET"
)

// Roots of the trees of addresses (tree.go).
const (
	treeAddresses = "FAIRLEAD-A"
	treeHairpin   = "FAIRLEAD-H"
)

// Beginnings of the chains of one Service port. A hash of its name follows,
// then which of the port's chains it is.
const (
	prefixPort     = "FAIRLEAD-P-" // nat: Frontends of one kind and behaviour
	prefixRanges   = "FAIRLEAD-R-" // nat: the clients that may reach a P chain
	prefixSet      = "FAIRLEAD-S-" // nat: a BackendSet
	prefixVerdict  = "FAIRLEAD-V-" // filter: what happens to what nat left
	prefixDenied   = "FAIRLEAD-W-" // filter: the same, by source range
	prefixForest   = "FAIRLEAD-D-" // the ports of one address
	prefixRecent   = "fairlead-"   // xt_recent lists
	maxChainName   = 28            // XT_EXTENSION_MAXNAMELEN less the NUL
	portHashLength = 12
)

var lowerBase32 = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// hash is n characters of five bits of a name's hash.
func hash(n int, parts ...string) string {
	sum := sha256.Sum256([]byte(strings.Join(parts, "\x00")))
	return lowerBase32.EncodeToString(sum[:])[:n]
}

// portHash stands for a Service port: 60 bits, so that 65,536 of them meet by
// chance once in 500 million clusters.
func portHash(name dataplane.ServiceName, portName string) string {
	return hash(portHashLength, name.String(), portName)
}

// numbered is a chain's name with its number among those of its Service port.
func numbered(prefix, hash string, n int) string {
	return prefix + hash + "-" + strconv.FormatInt(int64(n), 36)
}

// recentList names the clients that a Service port keeps on a Backend.
func recentList(hashed string, b netip.AddrPort) string {
	return prefixRecent + hashed + "-" + hash(8, b.String())
}

// forestPrefix begins the chains for the ports of one address.
func forestPrefix(a netip.Addr) string { return prefixForest + hash(8, a.String()) }

func protocolName(p dataplane.Protocol) string { return strings.ToLower(p.String()) }

var protocols = []dataplane.Protocol{dataplane.TCP, dataplane.UDP, dataplane.SCTP}

func isOurs(chain string) bool { return strings.HasPrefix(chain, prefix) }
