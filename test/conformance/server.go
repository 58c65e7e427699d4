// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"net/netip"
	"sync/atomic"
)

// question is what a client sends: a line of JSON, then payload or padding.
type question struct {
	// Upload bytes follow the line, Download bytes follow the answer (TCP).
	Upload, Download int
	// ReplySize pads the answer (UDP).
	ReplySize int
}

// worker is the inside of a process: its servers and its held connections.
type worker struct {
	name string
	held connections
	// ports counts the source ports that datagrams had.
	ports atomic.Uint32
}

func (w *worker) serve(at []netip.AddrPort) error {
	for _, a := range at {
		l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(a))
		if err != nil {
			return fmt.Errorf("listen: %w", err)
		}
		go w.serveTCP(l)
		u, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(a))
		if err != nil {
			return fmt.Errorf("listen: %w", err)
		}
		// Whole bursts of fragmented datagrams, see the table's cases.
		_ = u.SetReadBuffer(1 << 20)
		go w.serveUDP(u)
	}
	return w.serveSCTP(at)
}

func (w *worker) serveTCP(l *net.TCPListener) {
	for {
		c, err := l.AcceptTCP()
		if err != nil {
			continue
		}
		go func() {
			defer c.Close()
			w.converse(c)
		}()
	}
}

// converse answers questions until the client goes.
func (w *worker) converse(c *net.TCPConn) {
	in := bufio.NewReaderSize(c, 1<<16)
	for {
		line, err := in.ReadBytes('\n')
		var q question
		if err != nil || json.Unmarshal(line, &q) != nil {
			return
		}
		a := w.answer(c.LocalAddr().(*net.TCPAddr).AddrPort(), c.RemoteAddr().(*net.TCPAddr).AddrPort())
		sum := crc32.NewIEEE()
		n, err := io.CopyN(sum, in, int64(q.Upload))
		if err != nil {
			return
		}
		a.Bytes, a.Sum = int(n), sum.Sum32()
		text, _ := json.Marshal(a)
		if _, err := c.Write(append(text, '\n')); err != nil {
			return
		}
		if _, err := c.Write(pattern(q.Download)); err != nil {
			return
		}
	}
}

func (w *worker) answer(local, remote netip.AddrPort) answer {
	return answer{Backend: w.name, Local: unmapped(local), Remote: unmapped(remote)}
}

func (w *worker) serveUDP(u *net.UDPConn) {
	buf := make([]byte, 1<<16)
	local := u.LocalAddr().(*net.UDPAddr).AddrPort()
	for {
		n, from, err := u.ReadFromUDPAddrPort(buf)
		if err != nil {
			continue // an ICMP error about an earlier answer
		}
		var q question
		line, _, _ := bytes.Cut(buf[:n], []byte("\n"))
		if json.Unmarshal(line, &q) != nil {
			continue
		}
		a := w.answer(local, from)
		a.Bytes, a.Sum = n, crc32.ChecksumIEEE(buf[:n])
		text, _ := json.Marshal(a)
		_, _ = u.WriteToUDPAddrPort(padded(text, q.ReplySize), from)
	}
}

// padded is a line followed by the pattern, size bytes in all where it is
// longer than the line.
func padded(line []byte, size int) []byte {
	line = append(line, '\n')
	if len(line) >= size {
		return line
	}
	return append(line, pattern(size-len(line))...)
}

// pattern is what bulk payload looks like: no two of its MTUs are alike.
func pattern(n int) []byte {
	b := make([]byte, n)
	x := uint32(2463534242)
	for i := range b {
		x ^= x << 13
		x ^= x >> 17
		x ^= x << 5
		b[i] = byte(x)
	}
	return b
}

func unmapped(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap().WithZone(""), a.Port())
}
