// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"context"
	"log/slog"
	"os/exec"
	"strings"
	"testing"

	"fairlead.dev/dataplane"
	"fairlead.dev/dataplane/dataplanetest"
)

var bothFlavours = []Flavour{NFT, Legacy}

// Builders that these tests name in almost every line.
var backends, clusterIP = dataplanetest.Backends, dataplanetest.ClusterIP

// lab is a network namespace of one test's own, which the test's thread is in.
type lab struct {
	dataplanetest.Lab
	options Options
}

func newLab(t testing.TB, f Flavour) *lab {
	t.Helper()
	dataplanetest.EnterNamespace(t)
	l := &lab{options: Options{
		Flavour: f, Devices: []string{"eth*"},
		Logger: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn})),
	}}
	l.Lab = dataplanetest.Lab{T: t, Read: func() (dataplane.Reader, error) { return Read(l.options) }}
	return l
}

// forEachFlavour runs a test in a lab of each flavour.
func forEachFlavour(t *testing.T, f func(t *testing.T, l *lab)) {
	for _, flavour := range bothFlavours {
		t.Run(string(flavour), func(t *testing.T) { f(t, newLab(t, flavour)) })
	}
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

// run runs a command in the lab's namespace.
func (l *lab) run(name string, args ...string) string {
	l.T.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		l.T.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// rules lists all tables of both families, without counters.
func (l *lab) rules() string {
	l.T.Helper()
	var b strings.Builder
	for _, v6 := range []bool{false, true} {
		for line := range strings.Lines(l.run(command(l.options.Flavour, v6, "save"))) {
			if !strings.HasPrefix(line, "#") {
				if before, _, ok := strings.Cut(line, " ["); ok && line[0] == ':' {
					line = before + "\n"
				}
				b.WriteString(line)
			}
		}
	}
	return b.String()
}

// tableOf is a Table of Services on dataplanetest's node.
func tableOf(services ...*dataplane.Service) *dataplane.Table {
	t := dataplanetest.Table(services...)
	t.Node = dataplanetest.Node()
	return t
}

// synthetic is dataplanetest.Synthetic on the same node.
func synthetic(n, m int) *dataplane.Table {
	t := dataplanetest.Synthetic(n, m)
	t.Node = dataplanetest.Node()
	return t
}
