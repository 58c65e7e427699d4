// SPDX-License-Identifier: Apache-2.0

package ebpf

import (
	"context"
	"slices"
	"testing"
	"time"

	"fairlead.dev/dataplane"
	"fairlead.dev/dataplane/dataplanetest"
)

func TestReadingWhileTheTableChangesShowsEachFrontendBeforeOrAfter(t *testing.T) {
	l := newLab(t)
	d := l.open()
	versions := []*dataplane.Service{
		clusterIP("web", "10.96.0.10:80", dataplane.TCP, backends("10.0.0.1:80")...),
		clusterIP("web", "10.96.0.10:80", dataplane.TCP, backends("10.0.0.2:80", "10.0.0.3:80")...),
		nil,
	}
	if _, err := d.Sync(context.Background(), table(versions[0])); err != nil {
		t.Fatal(err)
	}
	name, done := versions[0].Name, make(chan error, 1)
	stop := time.Now().Add(500 * time.Millisecond)
	go func() {
		for i := 0; time.Now().Before(stop); i++ {
			c := dataplane.Change{Services: map[dataplane.ServiceName]*dataplane.Service{name: versions[i%3]}}
			if err := d.Apply(context.Background(), c); err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	reads := 0
	defer func() {
		if err := <-done; err != nil || reads < 10 {
			t.Errorf("%d reads, Apply: %v", reads, err)
		}
	}()
	for ; time.Now().Before(stop); reads++ {
		rows := dataplanetest.Rows(t, l.read)
		if len(rows) == 0 {
			continue
		}
		right := slices.ContainsFunc(versions[:2], func(s *dataplane.Service) bool {
			want := s.Rows()[0]
			return len(rows) == 1 && rows[0].Service == want.Service && slices.Equal(rows[0].Backends, want.Backends)
		})
		if !right {
			t.Fatalf("read %d: want no row, or that of one version of %s\nseen %+v", reads, name, rows)
		}
	}
}
