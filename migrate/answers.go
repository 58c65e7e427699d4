// SPDX-License-Identifier: Apache-2.0

package migrate

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"fairlead.dev/dataplane"
)

const (
	// askAtOnce bounds the connections that wait for an answer, askMost those of
	// one migration: of more Services a random choice is asked.
	askAtOnce = 64
	askMost   = 2000
	// askWithin bounds one connection. Linux sends a lost SYN again after 1 s.
	askWithin = 1500 * time.Millisecond
	// askAgain is how often a Service is asked that answered before.
	askAgain = 3
)

// asked is a Frontend that takes TCP connections.
type asked struct {
	service dataplane.ServiceName
	at      netip.AddrPort
}

func (a asked) String() string { return fmt.Sprintf("%s (%s/TCP)", a.service, a.at) }

// askable are the ClusterIPs of TCP that have a Backend for this node, at most
// askMost; all is how many there are.
func askable(t *dataplane.Table) (list []asked, all int) {
	for name, s := range t.Services {
		for i := range s.Frontends {
			f := &s.Frontends[i]
			if f.Kind == dataplane.ClusterIP && f.Protocol == dataplane.TCP && len(f.Internal.Backends) > 0 {
				list = append(list, asked{name, netip.AddrPortFrom(f.Address, f.Port)})
			}
		}
	}
	all = len(list)
	rand.Shuffle(all, func(i, j int) { list[i], list[j] = list[j], list[i] })
	list = list[:min(all, askMost)]
	slices.SortFunc(list, func(a, b asked) int { return cmp.Or(a.service.Compare(b.service), a.at.Compare(b.at)) })
	return list, all
}

// ask opens a connection to each and closes it again, and gives those that took
// it, in order. tries is how often one that does not is asked.
func ask(ctx context.Context, list []asked, tries int) []asked {
	answers := make([]bool, len(list))
	next := make(chan int)
	var wg sync.WaitGroup
	for range min(askAtOnce, len(list)) {
		wg.Go(func() {
			for i := range next {
				for n := 0; n < tries && !answers[i] && ctx.Err() == nil; n++ {
					answers[i] = connects(ctx, list[i].at)
				}
			}
		})
	}
	for i := range list {
		next <- i
	}
	close(next)
	wg.Wait()
	var took []asked
	for i, a := range list {
		if answers[i] {
			took = append(took, a)
		}
	}
	return took
}

func connects(ctx context.Context, at netip.AddrPort) bool {
	d := net.Dialer{Timeout: askWithin, KeepAlive: -1}
	c, err := d.DialContext(ctx, "tcp", at.String())
	if err != nil {
		return false
	}
	c.Close()
	return true
}

// silent are those of before that are not among now.
func silent(before, now []asked) []asked {
	return slices.DeleteFunc(slices.Clone(before), func(a asked) bool { return slices.Contains(now, a) })
}
