// SPDX-License-Identifier: Apache-2.0

package ebpf

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"fairlead.dev/bpf"
)

// sweeper ends sockets that are connected to Backends which no longer exist,
// in every network namespace, after a Change removed one that sockets used.
type sweeper struct {
	udp, tcp *link.Iter
	log      *slog.Logger
	wake     chan chan struct{}
	netns    *ebpf.Map // netns_addresses
}

// sweepAgain is how long after the last sweep another looks once more, for a
// socket that was choosing its Backend just when it was removed.
const sweepAgain = time.Second

func newSweeper(p *bpf.FairleadPrograms, netns *ebpf.Map, log *slog.Logger) (*sweeper, error) {
	s := &sweeper{log: log, wake: make(chan chan struct{}), netns: netns}
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
	s.udp.Close()
	s.tcp.Close()
}

// sweepWait bounds how long a Change waits for its sweep, so that a host with
// very many sockets is still programmed in time; the sweep itself goes on.
const sweepWait = 100 * time.Millisecond

// now sweeps once and returns when that is done or sweepWait is over.
func (s *sweeper) now() {
	bound := time.NewTimer(sweepWait)
	defer bound.Stop()
	done := make(chan struct{})
	select {
	case s.wake <- done:
	case <-bound.C:
		return
	}
	select {
	case <-done:
	case <-bound.C:
	}
}

// netnsEvery is how often the addresses of network namespaces are read anew.
const netnsEvery = 10 * time.Second

func (s *sweeper) run(ctx context.Context) {
	again := time.NewTimer(sweepAgain) // an agent before may have died before its sweep
	defer again.Stop()
	learn := time.NewTicker(netnsEvery)
	defer learn.Stop()
	s.learnAddresses()
	for {
		select {
		case <-ctx.Done():
			return
		case done := <-s.wake:
			again.Reset(sweepAgain)
			s.sweep()
			close(done)
		case <-again.C:
			s.sweep()
		case <-learn.C:
			s.learnAddresses()
		}
	}
}

func (s *sweeper) sweep() {
	eachNetns(func() {
		for _, it := range []*link.Iter{s.udp, s.tcp} {
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
