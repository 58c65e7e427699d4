// SPDX-License-Identifier: Apache-2.0

package explain

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"fairlead.dev/dataplane"
)

// Question is a connection that somebody makes or would make.
type Question struct {
	// Client is who asks; invalid: a process of this node.
	Client netip.Addr
	// ClientPort is the source port, 0 for any new one.
	ClientPort uint16
	// To is the destination.
	To dataplane.FrontendKey
}

func (q Question) String() string {
	switch {
	case !q.Client.IsValid():
		return q.To.String()
	case q.ClientPort != 0:
		return netip.AddrPortFrom(q.Client, q.ClientPort).String() + " -> " + q.To.String()
	}
	return q.Client.String() + " -> " + q.To.String()
}

// questionMax is how long a question can be, in bytes. Two IPv6 addresses with
// ports have less than half of that.
const questionMax = 256

// Form is how a question is written.
const Form = `"[CLIENT ->] ADDRESS:PORT[/PROTOCOL]"`

var errRedirected = errors.New(`a question ends with "-": the shell took what follows for a redirection, so quote it: ` + Form)

// ParseQuestion reads the words of a question: CLIENT -> ADDRESS:PORT/PROTOCOL
// in one word or in several, with the arrow or without. CLIENT is an address or
// an address and port, and may be missing; the protocol is TCP unless said.
// IPv6 addresses that have a port are in brackets.
func ParseQuestion(words []string) (q Question, err error) {
	text := strings.Join(words, " ")
	if len(text) > questionMax {
		return q, fmt.Errorf("a question of %d bytes: want at most %d, %s", len(text), questionMax, Form)
	}
	parts := strings.Fields(strings.Replace(text, "->", " -> ", 1))
	if n := len(parts); n > 0 && parts[n-1] == "-" {
		return q, errRedirected
	}
	if len(parts) == 3 && parts[1] == "->" {
		parts = []string{parts[0], parts[2]}
	}
	switch len(parts) {
	case 1:
	case 2:
		if q.Client, q.ClientPort, err = parseClient(parts[0]); err != nil {
			return Question{}, err
		}
	default:
		return q, fmt.Errorf("question %q: want %s", text, Form)
	}
	if q.To, err = parseDestination(parts[len(parts)-1]); err != nil {
		return Question{}, err
	}
	if q.Client.IsValid() && q.Client.Is4() != q.To.Address.Is4() {
		return Question{}, fmt.Errorf("client %s and destination %s are of two families: no packet has both", q.Client, q.To.Address)
	}
	return q, nil
}

func parseClient(s string) (a netip.Addr, port uint16, err error) {
	bare := s
	if rest, ok := strings.CutPrefix(s, "["); ok && strings.HasSuffix(rest, "]") {
		bare = strings.TrimSuffix(rest, "]")
	}
	a, err = netip.ParseAddr(bare)
	if err != nil {
		var at netip.AddrPort
		if at, err = netip.ParseAddrPort(s); err != nil || at.Port() == 0 {
			return netip.Addr{}, 0, fmt.Errorf("client %q: want ADDRESS or ADDRESS:PORT, IPv6 with a port in brackets", s)
		}
		a, port = at.Addr(), at.Port()
	}
	if a, err = plain(a); err != nil {
		return netip.Addr{}, 0, fmt.Errorf("client %q: %w", s, err)
	}
	return a, port, nil
}

func parseDestination(s string) (k dataplane.FrontendKey, err error) {
	at, protocol, said := strings.Cut(s, "/")
	k.Protocol = dataplane.TCP
	if said {
		if k.Protocol, err = dataplane.ParseProtocol(strings.ToUpper(protocol)); err != nil {
			return dataplane.FrontendKey{}, fmt.Errorf("destination %q: %w", s, err)
		}
	}
	ap, err := netip.ParseAddrPort(at)
	if err != nil || ap.Port() == 0 {
		return dataplane.FrontendKey{}, fmt.Errorf("destination %q: want ADDRESS:PORT or ADDRESS:PORT/PROTOCOL with an IP address, IPv6 in brackets, and a port of 1 to 65535", s)
	}
	if k.Address, err = plain(ap.Addr()); err != nil {
		return dataplane.FrontendKey{}, fmt.Errorf("destination %q: %w", s, err)
	}
	k.Port = ap.Port()
	return k, nil
}

// plain is an address as Tables have them: never IPv4-mapped, without a zone.
func plain(a netip.Addr) (netip.Addr, error) {
	a = a.Unmap()
	switch {
	case a.Zone() != "":
		return a, errors.New("no Service has an address with a zone: leave it out")
	case a.IsUnspecified(), a.IsMulticast():
		return a, errors.New("no connection has this address")
	}
	return a, nil
}

// fraction is a share of 1/n in words.
func fraction(n int) string { return "1/" + strconv.Itoa(n) }
