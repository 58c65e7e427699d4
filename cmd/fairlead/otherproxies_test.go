// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestWhatKubeProxyLeftIsFound(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root, to make a network namespace")
	}
	nft, err := exec.LookPath("nft")
	if err != nil {
		t.Skip("needs nft")
	}
	for _, tc := range []struct{ name, rules, want string }{
		{"nothing", "", ""},
		{"another table", "add table ip mine\nadd chain ip mine services", ""},
		{"nftables mode", "add table ip kube-proxy\nadd chain ip kube-proxy services\nadd chain ip kube-proxy external", "nftables table ip kube-proxy (kube-proxy in nftables mode)"},
		{"iptables mode", "add table ip6 nat\nadd chain ip6 nat KUBE-SERVICES", "chain KUBE-SERVICES in table ip6 nat (kube-proxy in iptables or ipvs mode)"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			// The thread is never unlocked, so it and its namespace end with the goroutine.
			runtime.LockOSThread()
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				t.Skipf("no new network namespace: %v", err)
			}
			if tc.rules != "" {
				cmd := exec.Command(nft, "-f", "-")
				cmd.Stdin = strings.NewReader(tc.rules + "\n")
				if out, err := cmd.CombinedOutput(); err != nil {
					t.Fatalf("nft: %v: %s", err, out)
				}
			}
			r := checkOtherProxies()[0]
			if tc.want == "" && !r.OK || tc.want != "" && (r.OK || r.Detail != tc.want || r.Cost == "") {
				t.Errorf("rules %q\n got %+v\nwant %q", tc.rules, r, tc.want)
			}
		})
	}
}
