// SPDX-License-Identifier: Apache-2.0

// Package traffic is load on Services from a place in a lab: processes that ask
// servers of test/conformance over and over, new connections and held ones, and
// write down every question. It knows addresses only, and judges nothing.
package traffic

import (
	"bufio"
	"encoding/gob"
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
	"time"

	"golang.org/x/sys/unix"
)

// Mode is how a stream asks its questions.
type Mode string

const (
	TCPFresh  Mode = "tcp"            // a connection for each question
	UDPFresh  Mode = "udp"            // a connected socket for each question
	UDPSendto Mode = "udp-sendto"     // an unconnected socket for each question
	TCPHeld   Mode = "tcp-held"       // one connection for all questions
	UDPHeld   Mode = "udp-held"       // one connected socket for all
	UDPShared Mode = "udp-one-socket" // one unconnected socket, a choice for each datagram
)

// IsTCP: not UDP.
func (m Mode) IsTCP() bool { return m == TCPFresh || m == TCPHeld }

// Holds: the socket outlives a question.
func (m Mode) Holds() bool { return m == TCPHeld || m == UDPHeld || m == UDPShared }

// Stream is a series of questions, one after another.
type Stream struct {
	Mode Mode
	// To are asked in turn; a stream that holds its socket asks the first.
	To []netip.AddrPort
	// Every is the time from one question to the next, 0 for none.
	Every time.Duration
	// Reset closes TCP connections with RST, so that ports are free at once.
	Reset bool
	// Resend is when a question over UDP is asked again over the same socket, as
	// resolvers do; 0 for never.
	Resend time.Duration
}

// Plan is what a load process is told.
type Plan struct {
	Streams []Stream
	// Patience bounds a question. A lost SYN is sent again after a second.
	Patience time.Duration
	// Nice is the load's priority, 0 to 19 for the lowest.
	Nice int
}

// Record is one question. Times are CLOCK_MONOTONIC in nanoseconds, which all
// processes share.
type Record struct {
	Stream uint16
	To     uint8
	// Again: asked over a socket that was connected for an earlier question.
	Again bool
	// Retransmits of TCP until the connection was there, or of the question over
	// UDP.
	Retransmits uint8
	// Server is an index of Report.Servers.
	Server uint16
	// Start is before connect() (or sendto, or write) is called, Chosen when
	// the Backend was certainly chosen: the connection is there, or the answer.
	Start, Chosen int64
	// Took is how long the question took, in nanoseconds.
	Took int64
	// Failure is the error, empty for an answer.
	Failure string
}

// Report is what a load process answers when its input ends.
type Report struct {
	Records []Record
	Servers []netip.AddrPort
}

// runLoad is the load process: a plan comes in, questions are asked until the
// input ends. That each stream has asked goes out, and in the end the report.
func runLoad(in io.Reader, out io.Writer) error {
	var plan Plan
	input := bufio.NewReader(in)
	if err := gob.NewDecoder(input).Decode(&plan); err != nil {
		return fmt.Errorf("read the plan: %w", err)
	}
	stop := make(chan struct{})
	l := &loader{patience: plan.Patience, stop: stop, servers: map[netip.AddrPort]uint16{}}
	var wg sync.WaitGroup
	l.asked.Add(len(plan.Streams))
	output, began := gob.NewEncoder(out), make(chan error, 1)
	go func() {
		l.asked.Wait()
		began <- output.Encode(true)
	}()
	records := make([][]Record, len(plan.Streams))
	for i, s := range plan.Streams {
		wg.Go(func() { records[i] = l.run(uint16(i), s) })
	}
	_, _ = io.Copy(io.Discard, input)
	close(stop)
	wg.Wait()
	if err := <-began; err != nil {
		return err
	}
	var report Report
	for _, r := range records {
		report.Records = append(report.Records, r...)
	}
	report.Servers = make([]netip.AddrPort, len(l.servers))
	for a, i := range l.servers {
		report.Servers[i] = a
	}
	return output.Encode(report)
}

type loader struct {
	patience time.Duration
	stop     chan struct{}
	mu       sync.Mutex
	servers  map[netip.AddrPort]uint16
	asked    sync.WaitGroup // streams, the first time
}

func (l *loader) server(a netip.AddrPort) uint16 {
	l.mu.Lock()
	defer l.mu.Unlock()
	i, ok := l.servers[a]
	if !ok {
		i = uint16(len(l.servers))
		l.servers[a] = i
	}
	return i
}

// run asks until the load ends.
func (l *loader) run(id uint16, s Stream) (out []Record) {
	var held *socket
	defer func() { held.close(s.Reset) }()
	next := time.Now()
	for n := 0; ; n++ {
		r := Record{Stream: id, To: uint8(n % len(s.To))}
		if s.Mode.Holds() {
			r.To = 0
			held = l.askHeld(s, held, &r)
		} else {
			l.askFresh(s, &r)
		}
		r.Took = Monotonic() - r.Start
		out = append(out, r)
		if n == 0 {
			l.asked.Done()
		}
		next = next.Add(s.Every)
		wait := time.Until(next)
		if s.Every == 0 || wait < 0 {
			next, wait = time.Now(), 0
		}
		if r.Failure != "" {
			wait = max(wait, time.Millisecond)
		}
		select {
		case <-l.stop:
			return out
		case <-time.After(wait):
		}
	}
}

