// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// connections are the held ones by handle.
type connections struct {
	mu   sync.Mutex
	byID map[string]*connection
}

func (w *worker) carryOut(c call) ([]outcome, error) {
	switch c.Op {
	case opServe:
		return nil, w.serve(c.Listen)
	case opAsk:
		return w.askMany(c.Request), nil
	case opOpen:
		conn, o := w.open(c.Request)
		if conn != nil {
			w.held.put(c.Handle, conn)
		}
		return []outcome{o}, nil
	case opAgain:
		conn := w.held.get(c.Handle)
		if conn == nil {
			return nil, fmt.Errorf("no connection %q is held", c.Handle)
		}
		return []outcome{conn.ask(c.Request)}, nil
	case opClose:
		w.held.drop(c.Handle)
		return nil, nil
	}
	return nil, fmt.Errorf("unknown op %q", c.Op)
}

func (h *connections) put(id string, c *connection) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.byID == nil {
		h.byID = map[string]*connection{}
	}
	h.byID[id] = c
}

func (h *connections) get(id string) *connection {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.byID[id]
}

func (h *connections) drop(id string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if c := h.byID[id]; c != nil {
		c.Close()
		delete(h.byID, id)
	}
}

// askMany does a request Times times, Parallel at once, each over a connection
// of its own.
func (w *worker) askMany(r request) []outcome {
	all := make([]outcome, max(r.Times, 1))
	out := all
	if r.Unconnected && r.Times > 1 && r.Parallel == 0 {
		return w.askFromOneSocket(r)
	}
	places := make(chan struct{}, max(r.Parallel, 1))
	var wg, answered sync.WaitGroup
	var silence atomic.Bool
	if r.Hold {
		answered.Add(len(out))
	}
	for i := range out {
		places <- struct{}{}
		if silence.Load() && !r.Hold {
			out = out[:i] // more of the same would only take long
			break
		}
		wg.Go(func() {
			var conn *connection
			conn, all[i] = w.open(r)
			if all[i].Failure == timedOut {
				silence.Store(true)
			}
			<-places
			if r.Hold {
				answered.Done()
				answered.Wait()
				// Held all the while: ask once more over the same connection.
				if conn != nil && all[i].Failure == "" {
					all[i] = conn.ask(r)
				}
			}
			if conn != nil {
				conn.Close()
			}
		})
	}
	wg.Wait()
	return out
}

// askFromOneSocket sends every datagram from the same unconnected socket.
func (w *worker) askFromOneSocket(r request) []outcome {
	var out []outcome
	conn, o := w.open(r)
	out = append(out, o)
	for range r.Times - 1 {
		if conn == nil {
			break
		}
		out = append(out, conn.ask(r))
	}
	if conn != nil {
		conn.Close()
	}
	return out
}

// connection is an open socket to a server.
type connection struct {
	net.Conn
	in   *bufio.Reader
	dest netip.AddrPort // where an unconnected socket sends
}

// open connects and asks once. The connection is nil where there is none.
func (w *worker) open(r request) (*connection, outcome) {
	start := time.Now()
	if r.Protocol == "SCTP" {
		return nil, askSCTP(r)
	}
	conn, err := w.dial(r)
	if err != nil {
		return nil, failure(err, start)
	}
	again := conn.retransmits()
	o := conn.ask(r)
	o.Elapsed, o.SYNsAgain = time.Since(start), again
	return conn, o
}

// The source ports that Linux chooses from, unless told otherwise.
const firstPort, lastPort = 32768, 60999

// dial gives each UDP socket a source port that none had for as long as
// possible: the kernel's choice is random, and a flow of before that may go on
// would take a new socket for its own.
func (w *worker) dial(r request) (*connection, error) {
	if r.Protocol != "UDP" || r.Mapped || r.From.Port() != 0 {
		return dialFrom(r)
	}
	at := r.From.Addr()
	if !at.IsValid() && r.To.Addr().Is6() {
		at = netip.IPv6Unspecified()
	} else if !at.IsValid() {
		at = netip.IPv4Unspecified()
	}
	for {
		r.From = netip.AddrPortFrom(at, uint16(firstPort+w.ports.Add(1)%(lastPort-firstPort+1)))
		c, err := dialFrom(r)
		if !errors.Is(err, unix.EADDRINUSE) {
			return c, err
		}
	}
}

