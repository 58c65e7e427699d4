// SPDX-License-Identifier: Apache-2.0

package nftables

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// routeLocalnet lets packets of 127.0.0.0/8 leave loopback, without which
// Frontends there reach no Backend. It is on only while there are such
// Frontends, and then the guard drops what comes from elsewhere to or from those
// addresses (CVE-2020-8558).
const routeLocalnet = "/proc/sys/net/ipv4/conf/all/route_localnet"

// setByUs is the guard's comment where route_localnet was off before.
const setByUs = "fairlead set net.ipv4.conf.all.route_localnet"

// guard is the chain that is there while route_localnet is on.
func guard(ours bool) chain {
	comment := ""
	if ours {
		comment = setByUs
	}
	f := families[0]
	elsewhere := device(expr.MetaKeyIIFNAME, expr.CmpOpNeq, "lo")
	to := []expr.Any{
		f.destination(0), &expr.Bitwise{SourceRegister: register(0), DestRegister: register(0), Len: 4, Mask: mask(loopbackPrefixes[0]), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: register(0), Data: loopbackPrefixes[0].Addr().AsSlice()},
	}
	return chain{chainLoopback, &hook{"filter", unix.NF_INET_PRE_ROUTING, priorityRaw}, []rule{
		line(comment, elsewhere, to, drop()),
		line("", elsewhere, f.fromPrefix(loopbackPrefixes[0]), drop()),
	}}
}

// guardLoopback switches route_localnet and the guard on or off, as Frontends
// need it. The guard comes first and goes last.
func (d *Dataplane) guardLoopback(sh *shadow) error {
	needed := sh.loopback > 0
	s := d.guarding
	if s == nil {
		var err error
		if s, err = readGuard(d.kernel, tableName); err != nil {
			return err
		}
	}
	if needed && !s.there {
		on, err := localnet()
		if err != nil {
			return err
		}
		s = &guardState{there: true, ours: !on}
		err = d.commit(func(m *messages) error {
			c := guard(s.ours)
			return c.put(m, families[0])
		})
		if err != nil {
			return err
		}
	}
	if needed {
		d.guarding = s
		return setLocalnet(true)
	}
	if s.there {
		if err := d.dropGuard(s); err != nil {
			return err
		}
	}
	d.guarding = &guardState{}
	return nil
}

func (d *Dataplane) dropGuard(s *guardState) error {
	if s.ours {
		if err := setLocalnet(false); err != nil {
			return err
		}
	}
	return d.commit(func(m *messages) error {
		removeChain(m, families[0], chainLoopback)
		return nil
	})
}

// guardState is whether the guard is there, and whether route_localnet is to be
// off without it.
type guardState struct{ there, ours bool }

func readGuard(k *socket, table string) (*guardState, error) {
	s := &guardState{}
	for _, ours := range []bool{true, false} {
		c := guard(ours)
		have, err := k.readStructure(families[0], table)
		if err != nil || have == nil {
			return s, err
		}
		if ok, err := have.holds(families[0], &c); err != nil || ok {
			return &guardState{there: ok, ours: ours}, err
		}
	}
	return s, nil
}

func localnet() (on bool, err error) {
	b, err := os.ReadFile(routeLocalnet)
	if err != nil {
		return false, fmt.Errorf("read route_localnet: %w", err)
	}
	return strings.TrimSpace(string(b)) != "0", nil
}

func setLocalnet(on bool) error {
	is, err := localnet()
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) && !on {
			return nil
		}
		return err
	}
	if is == on {
		return nil
	}
	value := "0"
	if on {
		value = "1"
	}
	if err := os.WriteFile(routeLocalnet, []byte(value), 0o644); err != nil {
		return fmt.Errorf("set route_localnet: %w", err)
	}
	return nil
}
