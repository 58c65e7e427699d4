// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"fmt"
	"os"
	"strings"
)

// routeLocalnet lets packets from 127.0.0.1 leave loopback, as those to a
// Frontend on it have to. It is of the calling thread's network namespace.
const routeLocalnet = "/proc/sys/net/ipv4/conf/all/route_localnet"

// localnetOpen reports whether somebody set it.
func localnetOpen() bool {
	v, err := os.ReadFile(routeLocalnet)
	return err == nil && strings.TrimSpace(string(v)) == "1"
}

func openLocalnet() error { return setLocalnet("1") }

// closeLocalnet unsets it where the guard says that we set it.
func (f *family) closeLocalnet() error {
	if _, held := f.tables["raw"].held[chainLocalnet]; !held {
		return nil
	}
	return setLocalnet("0")
}

func setLocalnet(v string) error {
	if err := os.WriteFile(routeLocalnet, []byte(v), 0o644); err != nil {
		return fmt.Errorf("set net.ipv4.conf.all.route_localnet for node ports on loopback: %w", err)
	}
	return nil
}
