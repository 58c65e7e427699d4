// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"context"
	"errors"
	"fmt"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// legacyEye polls: ip_tables tells nobody of changes. What it asks for is two
// numbers for each table, in a few microseconds. They are of the whole table,
// so that a change of others' rules looks like one of ours; and a change that
// keeps both is not seen before the next full check.
type legacyEye struct {
	sockets []legacySocket
	last    map[legacyTable]legacySize
}

// legacyPoll is the time between two looks.
const legacyPoll = 300 * time.Millisecond

// soGetInfo is IPT_SO_GET_INFO and IP6T_SO_GET_INFO (linux/netfilter_ipv4/ip_tables.h).
const soGetInfo = 64

type legacySocket struct {
	fd    int
	level int // of getsockopt
}

type legacyTable struct {
	level int
	name  string
}

// legacySize is what a table's rules number, and their bytes.
type legacySize struct{ entries, size uint32 }

// getInfo is struct ipt_getinfo.
type getInfo struct {
	name       [32]byte
	validHooks uint32
	hookEntry  [5]uint32
	underflow  [5]uint32
	legacySize
}

func newLegacyEye(v6 bool) (*legacyEye, error) {
	e := &legacyEye{}
	open := func(family, level int) error {
		fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		if err != nil {
			return fmt.Errorf("open raw socket to watch iptables: %w", err)
		}
		e.sockets = append(e.sockets, legacySocket{fd, level})
		return nil
	}
	err := open(unix.AF_INET, unix.SOL_IP)
	if v6 && err == nil {
		err = open(unix.AF_INET6, unix.SOL_IPV6)
	}
	if err != nil {
		e.close()
		return nil, err
	}
	return e, nil
}

func (e *legacyEye) close() error {
	var errs []error
	for _, s := range e.sockets {
		errs = append(errs, unix.Close(s.fd))
	}
	e.sockets = nil
	return errors.Join(errs...)
}

func (e *legacyEye) wait(ctx context.Context) error {
	timer := time.NewTimer(legacyPoll)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

func (e *legacyEye) look() (foreign bool) {
	if e.last == nil {
		return false // nothing was written yet, and asking would make the tables
	}
	now := e.sizes()
	for t, s := range now {
		foreign = foreign || e.last[t] != s
	}
	e.last = now
	return foreign
}

func (e *legacyEye) open() {}

func (e *legacyEye) shut(int) (foreign bool) {
	e.last = e.sizes()
	return false
}

func (e *legacyEye) sizes() map[legacyTable]legacySize {
	sizes := map[legacyTable]legacySize{}
	for _, s := range e.sockets {
		for _, name := range tableNames {
			if size, err := s.size(name); err == nil {
				sizes[legacyTable{s.level, name}] = size
			}
		}
	}
	return sizes
}

func (s legacySocket) size(table string) (legacySize, error) {
	var info getInfo
	copy(info.name[:], table)
	length := uint32(unsafe.Sizeof(info))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(s.fd), uintptr(s.level), soGetInfo,
		uintptr(unsafe.Pointer(&info)), uintptr(unsafe.Pointer(&length)), 0)
	if errno != 0 {
		return legacySize{}, fmt.Errorf("size of table %s: %w", table, errno)
	}
	return info.legacySize, nil
}
