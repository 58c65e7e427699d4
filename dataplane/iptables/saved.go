// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"
)

// savedTable is a table as iptables-save prints it.
type savedTable struct {
	chains map[string]*savedChain
}

// savedChain is a chain with its rules, without "-A" and its name.
type savedChain struct {
	rules []string
	// packets counts what came to each rule.
	packets []uint64
}

// parseSave reads the output of iptables-save -c, table by table. Those we have
// chains in are there even where the kernel has none. What it does not know it
// refuses; rules of others it only splits.
func parseSave(text []byte) (map[string]*savedTable, error) {
	tables := map[string]*savedTable{}
	for _, name := range tableNames {
		tables[name] = &savedTable{chains: map[string]*savedChain{}}
	}
	var t *savedTable
	n := 0
	for line := range bytes.Lines(text) {
		n++
		line = bytes.TrimRight(line, "\r\n")
		switch {
		case len(line) == 0 || line[0] == '#':
		case line[0] == '*':
			name := string(line[1:])
			if tables[name] == nil {
				tables[name] = &savedTable{chains: map[string]*savedChain{}}
			}
			t = tables[name]
		case t == nil:
			return nil, fmt.Errorf("iptables-save, line %d: %q is of no table", n, line)
		case string(line) == "COMMIT":
			t = nil
		default:
			if err := t.parseLine(string(line)); err != nil {
				return nil, fmt.Errorf("iptables-save, line %d: %w", n, err)
			}
		}
	}
	return tables, nil
}

func (t *savedTable) parseLine(line string) error {
	switch line[0] {
	case ':':
		name, _, ok := strings.Cut(line[1:], " ")
		if !ok || name == "" {
			return fmt.Errorf("chain %q: want a name and a policy", line)
		}
		if t.chains[name] == nil {
			t.chains[name] = &savedChain{}
		}
		return nil
	case '[':
		counters, rest, _ := strings.Cut(line[1:], "] ")
		packets, _, _ := strings.Cut(counters, ":")
		count, err := strconv.ParseUint(packets, 10, 64)
		if err != nil {
			return fmt.Errorf("counters of %q: %w", line, err)
		}
		return t.addRule(rest, count)
	case '-':
		return t.addRule(line, 0)
	}
	return fmt.Errorf("%q is no rule", line)
}

func (t *savedTable) addRule(text string, packets uint64) error {
	rest, ok := strings.CutPrefix(text, "-A ")
	name, rule, _ := strings.Cut(rest, " ")
	c := t.chains[name]
	if !ok || c == nil {
		return fmt.Errorf("%q is a rule of no chain", text)
	}
	c.rules = append(c.rules, strings.TrimRight(rule, " "))
	c.packets = append(c.packets, packets)
	return nil
}

// packetsOf sums the counters of a chain's rules.
func (t *savedTable) packetsOf(chain string) (sum uint64) {
	if c := t.chains[chain]; c != nil {
		for _, n := range c.packets {
			sum += n
		}
	}
	return sum
}

// unescaped leaves the quotes that begin and end a comment.
var unescaped = strings.NewReplacer(`\\`, "", `\"`, "")

// option is the word after an option of a rule: option(rule, "-j") is where it
// leads. Comments are not looked into.
func option(rule, name string) string {
	inComment := false
	words := strings.Fields(rule)
	for i, w := range words {
		if !inComment && w == name && i+1 < len(words) {
			return words[i+1]
		}
		if strings.Count(unescaped.Replace(w), `"`)%2 == 1 {
			inComment = !inComment
		}
	}
	return ""
}

// comment is the text of a rule that is one of our comments and nothing else.
func comment(rule string) (text string, ok bool) {
	text, ok = strings.CutPrefix(rule, `-m comment --comment "`+commentWord)
	if !ok {
		return "", false
	}
	return strings.CutSuffix(text, `"`)
}
