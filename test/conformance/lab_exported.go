// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"fairlead.dev/test/internal/cgroup"
)

// Lab is the topology of the cases for tests that bring their own load: its
// pods answer on ports 8080, 8081 and 9090, and no Dataplane runs on it.
type Lab struct{ l *lab }

// Member is a process of a Lab, and so a place for others: they belong into its
// network namespace (/proc/PID/ns/net) and its cgroup.
type Member struct {
	PID        int
	CgroupDir  string
	IPv4, IPv6 netip.Addr
}

// NewLab builds a Lab, which t's cleanup takes down. It skips t without root.
func NewLab(t *testing.T) *Lab {
	t.Helper()
	return &Lab{newLab(t)}
}

// Node is node1 or node2, by its number.
func (l *Lab) Node(number int) *Node { return l.l.nodes[number-1] }

// Member finds a member by name: a pod ("a", "client"), "host1", "outside". It
// fails t where there is none.
func (l *Lab) Member(t testing.TB, name string) Member {
	t.Helper()
	m, err := l.member(name)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func (l *Lab) member(name string) (Member, error) {
	m := l.l.members[name]
	if m == nil {
		return Member{}, fmt.Errorf("nobody in the lab is called %q", name)
	}
	mount, err := cgroup.Mount()
	if err != nil {
		return Member{}, err
	}
	pid := m.cmd.Process.Pid
	lines, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return Member{}, fmt.Errorf("find cgroup of %s: %w", name, err)
	}
	for line := range strings.Lines(string(lines)) {
		if path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			return Member{PID: pid, CgroupDir: filepath.Join(mount, path), IPv4: m.v4, IPv6: m.v6}, nil
		}
	}
	return Member{}, fmt.Errorf("%s is in no cgroup2", name)
}
