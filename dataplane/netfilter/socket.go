// SPDX-License-Identifier: Apache-2.0

package netfilter

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"fairlead.dev/dataplane/nfnetlink"
)

// socket speaks nfnetlink (linux/netfilter/nfnetlink.h). Answers are handed
// on message by message out of one buffer: libraries at hand collect a whole
// dump first, which for a table of millions of flows is gigabytes.
type socket struct {
	fd  int
	seq uint32
	in  []byte
}

// receiveBytes is the most that the kernel puts into one part of a dump
// (NLMSG_GOODSIZE grows to 32 KiB with the reader's buffer, netlink_dump).
const receiveBytes = 32 << 10

// answerSeconds is how long one part of an answer may take: the kernel answers
// in the call that asks, so this only bounds a bug.
const answerSeconds = 10

func openSocket() (*socket, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("open netfilter netlink socket: %w", err)
	}
	s := &socket{fd: fd, in: make([]byte, receiveBytes)}
	if err = unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err == nil {
		err = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: answerSeconds})
	}
	if err != nil {
		s.close()
		return nil, fmt.Errorf("set up netfilter netlink socket: %w", err)
	}
	return s, nil
}

func (s *socket) close() error {
	if s.fd < 0 {
		return nil
	}
	err := unix.Close(s.fd)
	s.fd = -1
	return err
}

// ask sends one request and hands each answer's payload, with the nfgenmsg
// header, to each. It is valid during that call only. The answer is read to
// its end whatever each does.
func (s *socket) ask(command uint8, flags uint16, family uint8, attributes []byte, each func(payload []byte)) error {
	if s.fd < 0 {
		return errors.New("conntrack is closed")
	}
	s.seq++
	if err := s.send(command, flags, family, attributes); err != nil {
		return err
	}
	for {
		n, _, err := unix.Recvfrom(s.fd, s.in, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("receive from netfilter: %w", err)
		}
		if done, err := s.split(s.in[:n], each); done || err != nil {
			return err
		}
	}
}

func (s *socket) send(command uint8, flags uint16, family uint8, attributes []byte) error {
	b := make([]byte, 0, unix.NLMSG_HDRLEN+nfnetlink.HeaderBytes+len(attributes))
	b = binary.NativeEndian.AppendUint32(b, uint32(cap(b)))
	b = binary.NativeEndian.AppendUint16(b, unix.NFNL_SUBSYS_CTNETLINK<<8|uint16(command))
	b = binary.NativeEndian.AppendUint16(b, unix.NLM_F_REQUEST|flags)
	b = binary.NativeEndian.AppendUint32(b, s.seq)
	b = binary.NativeEndian.AppendUint32(b, 0) // from: the kernel knows
	b = append(b, family, unix.NFNETLINK_V0, 0, 0)
	b = append(b, attributes...)
	if err := unix.Sendto(s.fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("send to netfilter: %w", err)
	}
	return nil
}

// split walks the messages of one datagram and reports whether the answer to
// the last request is complete.
func (s *socket) split(b []byte, each func(payload []byte)) (done bool, err error) {
	for m, err := range nfnetlink.Messages(b) {
		switch {
		case err != nil:
			return true, err
		case m.Sequence != s.seq: // the rest of an answer that was given up
			continue
		}
		switch m.Kind {
		case unix.NLMSG_ERROR, unix.NLMSG_DONE:
			if len(m.Payload) < 4 {
				return true, nil
			}
			if code := int32(binary.NativeEndian.Uint32(m.Payload)); code < 0 {
				return true, unix.Errno(-code)
			}
			return true, nil
		default:
			if each != nil {
				each(m.Payload)
			}
		}
	}
	return false, nil
}
