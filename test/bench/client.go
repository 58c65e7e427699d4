// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"time"
	"unsafe"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// variant is one way to the server: a socket is of the network namespace and
// the cgroup that its maker was in when it was made.
type variant struct {
	Name      string
	NetNSPath string
	CgroupDir string
	Targets   []netip.AddrPort
}

// connectOrder is a whole measurement: in each block every variant gets
// PerBlock new sockets, which then connect in turns.
type connectOrder struct {
	Protocol         int // unix.IPPROTO_TCP: connect; IPPROTO_UDP: connect, send, receive
	Variants         []variant
	Blocks, PerBlock int
}

// connectResult has the median of each block of each variant, in nanoseconds.
type connectResult struct{ Medians [][]float64 }

func measureConnects(o connectOrder) (r connectResult, err error) {
	// Not unlocked: the thread changes its namespace and ends with this.
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		r, err = connectBlocks(o)
	}()
	<-done
	return r, err
}

func connectBlocks(o connectOrder) (r connectResult, err error) {
	pin(0)
	r.Medians = make([][]float64, len(o.Variants))
	took := make([][]float64, len(o.Variants))
	targets := make([][][]byte, len(o.Variants))
	for v := range o.Variants {
		took[v] = make([]float64, o.PerBlock)
		for _, t := range o.Variants[v].Targets {
			targets[v] = append(targets[v], rawSockaddr(t))
		}
	}
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	for block := range o.Blocks {
		runtime.GC()
		pools := make([][]int, len(o.Variants))
		for v := range o.Variants {
			if pools[v], err = sockets(&o.Variants[v], o.Protocol, o.PerBlock); err != nil {
				return r, err
			}
		}
		for i := range o.PerBlock {
			for turn := range o.Variants {
				v := (turn + i + block) % len(o.Variants)
				if i/len(o.Variants)%2 == 1 { // the other way round
					v = len(o.Variants) - 1 - v
				}
				target := targets[v][i%len(targets[v])]
				t, err := timeOne(pools[v][i], target, o.Protocol)
				if err != nil {
					return r, fmt.Errorf("%s: %w", o.Variants[v].Name, err)
				}
				took[v][i] = t
			}
		}
		for v := range o.Variants {
			for _, fd := range pools[v] {
				unix.Close(fd)
			}
			r.Medians[v] = append(r.Medians[v], median(took[v]))
		}
	}
	return r, nil
}

// timeOne uses raw system calls: the scheduler of the runtime is not to wake
// up for each.
func timeOne(fd int, target []byte, protocol int) (ns float64, err error) {
	address, size := uintptr(unsafe.Pointer(&target[0])), uintptr(len(target))
	var b [1]byte
	buf := uintptr(unsafe.Pointer(&b[0]))
	begin := time.Now()
	_, _, e := unix.RawSyscall(unix.SYS_CONNECT, uintptr(fd), address, size)
	if e == 0 && protocol == unix.IPPROTO_UDP {
		_, _, e = unix.RawSyscall6(unix.SYS_SENDTO, uintptr(fd), buf, 1, 0, 0, 0)
		if e == 0 {
			_, _, e = unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd), buf, 1, 0, 0, 0)
		}
	}
	d := time.Since(begin)
	runtime.KeepAlive(target)
	if e != 0 {
		return 0, fmt.Errorf("connect: %w", e)
	}
	if protocol == unix.IPPROTO_UDP && b[0] == 0 {
		return 0, fmt.Errorf("no answer")
	}
	return float64(d.Nanoseconds()), nil
}

// sockets makes n of a variant.
func sockets(v *variant, protocol, n int) ([]int, error) {
	pid := []byte(strconv.Itoa(os.Getpid()))
	if err := os.WriteFile(filepath.Join(v.CgroupDir, "cgroup.procs"), pid, 0); err != nil {
		return nil, fmt.Errorf("enter cgroup: %w", err)
	}
	ns, err := netns.GetFromPath(v.NetNSPath)
	if err != nil {
		return nil, fmt.Errorf("open network namespace: %w", err)
	}
	defer ns.Close()
	if err := netns.Set(ns); err != nil {
		return nil, fmt.Errorf("enter network namespace: %w", err)
	}
	fds := make([]int, n)
	for i := range fds {
		if fds[i], err = newSocket(v.Targets[0].Addr(), protocol); err != nil {
			return nil, err
		}
	}
	return fds, nil
}

