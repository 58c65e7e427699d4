// SPDX-License-Identifier: Apache-2.0

package nftables

import (
	"encoding/binary"
	"math"

	"golang.org/x/sys/unix"

	"fairlead.dev/dataplane/nfnetlink"
)

// element is one of a set, in either direction. Its slices are valid as long
// as the buffer they are in.
type element struct {
	key, keyEnd []byte
	data        []byte
	chain       string // verdict: jump there, if not empty
	comment     string
	counted     bool
	packets     uint64 // read only: what the counter counted
	timeout     uint64 // read only: ms
	expires     uint64 // read only: ms
}

// commentMax is how long a comment can be: its TLV has one byte for the length,
// which counts a NUL, and the kernel takes 256 bytes.
const commentMax = 250

const (
	// listBytesMax is how much of a list of elements goes into one message: an
	// attribute's length has 16 bits.
	listBytesMax = math.MaxUint16 - 1024

	attrKeyEnd = 10 // NFTA_SET_ELEM_KEY_END
)

// elementList is a list of elements for one set, in pieces that fit a message.
type elementList struct {
	pieces [][]byte
	count  int
}

func (l *elementList) add(e *element) {
	n := len(l.pieces)
	if n == 0 || len(l.pieces[n-1]) > listBytesMax {
		l.pieces = append(l.pieces, nil)
		n++
	}
	m := messages{b: l.pieces[n-1]}
	e.append(&m)
	l.pieces[n-1] = m.b
	l.count++
}

func (e *element) append(m *messages) {
	at := m.nest(unix.NFTA_LIST_ELEM)
	value := func(kind uint16, v []byte) {
		in := m.nest(kind)
		m.bytes(unix.NFTA_DATA_VALUE, v)
		m.unnest(in)
	}
	value(unix.NFTA_SET_ELEM_KEY, e.key)
	if e.keyEnd != nil {
		value(attrKeyEnd, e.keyEnd)
	}
	if e.data != nil {
		value(unix.NFTA_SET_ELEM_DATA, e.data)
	}
	if e.chain != "" {
		in := m.nest(unix.NFTA_SET_ELEM_DATA)
		verdict := m.nest(unix.NFTA_DATA_VERDICT)
		jump := int32(unix.NFT_JUMP)
		m.u32(unix.NFTA_VERDICT_CODE, uint32(jump))
		m.text(unix.NFTA_VERDICT_CHAIN, e.chain)
		m.unnest(verdict)
		m.unnest(in)
	}
	if e.comment != "" {
		m.b = appendComment(m.b, unix.NFTA_SET_ELEM_USERDATA, e.comment)
		m.pad()
	}
	if e.counted {
		in := m.nest(unix.NFTA_SET_ELEM_EXPR)
		m.text(unix.NFTA_EXPR_NAME, "counter")
		m.unnest(m.nest(unix.NFTA_EXPR_DATA))
		m.unnest(in)
	}
	m.unnest(at)
}

// appendComment appends user data with a comment as nft writes it, not padded.
func appendComment(b []byte, kind uint16, comment string) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(unix.NLA_HDRLEN+2+len(comment)+1))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = append(b, 0, byte(len(comment)+1)) // NFTNL_UDATA_SET_ELEM_COMMENT
	b = append(b, comment...)
	return append(b, 0)
}

// commentOf reads the comment of user data.
func commentOf(udata []byte) []byte {
	for len(udata) >= 2 && len(udata) >= 2+int(udata[1]) {
		if v := udata[2 : 2+udata[1]]; udata[0] == 0 && len(v) > 0 {
			return v[:len(v)-1]
		}
		udata = udata[2+udata[1]:]
	}
	return nil
}

const (
	msgAddElements    = unix.NFT_MSG_NEWSETELEM
	msgDeleteElements = unix.NFT_MSG_DELSETELEM
)

// change appends the message that adds the elements to a set or deletes them.
func (l *elementList) change(m *messages, kind uint16, f *family, set setID) {
	flags := uint16(0)
	if kind == unix.NFT_MSG_NEWSETELEM {
		flags = unix.NLM_F_CREATE | unix.NLM_F_EXCL
	}
	for _, piece := range l.pieces {
		m.begin(kind, flags, f.proto)
		m.text(unix.NFTA_SET_ELEM_LIST_TABLE, f.table)
		m.text(unix.NFTA_SET_ELEM_LIST_SET, set.String())
		at := m.nest(unix.NFTA_SET_ELEM_LIST_ELEMENTS)
		m.b = append(m.b, piece...)
		m.unnest(at)
		m.end()
	}
}

// listElements hands over the elements of a set; each is valid until the next.
func (s *socket) listElements(f *family, set setID, each func(*element)) error {
	var e element
	return s.list(unix.NFT_MSG_GETSETELEM, f.proto, func(m *messages) {
		m.text(unix.NFTA_SET_ELEM_LIST_TABLE, f.table)
		m.text(unix.NFTA_SET_ELEM_LIST_SET, set.String())
	}, func(attrs []byte) {
		for _, list := range nfnetlink.Attributes(attribute(attrs, unix.NFTA_SET_ELEM_LIST_ELEMENTS)) {
			e.decode(list)
			each(&e)
		}
	})
}

// decode reads an element. Its comment is left in data form: see commentBytes.
func (e *element) decode(b []byte) {
	*e = element{}
	for kind, v := range nfnetlink.Attributes(b) {
		switch kind {
		case unix.NFTA_SET_ELEM_KEY:
			e.key = attribute(v, unix.NFTA_DATA_VALUE)
		case attrKeyEnd:
			e.keyEnd = attribute(v, unix.NFTA_DATA_VALUE)
		case unix.NFTA_SET_ELEM_DATA:
			e.data = attribute(v, unix.NFTA_DATA_VALUE)
			if verdict := attribute(v, unix.NFTA_DATA_VERDICT); verdict != nil {
				e.chain = cString(attribute(verdict, unix.NFTA_VERDICT_CHAIN))
			}
		case unix.NFTA_SET_ELEM_USERDATA:
			e.comment = known(commentOf(v))
		case unix.NFTA_SET_ELEM_TIMEOUT:
			e.timeout = be64(v)
		case unix.NFTA_SET_ELEM_EXPIRATION:
			e.expires = be64(v)
		case unix.NFTA_SET_ELEM_EXPR:
			e.counted = true
			if data := attribute(v, unix.NFTA_EXPR_DATA); data != nil {
				e.packets = be64(attribute(data, unix.NFTA_COUNTER_PACKETS))
			}
		}
	}
}

// known spares the memory for comments that many elements have.
func known(b []byte) string {
	for _, s := range slotComments {
		if string(b) == s {
			return s
		}
	}
	return string(b)
}

func be64(v []byte) uint64 {
	if len(v) != 8 {
		return 0
	}
	return binary.BigEndian.Uint64(v)
}
