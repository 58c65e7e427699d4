// SPDX-License-Identifier: Apache-2.0

package ebpf

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"fairlead.dev/bpf"
	"fairlead.dev/dataplane"
)

// sweeper ends sockets that are connected to Backends which no longer exist,
// in every network namespace, after a Change removed one that sockets used. It
// does so beside Apply, for new connections do not need it.
//
// What ends sockets walks the kernel's whole table of them, for one namespace.
// So first all sockets that have a flow are asked, wherever they are, and then
// only the namespaces of those that are to be ended are walked.
type sweeper struct {
	find   *link.Iter // nil: this kernel does not let it, every namespace is walked
	sweeps []*sweep   // none: this kernel can't end sockets
	spaces namespaces
	looks  []time.Duration
	log    *slog.Logger
	netns  *ebpf.Map // netns_addresses
}

// sweep ends the sockets of one protocol. Each has its own pace: TCP has the
// larger table.
type sweep struct {
	kind  sweeps
	proto uint32 // IANA number
	end   *link.Iter
	wake  chan struct{} // a socket may have a Backend that was removed
	doubt chan struct{} // none had when it was removed, but one may have been choosing it
	lost  map[uint64]int
}

// sweeps says which sockets to look at.
type sweeps uint32

const (
	sweepUDP sweeps = 1 << iota
	sweepTCP
)

// sweeps are those that can find sockets of a Service port's Backends.
func (p *portState) sweeps() (what sweeps) {
	for _, f := range p.frontends {
		switch dataplane.Protocol(f.key.Protocol) {
		case dataplane.UDP:
			what |= sweepUDP
		case dataplane.TCP:
			what |= sweepTCP
		}
	}
	return what
}

// sweepLooks is how long after a sweep others look once more, for a socket that
// was choosing its Backend just when it was removed: connect() takes some
// microseconds from there to where a sweep sees it, and longer where its thread
// is made to wait. Where every namespace is walked, only the last.
var sweepLooks = []time.Duration{50 * time.Millisecond, time.Second}

// sweepRest is how many times what a sweep took passes before the next:
// endpoints that never stop changing cost a fifth of a CPU at most.
const sweepRest = 4

// newSweeper makes one for this kernel, whose lacks it tells.
func newSweeper(p *bpf.FairleadPrograms, maps map[string]*ebpf.Map, log *slog.Logger) (_ *sweeper, err error) {
	s := &sweeper{log: log, netns: maps["netns_addresses"], looks: sweepLooks}
	if p.FairleadSweepUdp == nil {
		log.Warn("this kernel cannot end sockets of removed Backends (bpf_sock_destroy, 6.5): connected UDP sockets stay with them")
		return s, nil
	}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	for _, k := range []struct {
		kind  sweeps
		proto uint32
		prog  *ebpf.Program
	}{{sweepUDP, unix.IPPROTO_UDP, p.FairleadSweepUdp}, {sweepTCP, unix.IPPROTO_TCP, p.FairleadSweepTcp}} {
		it, err := link.AttachIter(link.IterOptions{Program: k.prog})
		if err != nil {
			return nil, fmt.Errorf("attach socket iterator %s: %w", k.prog, err)
		}
		s.sweeps = append(s.sweeps, &sweep{kind: k.kind, proto: k.proto, end: it, wake: make(chan struct{}, 1), doubt: make(chan struct{}, 1)})
	}
	err = ebpf.ErrNotSupported
	if p.FairleadSweepFind != nil {
		s.find, err = link.AttachIter(link.IterOptions{Program: p.FairleadSweepFind, Map: maps["socket_flows"]})
	}
	if err != nil {
		log.Info("this kernel does not tell where sockets of removed Backends are: they are looked for in every network namespace", "error", err)
		s.everywhere()
	}
	return s, nil
}

// everywhere makes sweeps walk every namespace.
func (s *sweeper) everywhere() {
	s.find, s.looks = nil, sweepLooks[len(sweepLooks)-1:]
}

func (s *sweeper) close() {
	for _, k := range s.sweeps {
		k.end.Close()
	}
	if s.find != nil {
		s.find.Close()
	}
}

// soon sweeps as soon as the last sweep was long enough ago.
func (s *sweeper) soon(what sweeps) {
	for _, k := range s.sweeps {
		if what&k.kind != 0 {
			nudge(k.wake)
		}
	}
}

// later looks once, for sockets that may have been choosing what was removed.
// Walking every namespace for that would cost too much.
func (s *sweeper) later(what sweeps) {
	for _, k := range s.sweeps {
		if what&k.kind != 0 && s.find != nil {
			nudge(k.doubt)
		}
	}
}