// newSocket makes a socket that is closed with a reset (no TIME_WAIT) and does
// not wait for an answer for longer than a second.
func newSocket(to netip.Addr, protocol int) (int, error) {
	family, kind := unix.AF_INET, unix.SOCK_STREAM
	if to.Is6() {
		family = unix.AF_INET6
	}
	if protocol == unix.IPPROTO_UDP {
		kind = unix.SOCK_DGRAM
	}
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return 0, fmt.Errorf("make a socket: %w", err)
	}
	second := unix.Timeval{Sec: 1}
	err = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &second)
	if err == nil {
		err = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &second)
	}
	if err == nil && protocol == unix.IPPROTO_TCP {
		err = unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	}
	if err != nil {
		unix.Close(fd)
		return 0, fmt.Errorf("set socket options: %w", err)
	}
	return fd, nil
}

// rawSockaddr is what the system call takes.
func rawSockaddr(a netip.AddrPort) []byte {
	port := a.Port()<<8 | a.Port()>>8
	if a.Addr().Is4() {
		s := &unix.RawSockaddrInet4{Family: unix.AF_INET, Port: port, Addr: a.Addr().As4()}
		return unsafe.Slice((*byte)(unsafe.Pointer(s)), unsafe.Sizeof(*s))
	}
	s := &unix.RawSockaddrInet6{Family: unix.AF_INET6, Port: port, Addr: a.Addr().As16()}
	return unsafe.Slice((*byte)(unsafe.Pointer(s)), unsafe.Sizeof(*s))
}

// pin keeps the calling thread on one CPU where there are several.
func pin(cpu int) {
	var set unix.CPUSet
	set.Set(cpu)
	_ = unix.SchedSetaffinity(0, &set) // measured all the same
}

// awaitOrder asks To again and again, until an answer comes from a server whose
// number is from First on, backends in all.
type awaitOrder struct {
	To     netip.AddrPort
	First  int
	Within time.Duration
}

// awaited is when that answer was there, CLOCK_MONOTONIC in nanoseconds, and
// how many answers came before it.
type awaited struct {
	At     int64
	Before int
}

// pollPause is between two connects: the agent needs the CPUs too.
const pollPause = 100 * time.Microsecond

func await(o awaitOrder) (awaited, error) {
	r := awaited{}
	for end := time.Now().Add(o.Within); time.Now().Before(end); r.Before++ {
		who, err := askOnce(o.To)
		r.At = monotonic()
		switch {
		case err != nil:
			return r, fmt.Errorf("ask %s: %w", o.To, err)
		case who >= o.First && who < o.First+backends:
			return r, nil
		case who < firstBefore || who >= firstBefore+2*backends:
			return r, fmt.Errorf("ask %s: answered by %d, which is no Backend", o.To, who)
		}
		pause := unix.NsecToTimespec(pollPause.Nanoseconds())
		_ = unix.Nanosleep(&pause, nil)
	}
	return r, fmt.Errorf("ask %s: no answer from the new Backends after %v", o.To, o.Within)
}

// appearPause is between two tries to reach a Service that is not there yet.
const appearPause = 5 * time.Millisecond

// appear asks To until there is an answer, whatever went wrong before.
func appear(o awaitOrder) (awaited, error) {
	var r awaited
	var err error
	for end := time.Now().Add(o.Within); time.Now().Before(end); time.Sleep(appearPause) {
		if _, err = askOnce(o.To); err == nil {
			r.At = monotonic()
			return r, nil
		}
		r.Before++
	}
	return r, fmt.Errorf("%s did not appear in %v: %w", o.To, o.Within, err)
}

// askOnce connects and reads who answers.
func askOnce(to netip.AddrPort) (who int, err error) {
	fd, err := newSocket(to.Addr(), unix.IPPROTO_TCP)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	if err := unix.Connect(fd, sockaddr(to)); err != nil {
		return 0, fmt.Errorf("connect: %w", err)
	}
	var b [1]byte
	for {
		n, err := unix.Read(fd, b[:])
		if err == unix.EINTR {
			continue
		}
		if err == nil && n == 0 {
			err = fmt.Errorf("closed without an answer")
		}
		return int(b[0]), err
	}
}

func median(v []float64) float64 { return percentile(v, 50) }

// percentile sorts v.
func percentile(v []float64, p int) float64 {
	if len(v) == 0 {
		return 0
	}
	slices.Sort(v)
	return v[min(len(v)*p/100, len(v)-1)]
}