func dialFrom(r request) (*connection, error) {
	network := strings.ToLower(r.Protocol)
	to := r.To
	if r.Mapped {
		to = netip.AddrPortFrom(netip.AddrFrom16(to.Addr().As16()), to.Port())
	}
	setOptions := func(_, _ string, c syscall.RawConn) error { return control(c, r) }
	ctx, cancel := context.WithTimeout(context.Background(), cmp.Or(r.Timeout, answerWithin))
	defer cancel()
	if r.Unconnected {
		at := ""
		if r.From.IsValid() {
			at = r.From.String()
		} else if to.Addr().Is6() {
			at = "[::]:0"
			network = "udp6"
			if to.Addr().Is4In6() {
				network = "udp"
			}
		} else {
			at, network = "0.0.0.0:0", "udp4"
		}
		c, err := (&net.ListenConfig{Control: setOptions}).ListenPacket(ctx, network, at)
		if err != nil {
			return nil, err
		}
		return &connection{Conn: c.(*net.UDPConn), dest: to}, nil
	}
	if r.Mapped {
		return dialMapped(r, to)
	}
	d := net.Dialer{Control: setOptions, KeepAlive: -1}
	if r.From.IsValid() {
		d.LocalAddr = net.TCPAddrFromAddrPort(r.From)
		if network == "udp" {
			d.LocalAddr = net.UDPAddrFromAddrPort(r.From)
		}
	}
	c, err := d.DialContext(ctx, network, to.String())
	if err != nil {
		return nil, err
	}
	if t, ok := c.(*net.TCPConn); ok && r.From.Port() != 0 {
		// Closing resets: TIME_WAIT would keep the port from the next one.
		_ = t.SetLinger(0)
	}
	return &connection{Conn: c, in: bufio.NewReaderSize(c, 1<<16)}, nil
}

// dialMapped connects an IPv6 socket to an IPv4-mapped address, which package
// net would never do.
func dialMapped(r request, to netip.AddrPort) (*connection, error) {
	kind := unix.SOCK_STREAM
	if r.Protocol == "UDP" {
		kind = unix.SOCK_DGRAM
	}
	fd, err := unix.Socket(unix.AF_INET6, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	// It blocks for as long as the kernel sends SYNs: bound it.
	_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &unix.Timeval{Sec: 2})
	if err := unix.Connect(fd, &unix.SockaddrInet6{Port: int(to.Port()), Addr: to.Addr().As16()}); err != nil {
		unix.Close(fd)
		if errors.Is(err, unix.EINPROGRESS) {
			err = unix.ETIMEDOUT
		}
		return nil, os.NewSyscallError("connect", err)
	}
	f := os.NewFile(uintptr(fd), "mapped")
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	return &connection{Conn: c, in: bufio.NewReaderSize(c, 1<<16)}, nil
}

// An option of four bytes that every host skips: PadN in an extension header
// of eight bytes (RFC 8200, 4.2), or four NOPs (RFC 791).
const (
	padHeader = "\x00\x00\x01\x04\x00\x00\x00\x00"
	nopOption = "\x01\x01\x01\x01"
)

func control(c syscall.RawConn, r request) error {
	var err error
	controlErr := c.Control(func(fd uintptr) {
		if r.From.IsValid() && r.Reuse {
			err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
		}
		switch r.Options {
		case "hopopts":
			err = unix.SetsockoptString(int(fd), unix.IPPROTO_IPV6, unix.IPV6_HOPOPTS, padHeader)
		case "dstopts":
			err = unix.SetsockoptString(int(fd), unix.IPPROTO_IPV6, unix.IPV6_DSTOPTS, padHeader)
		case "nop":
			err = unix.SetsockoptString(int(fd), unix.IPPROTO_IP, unix.IP_OPTIONS, nopOption)
		}
	})
	return errors.Join(controlErr, err)
}

// ask sends the question and reads the answer.
func (c *connection) ask(r request) outcome {
	start := time.Now()
	o, err := c.exchange(r)
	if err != nil {
		o = failure(err, start)
	}
	o.Elapsed = time.Since(start)
	o.Self = unmapped(addrPort(c.LocalAddr()))
	if !c.dest.IsValid() {
		o.Peer = unmapped(c.peer())
	}
	return o
}

