// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"cmp"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"net"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// SCTP is spoken over raw sockets, so that it is tested on kernels without it:
// a common header (RFC 9260, 3.1) with the right CRC32c and one chunk, the INIT
// that begins an association or the INIT ACK that answers it, since whoever
// tracks connections takes no other. The question or answer is an optional
// parameter of the chunk, of a type that receivers have to skip.

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

const (
	sctpHeader    = 12 // bytes: ports, verification tag, checksum
	sctpChunk     = 20 // bytes of an INIT: type, flags, length, tag, window, streams, TSN
	sctpParameter = 4  // bytes: type, length
	sctpTag       = 0x5eed

	sctpInit    = 1
	sctpInitAck = 2
)

// sctpPacket is an INIT, or the INIT ACK with the tag that the INIT asked for.
func sctpPacket(kind byte, from, to uint16, payload []byte) []byte {
	p := make([]byte, sctpHeader+sctpChunk+sctpParameter, sctpHeader+sctpChunk+sctpParameter+len(payload)+3)
	binary.BigEndian.PutUint16(p[0:], from)
	binary.BigEndian.PutUint16(p[2:], to)
	if kind == sctpInitAck {
		binary.BigEndian.PutUint32(p[4:], sctpTag)
	}
	chunk := p[sctpHeader:]
	chunk[0] = kind
	binary.BigEndian.PutUint16(chunk[2:], uint16(sctpChunk+sctpParameter+len(payload)))
	binary.BigEndian.PutUint32(chunk[4:], sctpTag)
	binary.BigEndian.PutUint32(chunk[8:], 1<<16)
	binary.BigEndian.PutUint16(chunk[12:], 1)
	binary.BigEndian.PutUint16(chunk[14:], 1)
	binary.BigEndian.PutUint16(chunk[sctpChunk:], 0x8000) // skip if unknown (RFC 9260, 3.2.1)
	binary.BigEndian.PutUint16(chunk[sctpChunk+2:], uint16(sctpParameter+len(payload)))
	p = append(p, payload...)
	for len(p)%4 != 0 {
		p = append(p, 0)
	}
	// Transmitted least significant byte first (RFC 9260, appendix A).
	binary.LittleEndian.PutUint32(p[8:], crc32.Checksum(p, castagnoli))
	return p
}

// sctpParse returns ports and payload, or ok false where the packet is broken.
func sctpParse(p []byte) (from, to uint16, payload []byte, ok bool) {
	if len(p) < sctpHeader+sctpChunk+sctpParameter {
		return 0, 0, nil, false
	}
	p = slices.Clone(p)
	sum := binary.LittleEndian.Uint32(p[8:])
	clear(p[8:12])
	length := int(binary.BigEndian.Uint16(p[sctpHeader+2:]))
	if crc32.Checksum(p, castagnoli) != sum || length < sctpChunk+sctpParameter || sctpHeader+length > len(p) {
		return 0, 0, nil, false
	}
	payload = p[sctpHeader+sctpChunk+sctpParameter : sctpHeader+length]
	return binary.BigEndian.Uint16(p[0:]), binary.BigEndian.Uint16(p[2:]), payload, true
}

// serveSCTP answers at the ports of its addresses.
func (w *worker) serveSCTP(at []netip.AddrPort) error {
	ports := map[netip.Addr][]uint16{}
	for _, a := range at {
		ports[a.Addr()] = append(ports[a.Addr()], a.Port())
	}
	for addr, mine := range ports {
		c, err := listenSCTP(addr)
		if err != nil {
			return err
		}
		go func() {
			buf := make([]byte, 1<<16)
			for {
				n, from, err := c.ReadFromIP(buf)
				if err != nil {
					continue
				}
				source, port, _, ok := sctpParse(buf[:n])
				if !ok || !slices.Contains(mine, port) {
					continue
				}
				client, _ := netip.AddrFromSlice(from.IP)
				text, _ := json.Marshal(w.answer(netip.AddrPortFrom(addr, port), netip.AddrPortFrom(client.Unmap(), source)))
				_, _ = c.WriteToIP(sctpPacket(sctpInitAck, port, source, text), from)
			}
		}()
	}
	return nil
}

func listenSCTP(at netip.Addr) (*net.IPConn, error) {
	network := "ip4:132"
	if at.Is6() {
		network = "ip6:132"
	}
	c, err := net.ListenIP(network, &net.IPAddr{IP: at.AsSlice()})
	if err != nil {
		return nil, fmt.Errorf("listen for SCTP: %w", err)
	}
	return c, nil
}

// askSCTP sends one packet from a raw socket and waits for the one that answers.
func askSCTP(r request) outcome {
	start := time.Now()
	network := "ip4:132"
	if r.To.Addr().Is6() {
		network = "ip6:132"
	}
	c, err := net.DialIP(network, nil, &net.IPAddr{IP: r.To.Addr().AsSlice()})
	if err != nil {
		return failure(err, start)
	}
	defer c.Close()
	_ = c.SetDeadline(start.Add(cmp.Or(r.Timeout, answerWithin)))
	port := uint16(20000 + start.UnixNano()%20000)
	if _, err := c.Write(sctpPacket(sctpInit, port, r.To.Port(), []byte("{}"))); err != nil {
		return failure(err, start)
	}
	buf := make([]byte, 1<<16)
	for {
		n, err := c.Read(buf)
		if err != nil {
			return failure(err, start)
		}
		from, to, payload, ok := sctpParse(withoutHeader(buf[:n]))
		if !ok || from != r.To.Port() || to != port {
			continue
		}
		o := outcome{Source: r.To, Peer: r.To, Elapsed: time.Since(start)}
		if err := json.Unmarshal(payload, &o.answer); err != nil {
			return failure(err, start)
		}
		return o
	}
}

// withoutHeader takes off the IPv4 header that raw sockets deliver.
func withoutHeader(p []byte) []byte {
	if len(p) > unix.SizeofICMPv6Filter && p[0]>>4 == 4 && p[9] == unix.IPPROTO_SCTP {
		return p[int(p[0]&15)*4:]
	}
	return p
}
