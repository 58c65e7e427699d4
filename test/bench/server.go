// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// listen serves at every address of the server pod: a TCP connection is
// answered with one byte, the last of the address it came to, and closed; a
// datagram is answered with the same. Its answer to "listening" is its error.
func listen() func(json.RawMessage) (any, error) {
	err := listenTCP()
	for last := firstBefore; last < firstBefore+2*backends && err == nil; last++ {
		if err = listenUDP(podIPv4(last), byte(last)); err == nil {
			err = listenUDP(podIPv6(last), byte(last))
		}
	}
	return func(json.RawMessage) (any, error) { return nil, err }
}

func listenTCP() error {
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrInet6{Port: serverPort})
	}
	if err == nil {
		err = unix.Listen(fd, 65535)
	}
	if err != nil {
		return fmt.Errorf("listen on TCP port %d: %w", serverPort, err)
	}
	go func() {
		for {
			c, _, err := unix.Accept4(fd, unix.SOCK_CLOEXEC)
			if err != nil {
				continue // the client was gone already
			}
			if at, err := unix.Getsockname(c); err == nil {
				_ = unix.Send(c, []byte{lastByte(at)}, unix.MSG_NOSIGNAL)
			}
			unix.Close(c)
		}
	}()
	return nil
}

// lastByte is the last one of an IPv4 address. IPv6 ones are the same in
// decimal, see podIPv6.
func lastByte(a unix.Sockaddr) byte {
	s, ok := a.(*unix.SockaddrInet6)
	if !ok {
		return 0
	}
	b := s.Addr[15]
	if !netip.AddrFrom16(s.Addr).Is4In6() {
		b = b>>4*10 + b&15
	}
	return b
}

func listenUDP(a netip.Addr, identity byte) error {
	fd, err := udpSocket(a)
	if err != nil {
		return fmt.Errorf("listen on UDP %s: %w", a, err)
	}
	go func() {
		buf := make([]byte, 64)
		for {
			_, from, err := unix.Recvfrom(fd, buf, 0)
			if err == nil && from != nil {
				_ = unix.Sendto(fd, []byte{identity}, 0, from)
			}
		}
	}()
	return nil
}

func udpSocket(a netip.Addr) (int, error) {
	family := unix.AF_INET
	if a.Is6() {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	return fd, unix.Bind(fd, sockaddr(netip.AddrPortFrom(a, serverPort)))
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}
