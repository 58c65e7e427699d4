// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"

	goiptables "github.com/coreos/go-iptables/iptables"
)

// hints are chains that the kubelet makes in the flavour that it uses.
var hints = []string{":KUBE-IPTABLES-HINT ", ":KUBE-KUBELET-CANARY "}

// detect chooses the flavour as the iptables-wrappers project does: where the
// kubelet's hint is; else where more rules are; else nft.
func detect() (Flavour, error) {
	if _, err := exec.LookPath("iptables-nft-restore"); err != nil {
		if _, err := exec.LookPath("iptables-legacy-restore"); err != nil {
			return Auto, errors.New("neither iptables-nft-restore nor iptables-legacy-restore is in PATH: install iptables 1.8.3 or newer")
		}
		return Legacy, nil
	}
	if _, err := exec.LookPath("iptables-legacy-restore"); err != nil {
		return NFT, nil
	}
	rules := map[Flavour]int{}
	for _, f := range []Flavour{NFT, Legacy} {
		for _, v6 := range []bool{false, true} {
			if f == Legacy && !legacyTables(v6) {
				continue // asking would make the tables
			}
			out, err := exec.Command(command(f, v6, "save")).Output()
			if err != nil {
				continue // a family the kernel lacks
			}
			for _, h := range hints {
				if bytes.Contains(out, []byte(h)) {
					return f, nil
				}
			}
			rules[f] += bytes.Count(out, []byte("\n-"))
		}
	}
	if rules[Legacy] > rules[NFT] {
		return Legacy, nil
	}
	return NFT, nil
}

// legacyTables reports whether this network namespace has any legacy table.
func legacyTables(v6 bool) bool {
	file := "/proc/thread-self/net/ip_tables_names"
	if v6 {
		file = "/proc/thread-self/net/ip6_tables_names"
	}
	names, err := os.ReadFile(file)
	return err == nil && len(strings.TrimSpace(string(names))) > 0
}

// command is the name of a program: iptables-nft-restore, ip6tables-legacy-save.
func command(f Flavour, v6 bool, verb string) string {
	name := "iptables"
	if v6 {
		name = "ip6tables"
	}
	name += "-" + string(f)
	if verb != "" {
		name += "-" + verb
	}
	return name
}

// tool is the commands of one family in the chosen flavour.
type tool struct {
	flavour     Flavour
	v6          bool
	one         *goiptables.IPTables
	randomFully bool
	ending      sync.WaitGroup // a command whose work is done
}

func newTool(f Flavour, v6 bool) (*tool, error) {
	family := goiptables.ProtocolIPv4
	if v6 {
		family = goiptables.ProtocolIPv6
	}
	one, err := goiptables.New(goiptables.IPFamily(family), goiptables.Path(command(f, v6, "")), goiptables.Timeout(5))
	if err != nil {
		return nil, fmt.Errorf("find %s: %w", command(f, v6, ""), err)
	}
	return &tool{flavour: f, v6: v6, one: one, randomFully: one.HasRandomFully()}, nil
}

// masquerade is the target with the widest choice of source ports.
func (t *tool) masquerade() string {
	if t.randomFully {
		return "-j MASQUERADE --random-fully"
	}
	return "-j MASQUERADE"
}

// exists reports whether the family has a chain of ours. Where nft has no
// table, or legacy no support, it has none.
func (t *tool) exists(table, chain string) bool {
	if t.flavour == Legacy && !legacyTables(t.v6) {
		return false
	}
	ok, err := t.one.ChainExists(table, chain)
	return err == nil && ok
}
