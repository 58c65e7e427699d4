// SPDX-License-Identifier: Apache-2.0

package ebpf

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"fairlead.dev/bpf"
	"fairlead.dev/dataplane"
)

// sweeper ends sockets that are connected to Backends which no longer exist,
// in every network namespace, after a Change removed one that sockets used. It
// does so beside Apply: a sweep takes a walk over the kernel's whole socket
// table for each namespace, and new connections need none.
type sweeper struct {
	udp, tcp *link.Iter
	log      *slog.Logger
	wanted   atomic.Uint32 // sweeps that wait
	wake     chan struct{}
	netns    *ebpf.Map // netns_addresses
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

const (
	// sweepAgain is how long after the last sweep another looks once more, for
	// a socket that was choosing its Backend just when it was removed.
	sweepAgain = time.Second
	// sweepRest is how many times what a sweep took passes before the next:
	// endpoints that never stop changing cost a fifth of a CPU at most.
	sweepRest = 4
)

func newSweeper(p *bpf.FairleadPrograms, netns *ebpf.Map, log *slog.Logger) (*sweeper, error) {
	s := &sweeper{log: log, wake: make(chan struct{}, 1), netns: netns}
	if p.FairleadSweepUdp == nil {
		log.Warn("this kernel cannot end sockets of removed Backends (bpf_sock_destroy, 6.5): connected UDP sockets stay with them")
		return s, nil
	}
	var err error
	if s.udp, err = link.AttachIter(link.IterOptions{Program: p.FairleadSweepUdp}); err != nil {
		return nil, fmt.Errorf("attach UDP socket iterator: %w", err)
	}
	if s.tcp, err = link.AttachIter(link.IterOptions{Program: p.FairleadSweepTcp}); err != nil {
		s.udp.Close()
		return nil, fmt.Errorf("attach TCP socket iterator: %w", err)
	}
	return s, nil
}

func (s *sweeper) close() {
	if s.udp == nil {
		return
	}
	s.udp.Close()
	s.tcp.Close()
}

// soon sweeps as soon as the last sweep was long enough ago.
func (s *sweeper) soon(what sweeps) {
	s.wanted.Or(uint32(what))
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// netnsEvery is how often the addresses of network namespaces are read anew.
const netnsEvery = 10 * time.Second

func (s *sweeper) run(ctx context.Context) {
	again, due := time.NewTimer(sweepAgain), sweepUDP|sweepTCP // an agent before may have died before its sweep
	defer again.Stop()
	learn := time.NewTicker(netnsEvery)
	defer learn.Stop()
	rested := time.NewTimer(time.Hour)
	defer rested.Stop()
	wake := s.wake
	s.learnAddresses()
	for {
		select {
		case <-ctx.Done():
			return
		case <-wake:
			begin, what := time.Now(), sweeps(s.wanted.Swap(0))
			s.sweep(what)
			due |= what
			again.Reset(sweepAgain)
			wake = nil
			rested.Reset(sweepRest * time.Since(begin))
		case <-rested.C:
			wake = s.wake
		case <-again.C:
			s.sweep(due)
			due = 0
		case <-learn.C:
			s.learnAddresses()
		}
	}
}

func (s *sweeper) sweep(what sweeps) {
	if s.udp == nil {
		return
	}
	eachNetns(func() {
		for kind, it := range map[sweeps]*link.Iter{sweepUDP: s.udp, sweepTCP: s.tcp} {
			if what&kind == 0 {
				continue
			}
			if err := runIterator(it); err != nil {
				s.log.Warn("sweep sockets of removed Backends", "error", err)
			}
		}
	})
}

// runIterator visits every socket of the calling thread's network namespace.
func runIterator(it *link.Iter) error {
	r, err := it.Open()
	if err != nil {
		return err
	}
	defer r.Close()
	_, err = io.Copy(io.Discard, r)
	return err
}

// learnAddresses notes which address each network namespace speaks from, so
// that session affinity is one for its sockets and its packets. A namespace
// with several global addresses of a family is left out: which one a socket
// uses is not known when it connects.
func (s *sweeper) learnAddresses() {
	eachNetns(func() {
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
