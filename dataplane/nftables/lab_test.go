// SPDX-License-Identifier: Apache-2.0

package nftables

import (
	"context"
	"log/slog"
	"testing"

	"fairlead.dev/dataplane"
	"fairlead.dev/dataplane/dataplanetest"
)

// Builders that these tests name in almost every line.
var backends, clusterIP, table, syntheticTable = dataplanetest.Backends, dataplanetest.ClusterIP, dataplanetest.Table, dataplanetest.Synthetic

// lab is a network namespace of one test's own, which the test's thread is in.
type lab struct {
	dataplanetest.Lab
	options Options
}

func newLab(t testing.TB) *lab {
	t.Helper()
	dataplanetest.EnterNamespace(t)
	l := &lab{options: Options{Logger: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))}}
	l.Lab = dataplanetest.Lab{T: t, Read: func() (dataplane.Reader, error) { return Read(l.options) }}
	return l
}

func (l *lab) open() *Dataplane {
	l.T.Helper()
	d, err := New(context.Background(), l.options)
	if err != nil {
		l.T.Fatal(err)
	}
	l.T.Cleanup(func() { d.Close() })
	return d
}
