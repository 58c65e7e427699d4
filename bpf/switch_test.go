// SPDX-License-Identifier: Apache-2.0

package bpf_test

import (
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"fairlead.dev/bpf"
)

// A hash table's element is replaced by linking a new one and unlinking the
// old: who walks the bucket just then may meet neither, and who holds the old
// one may find another Frontend's value in its memory, which is used again at
// once. Neither may decide about a packet.
func TestFrontendIsFoundWhileAllAreSwitched(t *testing.T) {
	const runs, others, until = 1 << 14, 900, 3 * time.Second
	s, w := newState(t), worldOf("IPv4", udp)
	drops := set{onEmpty: emptyDrop}
	s.add(frontend{id: 1, address: w.vip, port: servicePort, proto: udp, internal: drops, external: drops})
	for i := range uint16(others) { // these would refuse
		s.add(frontend{id: 2, address: w.vip, port: 1000 + i, proto: udp})
	}
	var keys []bpf.FairleadFrontendKey
	var values []bpf.FairleadFrontend
	var key bpf.FairleadFrontendKey
	var value bpf.FairleadFrontend
	for i := s.objects.Frontends.Iterate(); i.Next(&key, &value); {
		keys, values = append(keys, key), append(values, value)
	}
	if len(keys) != others+1 {
		t.Fatalf("%d Frontends, want %d", len(keys), others+1)
	}
	var count uint32
	stop := make(chan struct{})
	var switching sync.WaitGroup
	switching.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				count += 2
				s.must(s.objects.FrontendSwitches.Put(uint32(0), count-1))
				_, err := s.objects.Frontends.BatchUpdate(keys, values, nil)
				s.must(s.objects.FrontendSwitches.Put(uint32(0), count))
				if err != nil {
					t.Error(err)
					return
				}
			}
		}
	})
	asked, dropped := uint64(0), uint64(0)
	for begun := time.Now(); time.Since(begun) < until && !t.Failed(); {
		opts := ebpf.RunOptions{
			Data: w.first(w.vip, servicePort).bytes(), Repeat: runs, Context: skBuff{Ifindex: uint32(s.index[uplink])},
		}
		s.in(func() { _, err := s.program(fromUplink).Run(&opts); s.must(err) })
		got := s.drops()
		// More than asked: a signal came, and the run began anew.
		if n := got["no_local_backends"] - dropped; n < runs || len(got) != 1 {
			t.Errorf("%d packets asked for a Frontend that drops, after %d: %d dropped, all drops %v", runs, asked, n, got)
		}
		asked, dropped = asked+runs, got["no_local_backends"]
	}
	close(stop)
	switching.Wait()
	t.Logf("%d packets", asked)
}