func (l *loader) askFresh(s Stream, r *Record) {
	r.Start = Monotonic()
	c, err := l.open(s.Mode, s.To[r.To])
	if err != nil {
		r.Failure = "connect: " + err.Error()
		return
	}
	defer c.close(s.Reset)
	r.Chosen = Monotonic()
	r.Retransmits = c.retransmits()
	l.ask(s, c, r)
}

// askHeld asks over the socket that is there, or a new one.
func (l *loader) askHeld(s Stream, c *socket, r *Record) *socket {
	r.Start, r.Again = Monotonic(), c != nil
	if c == nil {
		var err error
		if c, err = l.open(s.Mode, s.To[0]); err != nil {
			r.Failure = "connect: " + err.Error()
			return nil
		}
		r.Chosen = Monotonic()
	} else {
		r.Server = c.server
	}
	l.ask(s, c, r)
	if r.Failure != "" {
		c.close(true)
		return nil
	}
	c.server = r.Server
	return c
}

// ask sends a question that no other is like and waits for its answer.
func (l *loader) ask(s Stream, c *socket, r *Record) {
	question, end := fmt.Appendf(nil, "{}\n%d", r.Start), time.Now().Add(l.patience)
	until := end
	if s.Resend != 0 {
		until = time.Now().Add(s.Resend)
	}
	server, err := c.exchange(question, s.Mode.IsTCP(), until)
	for errors.Is(err, os.ErrDeadlineExceeded) && until.Before(end) {
		until = time.Now().Add(s.Resend)
		r.Retransmits++
		server, err = c.exchange(question, s.Mode.IsTCP(), until)
	}
	if err != nil {
		r.Failure = "ask: " + err.Error()
		return
	}
	r.Server = l.server(server)
	if !s.Mode.IsTCP() {
		r.Chosen = Monotonic()
	}
}

// socket is an open socket to a server of the lab.
type socket struct {
	net.Conn
	in     *bufio.Reader
	to     netip.AddrPort // of an unconnected one
	server uint16
}

func (l *loader) open(m Mode, to netip.AddrPort) (*socket, error) {
	if m == UDPSendto || m == UDPShared {
		network := "udp6"
		if to.Addr().Is4() {
			network = "udp4"
		}
		u, err := net.ListenUDP(network, nil)
		if err != nil {
			return nil, err
		}
		return &socket{Conn: u, to: to}, nil
	}
	network := "udp"
	if m.IsTCP() {
		network = "tcp"
	}
	d := net.Dialer{Timeout: l.patience, KeepAlive: -1}
	c, err := d.Dial(network, to.String())
	if err != nil {
		return nil, err
	}
	return &socket{Conn: c, in: bufio.NewReaderSize(c, 1024)}, nil
}

func (c *socket) close(reset bool) {
	if c == nil {
		return
	}
	if t, ok := c.Conn.(*net.TCPConn); ok && reset {
		_ = t.SetLinger(0)
	}
	c.Close()
}

// retransmits are those of the SYN, when asked right after connecting.
func (c *socket) retransmits() (n uint8) {
	t, ok := c.Conn.(*net.TCPConn)
	if !ok {
		return 0
	}
	if raw, err := t.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) {
			if info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
				n = uint8(min(info.Total_retrans, 255))
			}
		})
	}
	return n
}

// exchange sends a question and gives the address at which the server got it.
func (c *socket) exchange(question []byte, tcp bool, until time.Time) (netip.AddrPort, error) {
	_ = c.SetDeadline(until)
	var line []byte
	var err error
	if tcp {
		if _, err = c.Write([]byte("{}\n")); err != nil {
			return netip.AddrPort{}, err
		}
		if line, err = c.in.ReadBytes('\n'); errors.Is(err, io.EOF) {
			err = errors.New("the server closed the connection")
		}
	} else {
		line, err = c.exchangeDatagram(question)
	}
	if err != nil {
		return netip.AddrPort{}, err
	}
	var a struct {
		Local netip.AddrPort
		Sum   uint32
	}
	if err := json.Unmarshal(line, &a); err != nil {
		return netip.AddrPort{}, fmt.Errorf("not an answer: %q", line)
	}
	if !tcp && a.Sum != crc32.ChecksumIEEE(question) {
		return netip.AddrPort{}, errors.New("answer to another question")
	}
	return a.Local, nil
}

func (c *socket) exchangeDatagram(question []byte) ([]byte, error) {
	u := c.Conn.(*net.UDPConn)
	var err error
	if c.to.IsValid() {
		_, err = u.WriteToUDPAddrPort(question, c.to)
	} else {
		_, err = u.Write(question)
	}
	if err != nil {
		return nil, err
	}
	buf := make([]byte, 1024)
	n, from, err := u.ReadFromUDPAddrPort(buf)
	if err != nil {
		return nil, err
	}
	if c.to.IsValid() && from != c.to {
		return nil, fmt.Errorf("answer from %v, asked %v", from, c.to)
	}
	line, _, _ := strings.Cut(string(buf[:n]), "\n")
	return []byte(line), nil
}

// Monotonic is CLOCK_MONOTONIC in nanoseconds.
func Monotonic() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		panic(err) // cannot fail
	}
	return ts.Nano()
}

// roleVariable makes a test's own binary the load process.
const roleVariable = "FAIRLEAD_TRAFFIC_ROLE"

func init() {
	if os.Getenv(roleVariable) != "load" {
		return
	}
	if err := runLoad(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "load process:", err)
		os.Exit(1)
	}
	os.Exit(0)
}
