// SPDX-License-Identifier: Apache-2.0

package explain

import (
	"net/netip"
	"strings"
	"testing"

	"fairlead.dev/dataplane"
)

func TestQuestionsAreReadInEveryForm(t *testing.T) {
	for _, tc := range []struct {
		words string // separated by '|'
		want  string // as String gives it
	}{
		{"10.96.0.10:80", "10.96.0.10:80/TCP"},
		{"10.96.0.10:53/udp", "10.96.0.10:53/UDP"},
		{"10.244.1.5 -> 10.96.0.10:80/TCP", "10.244.1.5 -> 10.96.0.10:80/TCP"},
		{"10.244.1.5|->|10.96.0.10:80", "10.244.1.5 -> 10.96.0.10:80/TCP"},
		{"10.244.1.5|10.96.0.10:80", "10.244.1.5 -> 10.96.0.10:80/TCP"},
		{"10.244.1.5->10.96.0.10:80", "10.244.1.5 -> 10.96.0.10:80/TCP"},
		{"10.244.1.5:40000 -> 10.96.0.10:80/SCTP", "10.244.1.5:40000 -> 10.96.0.10:80/SCTP"},
		{"fd00::1 -> [fd00:96::1]:443", "fd00::1 -> [fd00:96::1]:443/TCP"},
		{"[fd00::1]|[fd00:96::1]:443", "fd00::1 -> [fd00:96::1]:443/TCP"},
		{"[fd00::1]:7 -> [fd00:96::1]:443", "[fd00::1]:7 -> [fd00:96::1]:443/TCP"},
		{"::ffff:10.0.0.1 -> [::ffff:10.96.0.10]:80", "10.0.0.1 -> 10.96.0.10:80/TCP"},
	} {
		q, err := ParseQuestion(strings.Split(tc.words, "|"))
		if err != nil || q.String() != tc.want {
			t.Errorf("%q: %s, %v; want %s", tc.words, q, err, tc.want)
		}
	}
}

func TestWhatIsNoQuestionIsRefusedWithTheRemedy(t *testing.T) {
	for _, tc := range []struct{ words, want string }{
		{"", `want "[CLIENT ->] ADDRESS:PORT[/PROTOCOL]"`},
		{"10.96.0.10", "want ADDRESS:PORT"},
		{"10.96.0.10:0", "a port of 1 to 65535"},
		{"10.96.0.10:70000", "a port of 1 to 65535"},
		{"web.default:80", "with an IP address"},
		{"fd00::1:443", "IPv6 in brackets"},
		{"10.96.0.10:80/ICMP", "want TCP, UDP or SCTP"},
		{"10.96.0.10:80/", "want TCP, UDP or SCTP"},
		{"client -> 10.96.0.10:80", `client "client": want ADDRESS`},
		{"10.0.0.1:0 -> 10.96.0.10:80", `client "10.0.0.1:0"`},
		{"10.0.0.1 -> [fd00::1]:80", "of two families"},
		{"10.0.0.1 -", "the shell took what follows for a redirection"},
		{"10.0.0.1 10.0.0.2 10.96.0.10:80", "want"},
		{"fe80::1%eth0 -> [fd00::1]:80", "with a zone"},
		{"0.0.0.0 -> 10.96.0.10:80", "no connection has this address"},
		{"10.0.0.1 -> 224.0.0.1:80", "no connection has this address"},
		{strings.Repeat("1", 300), "at most 256"},
	} {
		q, err := ParseQuestion([]string{tc.words})
		if err == nil || !strings.Contains(err.Error(), tc.want) || q != (Question{}) {
			t.Errorf("%q: %v, %v; want an error with %q", tc.words, q, err, tc.want)
		}
	}
}

func FuzzParseQuestion(f *testing.F) {
	for _, s := range []string{"10.244.1.5 -> 10.96.0.10:80/TCP", "[fd00::1]:7 -> [fd00:96::1]:443", "10.96.0.10:53/udp", "-> -> -", "a -"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		q, err := ParseQuestion([]string{s})
		if err != nil {
			if q != (Question{}) {
				t.Errorf("%q: %v with an error", s, q)
			}
			return
		}
		for _, a := range []netip.Addr{q.Client, q.To.Address} {
			if a.IsValid() && (a.Is4In6() || a.Zone() != "") {
				t.Errorf("%q: address %s is not plain", s, a)
			}
		}
		if !q.To.Address.IsValid() || q.To.Port == 0 || q.To.Protocol == dataplane.Protocol(0) || q.Client.IsValid() && q.Client.Is4() != q.To.Address.Is4() {
			t.Errorf("%q: %+v", s, q)
		}
		if again, err := ParseQuestion([]string{q.String()}); err != nil || again != q {
			t.Errorf("%q: %s reads as %v, %v", s, q, again, err)
		}
	})
}
