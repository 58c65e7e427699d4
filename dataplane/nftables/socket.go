// SPDX-License-Identifier: Apache-2.0

package nftables

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"fairlead.dev/dataplane/nfnetlink"
)

// errInterrupted is a listing during which the rule set changed.
var errInterrupted = errors.New("the rule set changed while it was read")

// socket talks to nf_tables of the network namespace it was opened in. It is
// used by one goroutine at a time.
type socket struct {
	fd       int
	port     uint32 // as which the kernel knows it
	sequence uint32
	buffer   []byte
}

const (
	// receiveBytes holds the largest message of a listing (NLMSG_GOODSIZE at
	// most, or what recvmsg asked for last, up to 32 KiB).
	receiveBytes = 64 << 10
	// batchBytesMax is the largest transaction; the send buffer has to hold it.
	batchBytesMax = 64 << 20
	// replyTimeout is how long the kernel may take for one transaction.
	replySeconds = 60
)

// openSocket opens one in the calling thread's network namespace.
func openSocket() (*socket, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	s := &socket{fd: fd, buffer: make([]byte, receiveBytes)}
	err = unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
	if err == nil {
		var sa unix.Sockaddr
		if sa, err = unix.Getsockname(fd); err == nil {
			s.port = sa.(*unix.SockaddrNetlink).Pid
		}
	}
	if err == nil {
		err = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: replySeconds})
	}
	if err != nil {
		s.close()
		return nil, fmt.Errorf("prepare netlink socket: %w", err)
	}
	// Without the capability the limits of the system hold, for what fits them.
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, batchBytesMax)
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 1<<20)
	return s, nil
}

func (s *socket) close() error { return unix.Close(s.fd) }

// number gives consecutive sequence numbers to messages and asks for one
// acknowledgement, of the last of them.
func (s *socket) number(b []byte, ack int) (first, last uint32) {
	first = s.sequence + 1
	for at := 0; at < len(b); {
		s.sequence++
		binary.NativeEndian.PutUint32(b[at+8:], s.sequence)
		if at == ack {
			binary.NativeEndian.PutUint16(b[at+6:], binary.NativeEndian.Uint16(b[at+6:])|unix.NLM_F_ACK)
			last = s.sequence
		}
		at += int(binary.NativeEndian.Uint32(b[at:]))
	}
	return first, last
}

// commit makes a transaction of what fill writes: all of it comes into force at
// one instant, or nothing. The error is that of the first message that failed.
func (s *socket) commit(fill func(*messages)) error {
	m := &messages{}
	m.header(unix.NFNL_MSG_BATCH_BEGIN, 0, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES)
	m.end()
	fill(m)
	return s.commitMessages(m)
}

// commitMessages is commit of messages that begin with NFNL_MSG_BATCH_BEGIN.
func (s *socket) commitMessages(m *messages) error {
	if m.count < 2 {
		return nil
	}
	ack := m.start
	m.header(unix.NFNL_MSG_BATCH_END, 0, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES)
	m.end()
	first, last := s.number(m.b, ack)
	if err := unix.Sendto(s.fd, m.b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("send a transaction of %d bytes: %w", len(m.b), err)
	}
	var failed error
	for done := false; !done; {
		err := s.receive(func(kind, _ uint16, sequence uint32, payload []byte) error {
			if kind != unix.NLMSG_ERROR || sequence < first || sequence > last || len(payload) < 4 {
				return nil // of an earlier transaction that was given up
			}
			if errno := int32(binary.NativeEndian.Uint32(payload)); errno != 0 && failed == nil {
				failed = fmt.Errorf("%s: %w", describe(m.b, sequence), unix.Errno(-errno))
			}
			done = done || sequence == last
			return nil
		})
		if err != nil {
			return err
		}
	}
	return failed
}

