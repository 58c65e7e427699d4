// SPDX-License-Identifier: Apache-2.0

package observe

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const securityFile = "../../docs/security.md"

// table are the rows of the table under a heading of docs/security.md, without
// the code marks.
func table(t *testing.T, heading string) (rows [][]string) {
	t.Helper()
	text, err := os.ReadFile(securityFile)
	if err != nil {
		t.Fatal(err)
	}
	_, section, ok := strings.Cut(string(text), "\n## "+heading+"\n")
	if !ok {
		t.Fatalf("%s has no %q", securityFile, heading)
	}
	section, _, _ = strings.Cut(section, "\n## ")
	for line := range strings.Lines(section) {
		if !strings.HasPrefix(line, "| ") || strings.HasPrefix(line, "| ---") {
			continue
		}
		var cells []string
		for cell := range strings.SplitSeq(strings.Trim(strings.TrimSpace(line), "|"), "|") {
			cells = append(cells, strings.ReplaceAll(strings.TrimSpace(cell), "`", ""))
		}
		rows = append(rows, cells)
	}
	return rows[1:]
}

func (b *bed) listens(t *testing.T) {
	var documented []string
	for _, row := range table(t, "Listeners") {
		if !strings.Contains(row[1], "--pods cri") {
			documented = append(documented, row[0])
		}
	}
	slices.Sort(documented)
	eventually(t, "the health check of the Service lb listens", func() (bool, string) {
		seen := b.sockets(t)
		return slices.Contains(seen, "tcp healthCheckNodePort"), fmt.Sprint(seen)
	})
	if diff := cmp.Diff(documented, b.sockets(t)); diff != "" {
		t.Errorf("sockets that can be connected to (-docs/security.md +the agent's):\n%s", diff)
	}
}

// inodes are the sockets that the agent holds.
func (b *bed) inodes(t *testing.T) map[string]bool {
	t.Helper()
	out := map[string]bool{}
	for _, target := range b.descriptors(t) {
		if m := regexp.MustCompile(`^socket:\[(\d+)\]$`).FindStringSubmatch(target); m != nil {
			out[m[1]] = true
		}
	}
	return out
}

func (b *bed) descriptors(t *testing.T) (targets []string) {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d/fd", b.agent.Process.Pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if target, err := os.Readlink(filepath.Join(dir, e.Name())); err == nil { // else closed by now
			targets = append(targets, target)
		}
	}
	return targets
}

// sockets are those that others can send to: listening TCP and unix sockets,
// bound UDP, raw and packet sockets.
func (b *bed) sockets(t *testing.T) (out []string) {
	t.Helper()
	ours := b.inodes(t)
	const listen, unconnected = "0A", "07"
	for _, proto := range []string{"tcp", "tcp6", "udp", "udp6", "raw", "raw6", "udplite", "udplite6"} {
		for _, f := range b.procNet(t, proto) {
			state, inode := f[3], f[9]
			if !ours[inode] || strings.HasPrefix(proto, "tcp") && state != listen || strings.HasPrefix(proto, "udp") && state != unconnected {
				continue
			}
			a := addrPort(t, f[1])
			name := strings.TrimSuffix(proto, "6") + " " + a.String()
			if a.Port() == healthPort {
				name = "tcp healthCheckNodePort"
			}
			out = append(out, name)
		}
	}
	for _, f := range b.procNet(t, "packet") {
		if ours[f[len(f)-1]] {
			out = append(out, "packet "+strings.Join(f, " "))
		}
	}
	for _, f := range b.procNet(t, "unix") {
		const accepting = 0x10000 // __SO_ACCEPTCON, linux/net.h
		flags, err := strconv.ParseUint(f[3], 16, 32)
		if err == nil && ours[f[6]] && flags&accepting != 0 {
			out = append(out, "unix "+strings.Join(f[7:], " "))
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// procNet are the fields of the lines of a file of the node's /proc/net.
func (b *bed) procNet(t *testing.T, name string) (lines [][]string) {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/%s", b.agent.Process.Pid, name))
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	for i, line := range slices.Collect(strings.Lines(string(text))) {
		if i > 0 {
			lines = append(lines, strings.Fields(line))
		}
	}
	return lines
}

// addrPort reads an address as /proc/net writes it: words of the machine's order.
func addrPort(t *testing.T, s string) netip.AddrPort {
	t.Helper()
	address, port, _ := strings.Cut(s, ":")
	words, err := hex.DecodeString(address)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(words); i += 4 {
		binary.BigEndian.PutUint32(words[i:], binary.NativeEndian.Uint32(words[i:]))
	}
	a, _ := netip.AddrFromSlice(words)
	n, err := strconv.ParseUint(port, 16, 16)
	if err != nil {
		t.Fatal(err)
	}
	return netip.AddrPortFrom(a, uint16(n))
}

func (b *bed) holdsFiles(t *testing.T) {
	places := map[string]string{
		"--manifests": b.path("manifests"), "BPFFS": b.node.BPFFS, "--cgroup-root": b.node.CgroupRoot, "--state-dir": b.path("state"),
	}
	var allowed []string
	for _, row := range table(t, "Files") {
		for word := range strings.SplitSeq(row[0], ", ") {
			word, _, _ = strings.Cut(word, " (")
			first, rest, _ := strings.Cut(word, "/")
			switch {
			case places[first] != "":
				allowed = append(allowed, filepath.Join(places[first], rest))
			case strings.HasPrefix(word, "/"):
				allowed = append(allowed, strings.TrimSuffix(word, "/..."))
			}
		}
	}
	if len(allowed) < 8 {
		t.Fatalf("read only these places from %s: %v", securityFile, allowed)
	}
	for _, target := range b.descriptors(t) {
		if !strings.HasPrefix(target, "/") || target == "/dev/null" { // sockets, pipes, anon inodes
			continue
		}
		if !slices.ContainsFunc(allowed, func(p string) bool { return target == p || strings.HasPrefix(target, p+"/") }) {
			t.Errorf("the agent holds %s, which %s does not name", target, securityFile)
		}
	}
	info, err := os.Stat(filepath.Join(b.node.BPFFS, "fairlead"))
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the directory of pins: %v, %v; want mode 0700", info.Mode(), err)
	}
}
