// SPDX-License-Identifier: Apache-2.0

// Package iptables makes the kernel equal a Table with iptables rules, through
// iptables-restore, in the legacy and the nft flavour. All state is in chains
// named FAIRLEAD-*: a new process adopts what it finds there. It touches no
// rule but its own, and knows no Kubernetes objects.
package iptables

import (
	"fmt"
	"log/slog"
	"strings"
	"time"
)

// Flavour says which of the two kernel interfaces the commands use. Rules of
// one are not seen by the commands of the other, but both are in force.
type Flavour string

// The flavours.
const (
	// Auto takes the flavour that the rest of the machine uses.
	Auto Flavour = ""
	// NFT is iptables-nft: rules are nf_tables rules.
	NFT Flavour = "nft"
	// Legacy is iptables-legacy: the kernel replaces a whole table at a time.
	Legacy Flavour = "legacy"
)

// DefaultMasqueradeBit is kube-proxy's --iptables-masquerade-bit.
const DefaultMasqueradeBit = 14

// DefaultLockWait is how long another program may hold the xtables lock.
const DefaultLockWait = 5 * time.Second

// Options configures the iptables Dataplane. The zero value is usable.
type Options struct {
	// Flavour forces one of the two. Default: what the machine uses.
	Flavour Flavour
	// Devices are the names of the devices that lead out of the node; a
	// trailing '*' matches any suffix. Default: devices with a default route
	// or the node's primary address, physical ones and tunnels.
	Devices []string
	// MasqueradeBit is the one bit of the packet mark that is used, 0 to 31.
	// nil: 14, as kube-proxy's. It is cleared when it was used.
	MasqueradeBit *int
	// LockWait bounds the wait for the xtables lock, in whole seconds; 0 for
	// the default of 5 s.
	LockWait time.Duration
	// Logger defaults to slog.Default().
	Logger *slog.Logger
}

func (o Options) withDefaults() Options {
	if o.MasqueradeBit == nil {
		bit := DefaultMasqueradeBit
		o.MasqueradeBit = &bit
	}
	if o.LockWait == 0 {
		o.LockWait = DefaultLockWait
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	return o
}

func (o Options) validate() error {
	if b := *o.MasqueradeBit; b < 0 || b > 31 {
		return fmt.Errorf("masquerade bit %d: want 0 to 31", b)
	}
	switch o.Flavour {
	case Auto, NFT, Legacy:
	default:
		return fmt.Errorf("iptables flavour %q: want nft or legacy", o.Flavour)
	}
	for _, d := range o.Devices {
		name := strings.TrimSuffix(d, "*")
		if len(name) > 15 || strings.ContainsAny(name, " \t\n\"'!/+*") || name == "" && d != "*" {
			return fmt.Errorf("device %q: want the name of a device, or its beginning and a '*'", d)
		}
	}
	return nil
}

// mark is the mark bit as iptables-save prints it.
func (o Options) mark() string { return fmt.Sprintf("%#x", uint32(1)<<*o.MasqueradeBit) }
