// SPDX-License-Identifier: Apache-2.0

// Package nfnetlink is the wire format of netfilter's netlink sockets
// (linux/netlink.h, linux/netfilter/nfnetlink.h). It knows no subsystem and
// opens no socket.
package nfnetlink

import (
	"encoding/binary"
	"fmt"
	"iter"

	"golang.org/x/sys/unix"
)

// HeaderBytes is what a payload has before its attributes: a struct nfgenmsg.
const HeaderBytes = 4

const typeMask = 1<<14 - 1 // of an attribute's type; above it are flags

// Message is one of a datagram's. Its payload is the datagram's memory.
type Message struct {
	Kind, Flags uint16
	Sequence    uint32
	Port        uint32 // the socket that asked for it, or caused the event
	Payload     []byte
}

// Messages walks the messages of one datagram. One that claims a size that
// cannot be is an error, and the last.
func Messages(b []byte) iter.Seq2[Message, error] {
	return func(yield func(Message, error) bool) {
		for len(b) >= unix.NLMSG_HDRLEN {
			size := int(binary.NativeEndian.Uint32(b))
			if size < unix.NLMSG_HDRLEN || size > len(b) {
				yield(Message{}, fmt.Errorf("netfilter sent a message of %d bytes in %d", size, len(b)))
				return
			}
			m := Message{
				Kind: binary.NativeEndian.Uint16(b[4:]), Flags: binary.NativeEndian.Uint16(b[6:]),
				Sequence: binary.NativeEndian.Uint32(b[8:]), Port: binary.NativeEndian.Uint32(b[12:]),
				Payload: b[unix.NLMSG_HDRLEN:size],
			}
			b = b[min(len(b), (size+3)&^3):]
			if !yield(m, nil) {
				return
			}
		}
	}
}

// Attributes walks attributes; what is cut short ends it.
func Attributes(b []byte) iter.Seq2[uint16, []byte] {
	return func(yield func(uint16, []byte) bool) {
		for len(b) >= unix.NLA_HDRLEN {
			size := int(binary.NativeEndian.Uint16(b))
			if size < unix.NLA_HDRLEN || size > len(b) {
				return
			}
			if !yield(binary.NativeEndian.Uint16(b[2:])&typeMask, b[unix.NLA_HDRLEN:size]) {
				return
			}
			b = b[min(len(b), (size+3)&^3):]
		}
	}
}

// Uint32 is an attribute's value in network byte order, 0 where it is no such.
func Uint32(v []byte) uint32 {
	if len(v) != 4 {
		return 0
	}
	return binary.BigEndian.Uint32(v)
}

// AppendAttribute appends one attribute, padded.
func AppendAttribute(b []byte, kind uint16, value []byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(unix.NLA_HDRLEN+len(value)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = append(b, value...)
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}
