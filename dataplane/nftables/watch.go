// SPDX-License-Identifier: Apache-2.0

package nftables

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"fairlead.dev/dataplane/nfnetlink"
)

// watch hears of every transaction in the network namespace, and tells of those
// of others that touched our tables.
type watch struct {
	file    *os.File
	port    uint32 // whose transactions are our own
	drifted chan struct{}
	closing sync.Once
}

const (
	// watchBytes is the room for events that were not read yet.
	watchBytes = 2 << 20
	// quietBytes: the kernel writes an event for each element, so of larger
	// transactions of our own we'd rather not hear.
	quietBytes = 32 << 10
)

func openWatch(port uint32) (*watch, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	w := &watch{file: os.NewFile(uintptr(fd), "nftables events"), port: port, drifted: make(chan struct{}, 1)}
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, watchBytes)
	err = unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
	if err == nil {
		err = w.listen(true)
	}
	if err != nil {
		w.file.Close()
		return nil, fmt.Errorf("watch nf_tables: %w", err)
	}
	return w, nil
}

// listen begins or stops to hear of transactions.
func (w *watch) listen(on bool) error {
	option := unix.NETLINK_DROP_MEMBERSHIP
	if on {
		option = unix.NETLINK_ADD_MEMBERSHIP
	}
	raw, err := w.file.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		failed = unix.SetsockoptInt(int(fd), unix.SOL_NETLINK, option, unix.NFNLGRP_NFTABLES)
	})
	return errors.Join(err, failed)
}

// own commits a transaction of our own. While a large one runs nobody listens;
// generations tell whether others changed something then.
func (w *watch) own(k *socket, m *messages) error {
	if len(m.b) < quietBytes {
		return k.commitMessages(m)
	}
	before, err := k.generation()
	if err == nil {
		err = w.listen(false)
	}
	if err != nil {
		return err
	}
	failed := k.commitMessages(m)
	if err := w.listen(true); err != nil {
		return errors.Join(failed, err)
	}
	after, err := k.generation()
	if err != nil {
		return errors.Join(failed, err)
	}
	if failed == nil && after != before+1 {
		w.signal()
	}
	return failed
}

func (w *watch) signal() {
	select {
	case w.drifted <- struct{}{}:
	default:
	}
}

// forget takes a signal that is there: a Sync is about to look.
func (w *watch) forget() {
	select {
	case <-w.drifted:
	default:
	}
}

// run reads events until close.
func (w *watch) run() {
	buffer := make([]byte, receiveBytes)
	for {
		n, err := w.file.Read(buffer)
		switch {
		case errors.Is(err, unix.ENOBUFS): // events were lost
			w.signal()
		case err != nil:
			return
		case w.foreign(buffer[:n]):
			w.signal()
		}
	}
}

// foreign reports whether an event of another's transaction is about our table.
func (w *watch) foreign(b []byte) bool {
	for m, err := range nfnetlink.Messages(b) {
		if err != nil || len(m.Payload) < nfnetlink.HeaderBytes {
			return true
		}
		// All events have the table's name first, but for those of the generation.
		if m.Port != w.port && m.Kind&0xff != unix.NFT_MSG_NEWGEN &&
			cString(attribute(m.Payload[nfnetlink.HeaderBytes:], unix.NFTA_TABLE_NAME)) == tableName {
			return true
		}
	}
	return false
}

func (w *watch) close() (err error) {
	w.closing.Do(func() { err = w.file.Close() })
	return err
}
