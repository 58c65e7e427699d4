// SPDX-License-Identifier: Apache-2.0

package dataplanetest

import (
	"context"
	"flag"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"fairlead.dev/dataplane"
)

// agent drives the kernel of a Model. After Close, another one does.
type agent struct {
	*Model
	apply func(m *Model, c dataplane.Change) error
}

func (a agent) Apply(_ context.Context, c dataplane.Change) error { return a.apply(a.Model, c) }

type modelReader struct {
	dataplane.Reader
	m *Model
}

func (r modelReader) Close() error { return nil }

func (r modelReader) Table() (dataplane.Dump, error) {
	k := r.m.Kernel()
	rows := k.Rows()
	return dataplane.Dump{Frontends: append([]dataplane.Row{}, rows...)}, nil
}

func follow(t testing.TB, apply func(m *Model, c dataplane.Change) error) {
	m := New()
	m.Forget()
	Follows(t, FollowOptions{
		Open:  func() (dataplane.Dataplane, error) { return agent{m, apply}, nil },
		Read:  func() (dataplane.Reader, error) { return modelReader{m: m}, nil },
		Shape: Shape{Backends: 4, Ports: 5}, Steps: 12, RestartOneIn: 6,
	})
}

func rightly(m *Model, c dataplane.Change) error { return m.Apply(context.Background(), c) }

func TestModelFollowsAnyChangeAndSurvivesAnyRestart(t *testing.T) {
	follow(t, rightly)
}

// recorder keeps what a test says of its failure.
type recorder struct {
	testing.TB
	failed bool
	said   strings.Builder
}

func (r *recorder) Failed() bool                 { return r.failed }
func (r *recorder) FailNow()                     { r.failed = true; runtime.Goexit() }
func (r *recorder) Log(args ...any)              { r.Logf("%v", args) }
func (r *recorder) Error(args ...any)            { r.Errorf("%v", args) }
func (r *recorder) Fatal(args ...any)            { r.Fatalf("%v", args) }
func (r *recorder) Logf(s string, args ...any)   { r.said.WriteString(fmt.Sprintf(s+"\n", args...)) }
func (r *recorder) Fatalf(s string, args ...any) { r.Errorf(s, args...); r.FailNow() }
func (r *recorder) Errorf(s string, args ...any) {
	r.failed = true
	r.Logf(s, args...)
}

func TestFollowsFindsWhatADataplaneDoesWrong(t *testing.T) {
	for name, value := range map[string]string{"rapid.nofailfile": "true", "rapid.shrinktime": "1s"} {
		f := flag.Lookup(name)
		was := f.Value.String()
		if err := f.Value.Set(value); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = f.Value.Set(was) })
	}
	for _, tc := range []struct {
		wrong string
		apply func(m *Model, c dataplane.Change) error
		want  string
	}{
		{"a removed Service stays", func(m *Model, c dataplane.Change) error {
			c.Services = maps.Clone(c.Services)
			maps.DeleteFunc(c.Services, func(_ dataplane.ServiceName, s *dataplane.Service) bool { return s == nil })
			return rightly(m, c)
		}, "does not hold the Table"},
		{"source ranges, which a dump has not, are forgotten", func(m *Model, c dataplane.Change) error {
			return rightly(m, each(c, func(f *dataplane.Frontend) { f.SourceRanges = nil }))
		}, "a full check after the Change changed"},
		{"affinity is for IPv4 only", func(m *Model, c dataplane.Change) error {
			return rightly(m, each(c, func(f *dataplane.Frontend) {
				if f.Address.Is6() {
					f.AffinitySeconds = 0
				}
			}))
		}, "does not hold the Table"},
		{"own changes are drift", func(m *Model, c dataplane.Change) error {
			err := rightly(m, c)
			m.TamperSeen(func(*dataplane.Table) {})
			return err
		}, "own changes signalled drift"},
	} {
		r := &recorder{TB: t}
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			follow(r, tc.apply)
		}()
		<-ended
		if !r.failed || !strings.Contains(r.said.String(), tc.want) {
			t.Errorf("%s: failed is %t, it says\n%s\nwant %q", tc.wrong, r.failed, r.said.String(), tc.want)
		}
	}
}

