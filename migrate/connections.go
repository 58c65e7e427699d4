// SPDX-License-Identifier: Apache-2.0

package migrate

import (
	"bufio"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	mobyipvs "github.com/moby/ipvs"
	"github.com/prometheus/procfs"
	"golang.org/x/sys/unix"
)

// datagramIdle is how long a UDP flow may be silent before it is let go, as of
// fairlead's own Dataplanes: its next datagram asks the successor.
const datagramIdle = 30 * time.Second

// connection is one that IPVS knows.
type connection struct {
	protocol        uint16
	client, virtual netip.AddrPort
	state           string
	expires         time.Duration
}

// overStates are those in which nothing is to come any more. SYN_SENT is what
// IPVS sees in an answer to a younger socket with the port of one that ended: who
// connects through a virtual server is seen as SYN_RECV first. NONE and ASSURED
// are memories of affinity.
var overStates = []string{"NONE", "ASSURED", "SYN_SENT", "TIME_WAIT", "CLOSE", "LAST_ACK", "CLOSED", "REJECTED"}

// mayGoOn: the connection would miss its virtual server. One that only one side
// has closed would, for the 2 minutes at most that IPVS knows it in silence.
func (c *connection) mayGoOn(udpTimeout time.Duration, sockets func() (map[netip.AddrPort]bool, error)) (bool, error) {
	if slices.Contains(overStates, c.state) {
		return false, nil
	}
	if c.protocol != unix.IPPROTO_UDP || udpTimeout-c.expires <= datagramIdle {
		return true, nil
	}
	// A connected socket of the node's own has the ClusterIP for its own address,
	// and would have none without kube-ipvs0.
	if c.client.Addr() != c.virtual.Addr() {
		return false, nil
	}
	open, err := sockets()
	return open[c.client], err
}

// serverKey is what tells a virtual server from others.
type serverKey struct {
	protocol uint16
	at       netip.AddrPort
}

// connectionsOf lists those of virtual servers, in the calling thread's network
// namespace, until f has enough.
func connectionsOf(servers []*mobyipvs.Service, f func(connection) bool) error {
	keys := map[serverKey]bool{}
	for _, v := range servers {
		a, _ := netip.AddrFromSlice(v.Address)
		keys[serverKey{v.Protocol, netip.AddrPortFrom(a.Unmap(), v.Port)}] = true
	}
	list, err := os.Open("/proc/thread-self/net/ip_vs_conn")
	if err != nil {
		return fmt.Errorf("list connections of IPVS: %w", err)
	}
	defer list.Close()
	return eachConnection(list, func(c connection) bool { return !keys[serverKey{c.protocol, c.virtual}] || f(c) })
}

// letGoWithin is far more than IPVS needs to let go of connections: it begins a
// tick after their destination was taken away (since Linux 5.9).
const letGoWithin = 2 * time.Second

// letGo waits until IPVS knows no connection of virtual servers without
// destinations. Where it does not let go of them, which kube-proxy tells it to,
// they stay.
func letGo(servers []*mobyipvs.Service) error {
	for deadline := time.Now().Add(letGoWithin); ; time.Sleep(5 * time.Millisecond) {
		known := false
		err := connectionsOf(servers, func(c connection) bool {
			known = c.client.Port() != 0 // 0 is a memory of affinity
			return !known
		})
		if err != nil || !known || time.Now().After(deadline) {
			return err
		}
	}
}

// carried reports whether one of the virtual servers has a connection that may
// go on.
func carried(h *mobyipvs.Handle, servers []*mobyipvs.Service) (carries bool, err error) {
	config, err := h.GetConfig()
	if err != nil {
		return false, fmt.Errorf("read timeouts of IPVS: %w", err)
	}
	var open map[netip.AddrPort]bool
	sockets := func() (_ map[netip.AddrPort]bool, err error) {
		if open == nil {
			open, err = datagramSockets()
		}
		return open, err
	}
	var failed error
	err = connectionsOf(servers, func(c connection) bool {
		carries, failed = c.mayGoOn(config.TimeoutUDP, sockets)
		return !carries && failed == nil
	})
	return carries, errors.Join(err, failed)
}

// datagramSockets are the local addresses of UDP sockets.
func datagramSockets() (map[netip.AddrPort]bool, error) {
	fs, err := procfs.NewFS("/proc/thread-self")
	if err != nil {
		return nil, err
	}
	open := map[netip.AddrPort]bool{}
	for _, read := range []func() (procfs.NetUDP, error){fs.NetUDP, fs.NetUDP6} {
		list, err := read()
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("list UDP sockets: %w", err)
		}
		for _, s := range list {
			if a, ok := netip.AddrFromSlice(s.LocalAddr); ok {
				open[netip.AddrPortFrom(a.Unmap(), uint16(s.LocalPort))] = true
			}
		}
	}
	return open, nil
}

// eachConnection reads lines such as
//
//	Pro FromIP   FPrt ToIP     TPrt DestIP   DPrt State       Expires PEName PEData
//	TCP 0AF40109 A455 0A60000A 0050 0AF40102 1F90 ESTABLISHED     899
//
// until f has enough. IPv6 is in its usual form. What it does not know it skips.
func eachConnection(r io.Reader, f func(connection) bool) error {
	protocols := map[string]uint16{"TCP": unix.IPPROTO_TCP, "UDP": unix.IPPROTO_UDP, "SCTP": unix.IPPROTO_SCTP}
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		w := strings.Fields(lines.Text())
		if len(w) < 9 || protocols[w[0]] == 0 {
			continue
		}
		client, cerr := connectionEnd(w[1], w[2])
		virtual, verr := connectionEnd(w[3], w[4])
		seconds, serr := strconv.ParseUint(w[8], 10, 32)
		if err := errors.Join(cerr, verr, serr); err != nil {
			return fmt.Errorf("a connection of IPVS, %q: %w", lines.Text(), err)
		}
		if !f(connection{protocols[w[0]], client, virtual, w[7], time.Duration(seconds) * time.Second}) {
			return nil
		}
	}
	return lines.Err()
}

func connectionEnd(address, port string) (netip.AddrPort, error) {
	p, err := strconv.ParseUint(port, 16, 16)
	if err != nil {
		return netip.AddrPort{}, err
	}
	if strings.Contains(address, ":") {
		a, err := netip.ParseAddr(address)
		return netip.AddrPortFrom(a, uint16(p)), err
	}
	b, err := hex.DecodeString(address)
	if err != nil {
		return netip.AddrPort{}, err
	}
	a, ok := netip.AddrFromSlice(b)
	if !ok {
		return netip.AddrPort{}, fmt.Errorf("address %s", address)
	}
	return netip.AddrPortFrom(a, uint16(p)), nil
}