// describe says what the message with a sequence number was to do.
func describe(b []byte, sequence uint32) string {
	names := map[uint16]string{
		unix.NFT_MSG_NEWTABLE: "add table", unix.NFT_MSG_DELTABLE: "delete table", unix.NFT_MSG_NEWCHAIN: "add chain",
		unix.NFT_MSG_DELCHAIN: "delete chain", unix.NFT_MSG_NEWRULE: "add rule", unix.NFT_MSG_DELRULE: "delete rules",
		unix.NFT_MSG_NEWSET: "add set", unix.NFT_MSG_DELSET: "delete set", unix.NFT_MSG_NEWSETELEM: "add elements",
		unix.NFT_MSG_DELSETELEM: "delete elements", unix.NFT_MSG_NEWOBJ: "add object",
	}
	for at := 0; at < len(b); at += int(binary.NativeEndian.Uint32(b[at:])) {
		if binary.NativeEndian.Uint32(b[at+8:]) != sequence {
			continue
		}
		kind := binary.NativeEndian.Uint16(b[at+4:])
		if kind>>8 != unix.NFNL_SUBSYS_NFTABLES {
			break
		}
		end := at + int(binary.NativeEndian.Uint32(b[at:]))
		family := map[uint8]string{unix.NFPROTO_IPV4: "ip", unix.NFPROTO_IPV6: "ip6"}[b[at+unix.NLMSG_HDRLEN]]
		// All these messages have the table first and a name after it.
		attrs := b[at+unix.NLMSG_HDRLEN+nfnetlink.HeaderBytes : end]
		table, name := cString(attribute(attrs, 1)), attribute(attrs, 2)
		if kind&0xff == unix.NFT_MSG_NEWCHAIN || kind&0xff == unix.NFT_MSG_DELCHAIN {
			name = attribute(attrs, unix.NFTA_CHAIN_NAME)
		}
		return fmt.Sprintf("%s %s %s %s", names[kind&0xff], family, table, cString(name))
	}
	return "commit"
}

// receive reads one datagram and hands over its messages.
func (s *socket) receive(each func(kind, flags uint16, sequence uint32, payload []byte) error) error {
	n, _, err := unix.Recvfrom(s.fd, s.buffer, 0)
	for err == unix.EINTR {
		n, _, err = unix.Recvfrom(s.fd, s.buffer, 0)
	}
	if err != nil {
		return fmt.Errorf("receive from netlink: %w", err)
	}
	for m, err := range nfnetlink.Messages(s.buffer[:n]) {
		if err == nil {
			err = each(m.Kind, m.Flags, m.Sequence, m.Payload)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// list asks for a listing (NFT_MSG_GETkind) and hands over the attributes of
// each message. It gives errInterrupted where the rule set changed meanwhile,
// and fs.ErrNotExist (ENOENT) where there is no such table or set.
func (s *socket) list(kind uint16, family uint8, request func(*messages), each func(attrs []byte)) error {
	m := &messages{}
	m.begin(kind, unix.NLM_F_DUMP, family)
	if request != nil {
		request(m)
	}
	m.end()
	first, _ := s.number(m.b, -1)
	if err := unix.Sendto(s.fd, m.b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("ask nf_tables for a listing: %w", err)
	}
	interrupted := false
	for done := false; !done; {
		err := s.receive(func(kind, flags uint16, sequence uint32, payload []byte) error {
			if sequence != first {
				return nil
			}
			interrupted = interrupted || flags&unix.NLM_F_DUMP_INTR != 0
			switch kind {
			case unix.NLMSG_DONE, unix.NLMSG_ERROR:
				done = true
				if len(payload) >= 4 {
					if errno := int32(binary.NativeEndian.Uint32(payload)); errno != 0 {
						return fmt.Errorf("list: %w", unix.Errno(-errno))
					}
				}
			default:
				if len(payload) >= nfnetlink.HeaderBytes {
					each(payload[nfnetlink.HeaderBytes:])
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	if interrupted {
		return errInterrupted
	}
	return nil
}

// generation is the number of the rule set's state: each transaction adds one.
func (s *socket) generation() (id uint32, err error) {
	m := &messages{}
	m.begin(unix.NFT_MSG_GETGEN, 0, unix.AF_UNSPEC)
	m.end()
	first, _ := s.number(m.b, -1)
	if err := unix.Sendto(s.fd, m.b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return 0, fmt.Errorf("ask for the generation: %w", err)
	}
	for done := false; !done; {
		err = s.receive(func(kind, _ uint16, sequence uint32, payload []byte) error {
			if sequence != first {
				return nil
			}
			done = true
			if kind == unix.NLMSG_ERROR && len(payload) >= 4 {
				return fmt.Errorf("ask for the generation: %w", unix.Errno(-int32(binary.NativeEndian.Uint32(payload))))
			}
			if len(payload) >= nfnetlink.HeaderBytes {
				id = nfnetlink.Uint32(attribute(payload[nfnetlink.HeaderBytes:], unix.NFTA_GEN_ID))
			}
			return nil
		})
		if err != nil {
			return 0, err
		}
	}
	return id, nil
}
