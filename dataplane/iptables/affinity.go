// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"

	"fairlead.dev/dataplane"
)

// recentDir has a file for each xt_recent list of this network namespace.
const recentDir = "/proc/thread-self/net/xt_recent/"

// remembering is a list of clients: those of a Service port on one Backend.
type remembering struct {
	list    string
	port    *kernelPort
	backend netip.AddrPort
	seconds uint64
}

// Affinity implements dataplane.Reader.
func (r *Reader) Affinity() ([]dataplane.AffinityRow, error) {
	rows := []dataplane.AffinityRow{}
	clock, err := readClock()
	if err != nil {
		return nil, err
	}
	for _, t := range r.tools {
		saved, err := t.save(context.Background())
		if err != nil {
			return nil, err
		}
		lists, err := rememberings(saved["nat"])
		if err != nil {
			return nil, err
		}
		for _, l := range lists {
			found, err := l.rows(clock)
			if err != nil {
				return nil, err
			}
			rows = append(rows, found...)
		}
	}
	slices.SortFunc(rows, func(a, b dataplane.AffinityRow) int {
		return cmp.Or(cmp.Compare(a.Service, b.Service), cmp.Compare(a.PortName, b.PortName), cmp.Compare(a.Client, b.Client))
	})
	return rows, nil
}

// rememberings reads the lists, once each.
func rememberings(nat *savedTable) (out []remembering, err error) {
	ports, err := kernelPorts(nat)
	if err != nil {
		return nil, err
	}
	seen := map[string]bool{}
	for chain, p := range ports {
		for _, set := range []string{p.set(p.internal), p.set(p.external)} {
			c := nat.chains[set]
			if c == nil {
				continue
			}
			for _, rule := range c.rules {
				if !strings.Contains(rule, "-m recent --update") || seen[option(rule, "--name")] {
					continue
				}
				l := remembering{list: option(rule, "--name"), port: p}
				seen[l.list] = true
				if l.backend, err = netip.ParseAddrPort(option(rule, "--to-destination")); err != nil {
					return nil, fmt.Errorf("chain %s: rule %q: %w", chain, rule, err)
				}
				if l.seconds, err = strconv.ParseUint(option(rule, "--seconds"), 10, 32); err != nil {
					return nil, fmt.Errorf("chain %s: rule %q: %w", chain, rule, err)
				}
				out = append(out, l)
			}
		}
	}
	return out, nil
}

// rows reads the clients of a list that are not too old. A line is
// "src=10.0.0.1 ttl: 64 last_seen: 4295000000 oldest_pkt: 1 4295000000", in
// jiffies.
func (l remembering) rows(now clock) (rows []dataplane.AffinityRow, err error) {
	if strings.ContainsRune(l.list, '/') {
		return nil, fmt.Errorf("list %q: no name of ours", l.list)
	}
	text, err := os.ReadFile(recentDir + l.list)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // the rule went meanwhile
	}
	if err != nil {
		return nil, fmt.Errorf("read affinity: %w", err)
	}
	for line := range strings.Lines(string(text)) {
		client, seen, err := parseRecent(line)
		if err != nil {
			return nil, fmt.Errorf("read affinity, %s: %w", l.list, err)
		}
		idle := now.since(seen)
		if idle <= l.seconds {
			rows = append(rows, dataplane.AffinityRow{
				Service: l.port.service, PortName: l.port.portName, Client: client.String(), Backend: l.backend, IdleSeconds: uint32(idle),
			})
		}
	}
	return rows, nil
}

func parseRecent(line string) (client netip.Addr, seen uint64, err error) {
	f := strings.Fields(line)
	if len(f) < 5 || f[3] != "last_seen:" {
		return client, 0, fmt.Errorf("%q: want src=, ttl and last_seen", strings.TrimSpace(line))
	}
	if client, err = netip.ParseAddr(strings.TrimPrefix(f[0], "src=")); err != nil {
		return client, 0, err
	}
	seen, err = strconv.ParseUint(f[4], 10, 64)
	return client, seen, err
}

// clock tells the kernel's jiffies.
type clock struct{ jiffies, perSecond uint64 }

func (c clock) since(jiffies uint64) (seconds uint64) {
	if jiffies > c.jiffies {
		return 0
	}
	return (c.jiffies - jiffies) / c.perSecond
}

// readClock reads jiffies from /proc/timer_list. They began five minutes before
// 2^32 at boot (INITIAL_JIFFIES), which with the uptime gives their rate.
func readClock() (clock, error) {
	f, err := os.Open("/proc/timer_list")
	if err != nil {
		return clock{}, fmt.Errorf("read jiffies for the age of affinity: %w", err)
	}
	defer f.Close()
	var nanoseconds, jiffies uint64
	for lines := bufio.NewScanner(f); lines.Scan() && jiffies == 0; {
		line := strings.TrimSpace(lines.Text())
		if rest, ok := strings.CutPrefix(line, "now at "); ok {
			nanoseconds, _ = strconv.ParseUint(strings.TrimSuffix(rest, " nsecs"), 10, 64)
		} else if rest, ok := strings.CutPrefix(line, "jiffies: "); ok {
			jiffies, _ = strconv.ParseUint(rest, 10, 64)
		}
	}
	best, off := clock{}, uint64(1<<63)
	for _, hz := range []uint64{100, 250, 300, 1000} {
		is := jiffies - (1<<32 - 300*hz)
		want := nanoseconds / 1e6 * hz / 1000
		if d := max(is, want) - min(is, want); d < off {
			best, off = clock{jiffies, hz}, d
		}
	}
	if jiffies == 0 || nanoseconds == 0 {
		return clock{}, errors.New("read jiffies for the age of affinity: /proc/timer_list has none")
	}
	return best, nil
}
