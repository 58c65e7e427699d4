// SPDX-License-Identifier: Apache-2.0

package ipvs

import (
	"context"
	"log/slog"
	"os"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"fairlead.dev/dataplane"
	"fairlead.dev/dataplane/dataplanetest"
)

// Builders that these tests name in almost every line.
var backends, serviceAt = dataplanetest.Backends, dataplanetest.ClusterIP

// lab is a network namespace of one test's own, which the test's thread is in:
// an uplink with the addresses of dataplanetest's node, and no more.
type lab struct {
	dataplanetest.Lab
	options Options
}

func newLab(t testing.TB) *lab {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: it makes network namespaces")
	}
	if ok, reason := dataplane.Usable(Check(Options{})); !ok {
		t.Skip("this machine can't do IPVS (test/vm can): " + reason)
	}
	dataplanetest.EnterNamespace(t)
	l := &lab{options: Options{Logger: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))}}
	l.Lab = dataplanetest.Lab{T: t, Read: func() (dataplane.Reader, error) { return Read(l.options) }}
	l.must(netlink.LinkAdd(&netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Name: "uplink0"}}))
	link, err := netlink.LinkByName("uplink0")
	l.must(err)
	l.must(netlink.LinkSetUp(link))
	for _, p := range []string{"192.0.2.11/24", "2001:db8::11/64"} {
		a, err := netlink.ParseAddr(p)
		l.must(err)
		if a.IP.To4() == nil {
			a.Flags = unix.IFA_F_NODAD
		}
		l.must(netlink.AddrAdd(link, a))
	}
	return l
}

func (l *lab) must(err error) {
	l.T.Helper()
	if err != nil {
		l.T.Fatal(err)
	}
}

func (l *lab) open() *Dataplane {
	l.T.Helper()
	d, err := New(context.Background(), l.options)
	if err != nil {
		l.T.Fatalf("open dataplane: %+v", err)
	}
	l.T.Cleanup(func() { d.Close() })
	return d
}

func (l *lab) sync(d *Dataplane, t *dataplane.Table) int {
	l.T.Helper()
	n, err := d.Sync(context.Background(), t)
	l.must(err)
	return n
}

// table is a Table of Services on dataplanetest's node.
func (l *lab) table(services ...*dataplane.Service) *dataplane.Table {
	t := dataplanetest.Table(services...)
	t.Node = dataplanetest.Node()
	return t
}

// synthetic is dataplanetest.Synthetic on the same node.
func (l *lab) synthetic(n, m int) *dataplane.Table {
	t := dataplanetest.Synthetic(n, m)
	t.Node = dataplanetest.Node()
	return t
}
