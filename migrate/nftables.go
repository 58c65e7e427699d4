// SPDX-License-Identifier: Apache-2.0

package migrate

import (
	"errors"
	"fmt"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// nftTableName is the table of kube-proxy's nftables mode, in both families.
const nftTableName = "kube-proxy"

// nftTable is one that is there.
type nftTable struct {
	family nftables.TableFamily
	name   string
}

func (t nftTable) String() string {
	if t.family == nftables.TableFamilyIPv6 {
		return "nftables table ip6 " + t.name
	}
	return "nftables table ip " + t.name
}

// findTables lists those of a name, up to an error. A kernel without nftables has
// none.
func findTables(name string) (tables []nftTable, err error) {
	c, err := nftables.New()
	if err != nil {
		return nil, fmt.Errorf("open nftables: %w", err)
	}
	for _, family := range []nftables.TableFamily{nftables.TableFamilyIPv4, nftables.TableFamilyIPv6} {
		list, err := c.ListTablesOfFamily(family)
		switch {
		case noTables(err):
			continue
		case err != nil:
			return tables, fmt.Errorf("list nftables tables: %w", err)
		}
		for _, t := range list {
			if t.Name == name {
				tables = append(tables, nftTable{family, name})
			}
		}
	}
	return tables, nil
}

// remove removes the table with all that is in it.
func (t nftTable) remove() error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	c.DelTable(&nftables.Table{Name: t.name, Family: t.family})
	if err := c.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("remove %s: %w", t, err)
	}
	return nil
}

// noTables: the kernel has no nftables, or nothing of the family.
func noTables(err error) bool {
	return errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT)
}