func (c *connection) exchange(r request) (outcome, error) {
	_ = c.SetDeadline(time.Now().Add(cmp.Or(r.Timeout, answerWithin)))
	text, err := json.Marshal(question{Upload: r.Upload, Download: r.Download, ReplySize: r.ReplySize})
	if err != nil {
		return outcome{}, err
	}
	if u, ok := c.Conn.(*net.UDPConn); ok {
		return c.exchangeDatagrams(u, padded(text, r.Size), r)
	}
	payload := pattern(r.Upload)
	if _, err := c.Write(append(append(text, '\n'), payload...)); err != nil {
		return outcome{}, err
	}
	line, err := c.in.ReadBytes('\n')
	if err != nil {
		return outcome{}, err
	}
	var o outcome
	if err := json.Unmarshal(line, &o.answer); err != nil {
		return outcome{}, err
	}
	o.Corrupt = r.Upload > 0 && o.Sum != crc32.ChecksumIEEE(payload)
	if r.Download > 0 {
		got := make([]byte, r.Download)
		if _, err := io.ReadFull(c.in, got); err != nil {
			return outcome{}, err
		}
		o.Corrupt = o.Corrupt || !bytes.Equal(got, pattern(r.Download))
	}
	return o, nil
}

func (c *connection) exchangeDatagrams(u *net.UDPConn, datagram []byte, r request) (outcome, error) {
	// Sent again like a resolver does, where a loss would be no failure.
	var err error
	if c.dest.IsValid() {
		// The destination may be another one than the socket was opened for.
		to := c.dest
		if r.To.IsValid() && !r.Mapped {
			to = r.To
		}
		_, err = u.WriteToUDPAddrPort(datagram, to)
	} else {
		_, err = u.Write(datagram)
	}
	if err != nil {
		return outcome{}, err
	}
	buf := make([]byte, 1<<16)
	n, from, err := u.ReadFromUDPAddrPort(buf)
	if err != nil {
		return outcome{}, err
	}
	o := outcome{Source: unmapped(from)}
	line, padding, _ := bytes.Cut(buf[:n], []byte("\n"))
	if err := json.Unmarshal(line, &o.answer); err != nil {
		return outcome{}, err
	}
	o.Corrupt = o.Sum != crc32.ChecksumIEEE(datagram) || r.ReplySize > 0 && (n != r.ReplySize || !bytes.Equal(padding, pattern(len(padding))))
	return o, nil
}

// retransmits counts the segments that TCP sent again so far.
func (c *connection) retransmits() (n int) {
	t, ok := c.Conn.(*net.TCPConn)
	if !ok {
		return 0
	}
	if raw, err := t.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) {
			if info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
				n = int(info.Total_retrans)
			}
		})
	}
	return n
}

// peer asks the kernel, not what package net remembers.
func (c *connection) peer() netip.AddrPort {
	var sa unix.Sockaddr
	if s, ok := c.Conn.(syscall.Conn); ok {
		if raw, err := s.SyscallConn(); err == nil {
			_ = raw.Control(func(fd uintptr) { sa, _ = unix.Getpeername(int(fd)) })
		}
	}
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr), uint16(sa.Port))
	}
	return netip.AddrPort{}
}

func addrPort(a net.Addr) netip.AddrPort {
	switch a := a.(type) {
	case *net.TCPAddr:
		return a.AddrPort()
	case *net.UDPAddr:
		return a.AddrPort()
	}
	return netip.AddrPort{}
}

// failures gives each errno its word.
var failures = []struct {
	errno error
	word  string
}{
	{unix.ECONNREFUSED, refused}, {unix.EHOSTUNREACH, unreachable}, {unix.ENETUNREACH, unreachable},
	{unix.ECONNRESET, reset}, {unix.EPIPE, reset}, {io.EOF, reset},
	{unix.ECONNABORTED, aborted}, {unix.EDESTADDRREQ, aborted}, {unix.EMSGSIZE, tooBig},
	{unix.ETIMEDOUT, timedOut}, {os.ErrDeadlineExceeded, timedOut}, {context.DeadlineExceeded, timedOut},
}

func failure(err error, start time.Time) outcome {
	o := outcome{Failure: failed, Detail: err.Error(), Elapsed: time.Since(start)}
	for _, f := range failures {
		if errors.Is(err, f.errno) {
			o.Failure = f.word
			return o
		}
	}
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		o.Failure = timedOut
	}
	return o
}
