// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"fairlead.dev/dataplane"
)

// What a reader has to know beside the rules stands in comments, after the
// rules that end a chain, where no packet comes. A text longer than one
// comment (XT_MAX_COMMENT_LEN is 256) goes on in the next rule.

// commentSize is how much of a text one rule holds.
const commentSize = 200

// commentWord begins every comment, so that it has a space in it:
// iptables-save puts quotes around those that do.
const commentWord = "fairlead "

const noName = "-"

// comments are rules that hold a text.
func comments(text string) (rules []string) {
	for {
		part := text
		if len(part) > commentSize {
			part = part[:commentSize]
			for part[len(part)-1] == ' ' || text[len(part)] == ' ' { // iptables-save keeps them, readers may not
				part = part[:len(part)-1]
			}
		}
		rules = append(rules, `-m comment --comment "`+commentWord+part+`"`)
		if text = text[len(part):]; text == "" {
			return rules
		}
	}
}

// classText describes a class: whose it is, its kind, affinity, and the set of
// each scope.
func classText(service dataplane.ServiceName, portName string, c *class) string {
	if portName == "" {
		portName = noName
	}
	return fmt.Sprintf("%s %s %s %d %s %s", service, portName, c.first.Kind, c.first.AffinitySeconds,
		setName(c.internal, c.first.Internal), setName(c.external, c.first.External))
}

func setName(n int, s dataplane.BackendSet) string {
	switch {
	case n >= 0:
		return strconv.FormatInt(int64(n), 36)
	case s.OnEmpty == dataplane.Drop:
		return "!drop"
	}
	return "!reject"
}

// classMeta is classText read again.
type classMeta struct {
	service, portName, kind string
	affinity                uint32
	internal, external      string
}

func parseClassText(text string) (classMeta, error) {
	f := strings.Fields(text)
	if len(f) != 6 {
		return classMeta{}, fmt.Errorf("comment %q: want six words", text)
	}
	n, err := strconv.ParseUint(f[3], 10, 32)
	if err != nil {
		return classMeta{}, fmt.Errorf("comment %q: affinity: %w", text, err)
	}
	m := classMeta{service: f[0], portName: f[1], kind: f[2], affinity: uint32(n), internal: f[4], external: f[5]}
	if m.portName == noName {
		m.portName = ""
	}
	return m, nil
}

// setText describes the Backends of a set: a letter for each that has rules, in
// their order, then those that have none.
func setText(s dataplane.BackendSet) string {
	var b strings.Builder
	eligible := s.Eligible()
	for _, e := range eligible {
		b.WriteByte(letter(e))
	}
	for _, rest := range s.Backends[len(eligible):] {
		fmt.Fprintf(&b, ",%s%c", rest.AddrPort(), letter(rest))
	}
	return b.String()
}

// Letters of Backends: capital where local.
const letters = "ATat"

func letter(b dataplane.Backend) byte {
	i := 0
	if b.State == dataplane.Terminating {
		i = 1
	}
	if !b.Local {
		i += 2
	}
	return letters[i]
}

func ofLetter(c byte) (state string, local, ok bool) {
	i := strings.IndexByte(letters, c)
	if i < 0 {
		return "", false, false
	}
	return dataplane.BackendState(i & 1).String(), i < 2, true
}

// parseSetText gives the Backends of a set, of which the first are those of the
// rules.
func parseSetText(text string, rules []netip.AddrPort) ([]dataplane.BackendRow, error) {
	first, rest, more := strings.Cut(text, ",")
	if len(first) != len(rules) {
		return nil, fmt.Errorf("comment %q: %d Backends, but %d rules", text, len(first), len(rules))
	}
	rows := make([]dataplane.BackendRow, 0, len(rules))
	add := func(at netip.AddrPort, c byte) error {
		state, local, ok := ofLetter(c)
		if !ok {
			return fmt.Errorf("comment %q: %q is no kind of Backend", text, c)
		}
		rows = append(rows, dataplane.BackendRow{Address: at.Addr(), Port: at.Port(), State: state, Local: local})
		return nil
	}
	for i, at := range rules {
		if err := add(at, first[i]); err != nil {
			return nil, err
		}
	}
	if !more {
		return rows, nil
	}
	for word := range strings.SplitSeq(rest, ",") {
		if word == "" {
			return nil, fmt.Errorf("comment %q: a Backend without an address", text)
		}
		at, err := netip.ParseAddrPort(word[:len(word)-1])
		if err != nil {
			return nil, fmt.Errorf("comment %q: %w", text, err)
		}
		if err := add(at, word[len(word)-1]); err != nil {
			return nil, err
		}
	}
	return rows, nil
}
