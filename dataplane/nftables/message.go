// SPDX-License-Identifier: Apache-2.0

package nftables

import (
	"encoding/binary"

	"golang.org/x/sys/unix"

	"fairlead.dev/dataplane/nfnetlink"
)

// messages are netlink messages to nf_tables, one after the other.
type messages struct {
	b     []byte
	start int // of the message that is being written
	count uint32
}

// begin starts a message NFT_MSG_kind about a family.
func (m *messages) begin(kind uint16, flags uint16, family uint8) {
	m.header(unix.NFNL_SUBSYS_NFTABLES<<8|kind, flags, family, 0)
}

func (m *messages) header(kind, flags uint16, family uint8, resource uint16) {
	m.start = len(m.b)
	m.b = append(m.b, 0, 0, 0, 0)
	m.b = binary.NativeEndian.AppendUint16(m.b, kind)
	m.b = binary.NativeEndian.AppendUint16(m.b, unix.NLM_F_REQUEST|flags)
	m.b = append(m.b, 0, 0, 0, 0, 0, 0, 0, 0) // sequence: see socket.number; port
	m.b = append(m.b, family, unix.NFNETLINK_V0)
	m.b = binary.BigEndian.AppendUint16(m.b, resource)
	m.count++
}

// end finishes the message.
func (m *messages) end() {
	binary.NativeEndian.PutUint32(m.b[m.start:], uint32(len(m.b)-m.start))
}

// nest starts an attribute that holds others; unnest ends it.
func (m *messages) nest(kind uint16) (at int) {
	at = len(m.b)
	m.b = append(m.b, 0, 0)
	m.b = binary.NativeEndian.AppendUint16(m.b, kind|unix.NLA_F_NESTED)
	return at
}

func (m *messages) unnest(at int) {
	binary.NativeEndian.PutUint16(m.b[at:], uint16(len(m.b)-at))
}

func (m *messages) bytes(kind uint16, v []byte) {
	m.b = nfnetlink.AppendAttribute(m.b, kind, v)
}

func (m *messages) text(kind uint16, v string) {
	m.b = binary.NativeEndian.AppendUint16(m.b, uint16(unix.NLA_HDRLEN+len(v)+1))
	m.b = binary.NativeEndian.AppendUint16(m.b, kind)
	m.b = append(m.b, v...)
	m.b = append(m.b, 0)
	m.pad()
}

func (m *messages) u32(kind uint16, v uint32) {
	m.b = binary.NativeEndian.AppendUint16(m.b, unix.NLA_HDRLEN+4)
	m.b = binary.NativeEndian.AppendUint16(m.b, kind)
	m.b = binary.BigEndian.AppendUint32(m.b, v)
}

func (m *messages) pad() {
	for len(m.b)%4 != 0 {
		m.b = append(m.b, 0)
	}
}

// attribute is the value of the first attribute of a kind, nil without one.
func attribute(b []byte, kind uint16) []byte {
	for k, v := range nfnetlink.Attributes(b) {
		if k == kind {
			return v
		}
	}
	return nil
}

// cString is a string up to its NUL.
func cString(v []byte) string {
	for i, c := range v {
		if c == 0 {
			return string(v[:i])
		}
	}
	return string(v)
}