// each gives a Change whose Frontends are changed.
func each(c dataplane.Change, change func(f *dataplane.Frontend)) dataplane.Change {
	services := map[dataplane.ServiceName]*dataplane.Service{}
	for name, s := range c.Services {
		if s != nil {
			s = &dataplane.Service{Name: s.Name, Frontends: slices.Clone(s.Frontends)}
			for i := range s.Frontends {
				change(&s.Frontends[i])
			}
		}
		services[name] = s
	}
	return dataplane.Change{Services: services, Node: c.Node}
}

func TestDrawnServicesObeyTheContractOfATable(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		taken := map[dataplane.FrontendKey]dataplane.ServiceName{}
		for n := range 60 {
			s := DrawService(t, n+1, Shape{Backends: 3, Ports: 4})
			for _, f := range s.Frontends {
				if of, is := taken[f.FrontendKey]; is {
					t.Fatalf("%s is of %s and of %s", f.FrontendKey, of, s.Name)
				}
				taken[f.FrontendKey] = s.Name
				for _, b := range f.Draining {
					if slices.Contains(f.Internal.Backends, b) || slices.Contains(f.External.Backends, b) {
						t.Fatalf("%s: Backend %v drains and is in a set", f.FrontendKey, b)
					}
				}
				for _, set := range []dataplane.BackendSet{f.Internal, f.External} {
					if !slices.IsSortedFunc(set.Backends, dataplane.CompareBackends) {
						t.Fatalf("%s: the set is not sorted: %v", f.FrontendKey, set.Backends)
					}
				}
			}
		}
	})
}

// What is listed here was once drawn for one Dataplane or another.
func TestDrawnServicesAreOfEverySort(t *testing.T) {
	seen := map[string]int{}
	rapid.Check(t, func(t *rapid.T) {
		for n := range 5 {
			for what, is := range sorts(DrawService(t, n+1, Shape{})) {
				seen[what] += map[bool]int{true: 1}[is]
			}
		}
	})
	for what, n := range seen {
		if n == 0 {
			t.Errorf("of 500 Services, none had %s", what)
		}
	}
	t.Logf("of 500 Services: %v", seen)
}

// sorts tells what a Service is and what it is not.
func sorts(s *dataplane.Service) map[string]bool {
	sorts := map[string]bool{
		"a long name": len(s.Name.Name) > 200, "no Frontend": len(s.Frontends) == 0,
	}
	for k := dataplane.ClusterIP; k <= dataplane.HostPort; k++ {
		sorts[k.String()] = false
	}
	for _, p := range []dataplane.Protocol{dataplane.TCP, dataplane.UDP, dataplane.SCTP} {
		sorts[p.String()] = false
	}
	ports, families, named := map[uint16]bool{}, map[bool]bool{}, map[string]bool{}
	for _, f := range s.Frontends {
		families[f.Address.Is4()] = true
		sorts[f.Kind.String()], sorts[f.Protocol.String()] = true, true
		for what, is := range map[string]bool{
			"affinity of a minute": f.AffinitySeconds == 60, "affinity of hours": f.AffinitySeconds == 10800,
			"a port without a name": f.PortName == "", "draining Backends": len(f.Draining) > 0,
			"no masquerading": !f.MasqueradeExternal, "an empty set": len(f.External.Backends) == 0,
			"an empty set that drops":    len(f.External.Backends) == 0 && f.External.OnEmpty == dataplane.Drop,
			"terminating Backends alone": len(f.Internal.Backends) > 0 && f.Internal.Backends[0].State == dataplane.Terminating,
			"sets that differ":           !f.Internal.Equal(f.External),
			"more than 16 Backends":      len(f.Internal.Backends) > 16,
			"one range in another":       len(f.SourceRanges) > 1 && f.SourceRanges[0].Overlaps(f.SourceRanges[1]),
			"a range for all":            len(f.SourceRanges) > 0 && f.SourceRanges[0].Bits() == 0,
			"a shared address":           f.Kind == dataplane.ExternalIP && f.Port >= 1000,
			"an address of its own":      f.Kind == dataplane.ExternalIP && f.Port < 1000,
			"loopback":                   f.Address.IsLoopback(),
		} {
			sorts[what] = sorts[what] || is
		}
		if f.Kind == dataplane.ClusterIP && f.Address.Is4() {
			sorts["two ports of one name"] = sorts["two ports of one name"] || named[f.PortName]
			named[f.PortName], ports[f.Port] = true, true
		}
	}
	sorts["many ports"], sorts["IPv4"], sorts["IPv6"] = len(ports) == 20, families[true], families[false]
	sorts["both families"] = families[true] && families[false]
	return sorts
}
