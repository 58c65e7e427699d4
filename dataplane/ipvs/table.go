// SPDX-License-Identifier: Apache-2.0

package ipvs

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// tableName is of the nftables table (family inet).
const tableName = "fairlead-ipvs"

const (
	// elementsPerMessage keep a message below the 64 KiB of an attribute: the
	// longest element has 256 bytes of comment.
	elementsPerMessage = 150
	// socketBytes bound a transaction, which is one write to a socket: half a
	// million elements.
	socketBytes = 64 << 20
)

// table is the nftables table in the network namespace it was opened in. It is
// used by one goroutine at a time.
type table struct {
	conn   *nftables.Conn
	lister *netlink.Conn
	port   uint32 // netlink port of conn: whose changes are our own
	table  *nftables.Table
	sets   map[string]*nftables.Set
	specs  []setSpec
}

// openTable opens a socket; it makes nothing.
func openTable(affinityMax int) (*table, error) {
	t := &table{
		table: &nftables.Table{Name: tableName, Family: nftables.TableFamilyINet},
		sets:  map[string]*nftables.Set{}, specs: setSpecs(),
	}
	var err error
	t.conn, err = nftables.New(nftables.AsLasting(), nftables.WithSockOptions(func(c *netlink.Conn) error {
		raw, err := c.SyscallConn()
		if err != nil {
			return err
		}
		controlErr := raw.Control(func(fd uintptr) {
			var sa unix.Sockaddr
			if sa, err = unix.Getsockname(int(fd)); err == nil {
				t.port = sa.(*unix.SockaddrNetlink).Pid
			}
			// Without the capability the limits of the system hold.
			_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, socketBytes)
			_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, socketBytes)
		})
		return errors.Join(controlErr, err)
	}))
	if err != nil {
		return nil, fmt.Errorf("open nftables: %w", err)
	}
	if t.lister, err = netlink.Dial(unix.NETLINK_NETFILTER, nil); err != nil {
		return nil, errors.Join(fmt.Errorf("open nftables: %w", err), t.conn.CloseLasting())
	}
	for _, s := range t.specs {
		t.sets[s.name] = s.set(t.table, affinityMax)
	}
	return t, nil
}

func (t *table) close() error { return errors.Join(t.conn.CloseLasting(), t.lister.Close()) }

// present reports whether the table is there.
func (t *table) present() (bool, error) {
	tables, err := t.conn.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return false, fmt.Errorf("list nftables tables: %w", err)
	}
	return slices.ContainsFunc(tables, func(n *nftables.Table) bool { return n.Name == tableName }), nil
}

// intact reports whether the table has exactly our sets.
func (t *table) intact() (bool, error) {
	there, err := t.present()
	if err != nil || !there {
		return false, err
	}
	sets, err := t.conn.GetSets(t.table)
	if err != nil {
		return false, fmt.Errorf("list sets of table %s: %w", tableName, err)
	}
	found := 0
	for _, s := range sets {
		if s.Anonymous || strings.HasPrefix(s.Name, "__") {
			continue
		}
		want := t.sets[s.Name]
		if want == nil || want.KeyType.Bytes != s.KeyType.Bytes || want.IsMap != s.IsMap || want.Interval != s.Interval || want.Size != s.Size {
			return false, nil
		}
		found++
	}
	return found == len(t.specs), nil
}

// create queues a new, empty table in place of one that may be there.
func (t *table) create() error {
	t.conn.AddTable(t.table)
	t.conn.DelTable(t.table)
	t.conn.AddTable(t.table)
	for _, name := range dropCounters {
		t.conn.AddObj(&nftables.CounterObj{Table: t.table, Name: name})
	}
	for _, s := range t.specs {
		if err := t.conn.AddSet(t.sets[s.name], nil); err != nil {
			return fmt.Errorf("make set %s: %w", s.name, err)
		}
	}
	return nil
}

// elements reads everything but affinity.
func (t *table) elements() (elements, error) {
	all := elements{}
	for _, s := range t.specs {
		if s.dynamic {
			continue
		}
		if err := t.readSet(s.name, func(e nftables.SetElement) {
			k, v := fromKernel(s.name, e)
			all[k] = v
		}); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// memory reads the notes for Cleanup.
func (t *table) memory() (elements, error) {
	notes := elements{}
	err := t.readSet("memory", func(e nftables.SetElement) {
		k, v := fromKernel("memory", e)
		notes[k] = v
	})
	return notes, err
}

// readSet reads one set; again, if it changed meanwhile.
func (t *table) readSet(name string, each func(nftables.SetElement)) error {
	var list []nftables.SetElement
	var err error
	for range 8 {
		if list, err = t.conn.GetSetElements(t.sets[name]); !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("read set %s: %w", name, err)
	}
	for _, e := range list {
		each(e)
	}
	return nil
}

// queue queues an edit for the next commit.
func (t *table) queue(e edit) error {
	names, sets := e.deletes.bySet()
	for _, name := range names {
		if err := t.inParts(name, sets[name], e.deletes, t.conn.SetDeleteElements); err != nil {
			return err
		}
	}
	names, sets = e.adds.bySet()
	for _, name := range names {
		if err := t.inParts(name, sets[name], e.adds, t.conn.SetAddElements); err != nil {
			return err
		}
	}
	return nil
}

func (t *table) inParts(name string, keys []elementKey, of elements, do func(*nftables.Set, []nftables.SetElement) error) error {
	set := t.sets[name]
	if set == nil {
		return fmt.Errorf("table %s has no set %s", tableName, name)
	}
	for part := range slices.Chunk(keys, elementsPerMessage) {
		list := make([]nftables.SetElement, 0, len(part))
		for _, k := range part {
			list = append(list, k.kernel(set, of[k]))
		}
		if err := do(set, list); err != nil {
			return fmt.Errorf("set %s: %w", name, err)
		}
	}
	return nil
}

// commit makes all that was queued true in one step, or nothing of it.
func (t *table) commit() error {
	if err := t.conn.Flush(); err != nil {
		return fmt.Errorf("commit to table %s: %w", tableName, err)
	}
	return nil
}

// apply is queue and commit.
func (t *table) apply(e edit) error {
	if err := t.queue(e); err != nil {
		return err
	}
	return t.commit()
}

// remove deletes the table.
func (t *table) remove() error {
	t.conn.DelTable(t.table)
	return t.commit()
}
