// SPDX-License-Identifier: Apache-2.0

package resilience

import (
	"testing"
	"time"
)

func TestSmoke(t *testing.T) {
	b := newBed(t)
	w := newWorld(b.manifests, b.node)
	s := newService("steady", 1, port{"main", 80, 30080})
	pods := []endpoint{{"node1", b.member("a")}, {"node2", b.member("d")}}
	for n, o := range map[string]any{"steady": s, "steady-4": newSlice("steady-4", s, false, 8080, pods), "steady-6": newSlice("steady-6", s, true, 8080, pods)} {
		if err := w.put(n, o); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 4 {
		a := b.startAgent(i % 2)
		got, err := b.settle(w, within(10*time.Second))
		t.Log(float64(got.equal-a.started)/1e6, float64(got.known-a.started)/1e6, err)
		count, progs, err := b.attached()
		t.Log(count, progs, err)
		if i == 3 {
			t.Log(b.pins())
			t.Log(a.openFiles())
			t.Log(a.residentKiB())
			t.Log(a.terminate(5e9))
			t.Log(loaded(progs))
			t.Log(b.command("cleanup", "--cgroup-root", b.node.CgroupRoot))
			count, progs2, err := b.attached()
			t.Log(count, progs2, err)
			t.Log(loaded(progs))
			t.Log(b.pins())
		}
		time.Sleep(1500 * time.Millisecond)
		t.Log(a.log.String())
		a.kill()
		t.Log(a.cmd.ProcessState.UserTime(), a.cmd.ProcessState.SystemTime())
	}
}
