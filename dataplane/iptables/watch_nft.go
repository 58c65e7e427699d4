// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// nftEye listens to nf_tables' notifications. Each transaction is told as a
// message for each chain and rule that it changed, then one NEWGEN. Those that
// name a chain of ours concern us. That they are our own is known by counting:
// the sender's process id, which NEWGEN has, is one of the initial PID
// namespace, and the agent may be in another.
type nftEye struct {
	file     *os.File // events
	requests int      // socket to ask for the generation
	buffer   []byte

	concerns  bool // the transaction that is being told has named us
	seen      int  // transactions that concerned us
	overrun   atomic.Bool
	before    uint32 // generation before own changes
	beforeErr error
}

// eventBuffer holds the events of some ten thousand rules. More, as of a first
// load, overrun it: then generations are compared.
const eventBuffer = 8 << 20

const newGeneration = unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_NEWGEN

func newNFTEye() (*nftEye, error) {
	e := &nftEye{requests: -1, buffer: make([]byte, 64<<10)}
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("open netlink socket for nf_tables events: %w", err)
	}
	e.file = os.NewFile(uintptr(fd), "nf_tables events")
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, eventBuffer); err != nil {
		err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, eventBuffer)
		if err != nil {
			e.close()
			return nil, fmt.Errorf("size the buffer of nf_tables events: %w", err)
		}
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		e.close()
		return nil, fmt.Errorf("bind netlink socket: %w", err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, unix.NFNLGRP_NFTABLES); err != nil {
		e.close()
		return nil, fmt.Errorf("listen to nf_tables events: %w", err)
	}
	e.requests, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		e.close()
		return nil, fmt.Errorf("open netlink socket for nf_tables: %w", err)
	}
	return e, nil
}

func (e *nftEye) close() error {
	if e.requests >= 0 {
		unix.Close(e.requests)
		e.requests = -1
	}
	return e.file.Close()
}

// wait peeks: what there is stays for look.
func (e *nftEye) wait(context.Context) error {
	raw, err := e.file.SyscallConn()
	if err != nil {
		return err
	}
	var one [1]byte
	return raw.Read(func(fd uintptr) bool {
		_, _, err := unix.Recvfrom(int(fd), one[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		if errors.Is(err, unix.ENOBUFS) {
			e.overrun.Store(true)
		}
		return !errors.Is(err, unix.EAGAIN)
	})
}

func (e *nftEye) look() (foreign bool) {
	e.drain()
	foreign = e.seen > 0 || e.overrun.Load()
	e.seen = 0
	e.overrun.Store(false)
	return foreign
}

func (e *nftEye) open() {
	// What others did before is not looked past: it stays in seen.
	e.drain()
	e.before, e.beforeErr = e.generation()
}

// shut: the events of a transaction are sent before its command returns.
func (e *nftEye) shut(commits int) (foreign bool) {
	e.drain()
	foreign = e.seen != commits
	if e.overrun.Load() {
		after, err := e.generation()
		foreign = errors.Join(err, e.beforeErr) != nil || after-e.before != uint32(commits)
	}
	e.seen = 0
	e.overrun.Store(false)
	return foreign
}

// drain counts the transactions in all events that are there.
func (e *nftEye) drain() {
	raw, err := e.file.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		for {
			n, _, err := unix.Recvfrom(int(fd), e.buffer, unix.MSG_DONTWAIT)
			switch {
			case err == nil:
				e.count(e.buffer[:n])
			case errors.Is(err, unix.ENOBUFS):
				e.overrun.Store(true)
			case !errors.Is(err, unix.EINTR):
				return
			}
		}
	})
}

func (e *nftEye) count(messages []byte) {
	for len(messages) >= unix.SizeofNlMsghdr {
		size := int(binary.NativeEndian.Uint32(messages))
		if size < unix.SizeofNlMsghdr || size > len(messages) {
			return
		}
		if binary.NativeEndian.Uint16(messages[4:]) == newGeneration {
			if e.concerns {
				e.seen++
			}
			e.concerns = false
		} else if bytes.Contains(messages[:size], []byte(prefix)) {
			e.concerns = true
		}
		messages = messages[min(len(messages), (size+3)&^3):]
	}
}

// generation counts the transactions of this network namespace.
func (e *nftEye) generation() (uint32, error) {
	request := make([]byte, unix.SizeofNlMsghdr+4) // and a nfgenmsg, all 0
	binary.NativeEndian.PutUint32(request, uint32(len(request)))
	binary.NativeEndian.PutUint16(request[4:], unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETGEN)
	binary.NativeEndian.PutUint16(request[6:], unix.NLM_F_REQUEST)
	if err := unix.Sendto(e.requests, request, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return 0, fmt.Errorf("ask nf_tables for its generation: %w", err)
	}
	answer := make([]byte, 4096)
	n, _, err := unix.Recvfrom(e.requests, answer, 0)
	if err != nil {
		return 0, fmt.Errorf("read nf_tables' generation: %w", err)
	}
	attributes := answer[min(n, len(request)):n]
	for len(attributes) >= 8 {
		size := int(binary.NativeEndian.Uint16(attributes))
		if binary.NativeEndian.Uint16(attributes[2:]) == unix.NFTA_GEN_ID && size == 8 {
			return binary.BigEndian.Uint32(attributes[4:]), nil
		}
		if size < 4 {
			break
		}
		attributes = attributes[min(len(attributes), (size+3)&^3):]
	}
	return 0, errors.New("read nf_tables' generation: it is not in the answer")
}
