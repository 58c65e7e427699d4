// SPDX-License-Identifier: Apache-2.0

package ipvs

import (
	"fmt"
	"net/netip"
	"testing"

	"pgregory.net/rapid"
)

func TestRangesComeBackAsPrefixes(t *testing.T) {
	for _, tc := range []struct{ first, last, want string }{
		{"10.244.0.0", "10.244.255.255", "[10.244.0.0/16]"},
		{"10.244.0.0", "10.245.255.255", "[10.244.0.0/15]"}, // two that touched
		{"10.0.0.1", "10.0.0.4", "[10.0.0.1/32 10.0.0.2/31 10.0.0.4/32]"},
		{"0.0.0.0", "255.255.255.255", "[0.0.0.0/0]"},
		{"255.255.255.255", "255.255.255.255", "[255.255.255.255/32]"},
		{"fd00::", "fd00::ffff:ffff:ffff:ffff", "[fd00::/64]"},
		{"::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "[::/0]"},
		{"10.0.0.2", "10.0.0.1", "[]"},
	} {
		if got := fmt.Sprint(prefixesOf(netip.MustParseAddr(tc.first), netip.MustParseAddr(tc.last))); got != tc.want {
			t.Errorf("%s to %s: %s, want %s", tc.first, tc.last, got, tc.want)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		at := netip.AddrFrom4([4]byte{10, 0, 0, rapid.Byte().Draw(t, "first")})
		last := at
		for range rapid.IntRange(0, 300).Draw(t, "further") {
			last = last.Next()
		}
		for _, p := range prefixesOf(at, last) {
			if p.Masked().Addr() != at {
				t.Fatalf("%s does not begin at %s", p, at)
			}
			at = lastOf(p).Next()
		}
		if at != last.Next() {
			t.Fatalf("the prefixes end before %s, want %s", at, last.Next())
		}
	})
}
