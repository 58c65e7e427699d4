// SPDX-License-Identifier: Apache-2.0

package packetmodel

import (
	"encoding/binary"
	"hash/crc32"
	"slices"
)

// sum16 is the one's complement sum (RFC 1071).
func sum16(parts ...[]byte) uint16 {
	var sum uint64
	for _, b := range parts {
		for i, v := range b {
			if i%2 == 0 {
				sum += uint64(v) << 8
			} else {
				sum += uint64(v)
			}
		}
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	return uint16(sum)
}

// followed is the checksum that is as right, or as wrong, for after as check
// is for before.
func followed(check uint16, before, after []byte) uint16 {
	b := binary.BigEndian.AppendUint16(nil, ^check)
	return ^sum16(b, binary.BigEndian.AppendUint16(nil, ^sum16(before)), after)
}

// follow rewrites the checksum at b[at:] after other bytes changed.
func follow(b []byte, at int, before, after []byte) {
	binary.BigEndian.PutUint16(b[at:], followed(binary.BigEndian.Uint16(b[at:]), before, after))
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// followSCTP does for SCTP's CRC32c (RFC 9260, 6.8) what follow does: before
// and after are whole packets, of which only the ports differ.
func followSCTP(before, after []byte) {
	crc := func(b []byte) uint32 {
		b = slices.Clone(b)
		copy(b[8:12], []byte{0, 0, 0, 0})
		return crc32.Checksum(b, castagnoli)
	}
	binary.LittleEndian.PutUint32(after[8:], binary.LittleEndian.Uint32(before[8:])^crc(before)^crc(after))
}