func nudge(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// netnsEvery is how often the addresses of network namespaces are read anew.
const netnsEvery = 10 * time.Second

func (s *sweeper) run(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	for _, k := range s.sweeps {
		wg.Go(func() { s.runSweep(ctx, k) })
	}
	learn := time.NewTicker(netnsEvery)
	defer learn.Stop()
	for {
		s.learnAddresses()
		select {
		case <-ctx.Done():
			return
		case <-learn.C:
		}
	}
}

func (s *sweeper) runSweep(ctx context.Context, k *sweep) {
	last := len(s.looks) - 1
	look, next := time.NewTimer(s.looks[last]), last // an agent before may have died before its sweep
	defer look.Stop()
	rested := time.NewTimer(time.Hour)
	defer rested.Stop()
	wake, pending, doubted := k.wake, true, false
	for {
		select {
		case <-ctx.Done():
			return
		case <-wake:
			begin := time.Now()
			s.sweep(k)
			next, pending = 0, true
			look.Reset(s.looks[next])
			wake = nil
			rested.Reset(sweepRest * time.Since(begin))
		case <-rested.C:
			wake = k.wake
		case <-k.doubt:
			if pending { // it may come too soon for this one
				doubted = true
				continue
			}
			next, pending = last, true
			look.Reset(s.looks[next])
		case <-look.C:
			s.sweep(k)
			switch {
			case next < last:
				next++
			case doubted:
				doubted = false
			default:
				pending = false
				continue
			}
			look.Reset(s.looks[next])
		}
	}
}

// of is the sweep of one kind, nil where the kernel can't end sockets.
func (s *sweeper) of(kind sweeps) *sweep {
	for _, k := range s.sweeps {
		if k.kind == kind {
			return k
		}
	}
	return nil
}

// sweep ends the sockets of one kind whose Backend no longer exists.
func (s *sweeper) sweep(k *sweep) {
	if k == nil {
		return
	}
	end := func() {
		if err := eachObject(k.end, func([]byte) {}); err != nil {
			s.log.Warn("end sockets of removed Backends", "error", err)
		}
	}
	if s.find == nil {
		s.spaces.each(end)
		return
	}
	inodes, err := s.stale(k.proto)
	if err != nil {
		s.log.Warn("look for sockets of removed Backends: each network namespace is searched", "error", err)
		s.spaces.each(end)
		return
	}
	if len(inodes) == 0 {
		k.lost = nil
		return
	}
	before := k.lost
	k.lost = map[uint64]int{}
	for _, inode := range s.spaces.in(inodes, end) {
		if k.lost[inode] = before[inode] + 1; k.lost[inode] == 2 { // the first time it may just have ended
			s.log.Warn("a socket stays with its removed Backend: its network namespace can't be entered, or is neither mounted in /run/netns nor a process's that is seen here",
				"namespace", inode)
		}
	}
}

// stale are the namespaces of sockets whose Backend no longer exists.
func (s *sweeper) stale(proto uint32) (inodes []uint64, err error) {
	const size = 8 // struct stale_socket of bpf/sweep.h
	err = eachObject(s.find, func(b []byte) {
		for ; len(b) >= size; b = b[size:] {
			inode := uint64(binary.NativeEndian.Uint32(b))
			if binary.NativeEndian.Uint32(b[4:]) == proto && !slices.Contains(inodes, inode) {
				inodes = append(inodes, inode)
			}
		}
	})
	return inodes, err
}

// eachObject runs an iterator to its end, and gives what it writes.
func eachObject(it *link.Iter, f func([]byte)) error {
	r, err := it.Open()
	if err != nil {
		return err
	}
	defer r.Close()
	b := make([]byte, 32<<10) // what the kernel gives at most at once
	for {
		n, err := r.Read(b)
		f(b[:n])
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case errors.Is(err, unix.EAGAIN): // it visited a million, and wrote nothing: go on
		case err != nil:
			return err
		}
	}
}

// learnAddresses notes which address each network namespace speaks from, so
// that session affinity is one for its sockets and its packets. A namespace
// with several global addresses of a family is left out: which one a socket
// uses is not known when it connects.
func (s *sweeper) learnAddresses() {
	s.spaces.each(func() {
		cookie, err := netnsCookie()
		if err != nil {
			return
		}
		var v4, v6 []netip.Addr
		addrs, err := net.InterfaceAddrs()
		if err != nil {
			return
		}
		for _, a := range addrs {
			p, err := netip.ParsePrefix(a.String())
			if err != nil || !p.Addr().IsGlobalUnicast() {
				continue
			}
			if p.Addr().Is4() {
				v4 = append(v4, p.Addr())
			} else {
				v6 = append(v6, p.Addr())
			}
		}
		s.note(bpf.FairleadNetnsKey{Cookie: cookie}, v4)
		s.note(bpf.FairleadNetnsKey{Cookie: cookie, Ipv6: 1}, v6)
	})
}

func (s *sweeper) note(key bpf.FairleadNetnsKey, addrs []netip.Addr) {
	var old bpf.FairleadAddress
	known := s.netns.Lookup(&key, &old) == nil
	switch {
	case len(addrs) != 1:
		if known {
			s.netns.Delete(&key)
		}
	default:
		if a := encodeAddress(addrs[0]); !known || a != old {
			s.netns.Put(&key, &a)
		}
	}
}
