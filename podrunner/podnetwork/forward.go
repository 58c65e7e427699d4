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
