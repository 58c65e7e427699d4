// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"strings"
	"testing"
)

func TestCommentIsTheTextOfARulesComment(t *testing.T) {
	for rule, want := range map[string]string{
		`-j X`:                          "",
		`-m comment --comment web -j X`: "web",
		`-m comment --comment "kubernetes service portals" -j KUBE-SERVICES`: "kubernetes service portals",
		`-m comment --comment "say \"-j X\" \\" -j Y`:                        `say "-j X" \`,
		`-m comment --comment "no end`:                                       "no end",
	} {
		if got := Comment(rule); got != want {
			t.Errorf("%s: got %q, want %q", rule, got, want)
		}
	}
}

func FuzzComment(f *testing.F) {
	f.Add(`-m comment --comment "say \"x\"" -j X`)
	f.Fuzz(func(t *testing.T, rule string) {
		if c := Comment(rule); c != "" && !strings.Contains(rule, "--comment ") {
			t.Errorf("%q of a rule without a comment: %q", c, rule)
		}
		_ = Target(rule)
		_ = Option(rule, "-d")
	})
}
