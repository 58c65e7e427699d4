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
// a common header (RFC 9260, 3.1) with the right CRC32c, and one DATA-like
// chunk that holds a question or an answer.

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

const (
	sctpHeader = 12 // bytes: ports, verification tag, checksum
	sctpChunk  = 4  // bytes: type, flags, length
)

func sctpPacket(from, to uint16, payload []byte) []byte {
	p := make([]byte, sctpHeader+sctpChunk, sctpHeader+sctpChunk+len(payload)+3)
	binary.BigEndian.PutUint16(p[0:], from)
	binary.BigEndian.PutUint16(p[2:], to)
	binary.BigEndian.PutUint32(p[4:], 0x5eed)
	binary.BigEndian.PutUint16(p[sctpHeader+2:], uint16(sctpChunk+len(payload)))
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
	if len(p) < sctpHeader+sctpChunk {
		return 0, 0, nil, false
	}
	p = slices.Clone(p)
	sum := binary.LittleEndian.Uint32(p[8:])
	clear(p[8:12])
	length := int(binary.BigEndian.Uint16(p[sctpHeader+2:]))
	if crc32.Checksum(p, castagnoli) != sum || length < sctpChunk || sctpHeader+length > len(p) {
		return 0, 0, nil, false
	}
	return binary.BigEndian.Uint16(p[0:]), binary.BigEndian.Uint16(p[2:]), p[sctpHeader+sctpChunk : sctpHeader+length], true
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
				_, _ = c.WriteToIP(sctpPacket(port, source, text), from)
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
	if _, err := c.Write(sctpPacket(port, r.To.Port(), []byte("{}"))); err != nil {
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
