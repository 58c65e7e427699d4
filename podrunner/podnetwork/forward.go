// SPDX-License-Identifier: Apache-2.0

package podnetwork

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
)

// forward makes the kernel forward packets. A node that takes its routes from
// IPv6 router advertisements would stop to do so then: it is told to go on.
func (n *Network) forward() error {
	if err := setSysctl("/proc/sys/net/ipv4/ip_forward", "1"); err != nil {
		return fmt.Errorf("forward IPv4 packets: %w", err)
	}
	const all = "/proc/sys/net/ipv6/conf/all/forwarding"
	have, err := os.ReadFile(all)
	if err != nil {
		return nil // no IPv6 here
	}
	// On a Pod's link are the Pod and the node, and nobody else. The kernel would
	// yet wait whether the node's addresses there are taken, and for one to two
	// seconds a Pod that is Ready by its IPv4 address would not answer by IPv6.
	// Devices of Pods come later, and take the default.
	if err := setSysctl("/proc/sys/net/ipv6/conf/default/accept_dad", "0"); err != nil {
		return fmt.Errorf("use IPv6 addresses of Pods' links at once: %w", err)
	}
	if string(bytes.TrimSpace(have)) == "1" {
		return nil
	}
	devices, err := filepath.Glob("/proc/sys/net/ipv6/conf/*/accept_ra")
	if err != nil {
		return fmt.Errorf("forward IPv6 packets: %w", err)
	}
	for _, d := range devices {
		if v, err := os.ReadFile(d); err == nil && string(bytes.TrimSpace(v)) == "1" {
			if err := setSysctl(d, "2"); err != nil {
				return fmt.Errorf("go on to accept router advertisements: %w", err)
			}
		}
	}
	if err := setSysctl(all, "1"); err != nil {
		return fmt.Errorf("forward IPv6 packets: %w", err)
	}
	return nil
}

func setSysctl(path, value string) error {
	if have, err := os.ReadFile(path); err == nil && string(bytes.TrimSpace(have)) == value {
		return nil
	}
	return os.WriteFile(path, []byte(value), 0o644)
}
