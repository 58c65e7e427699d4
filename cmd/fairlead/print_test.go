// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
	"sigs.k8s.io/yaml"

	"fairlead.dev/dataplane"
)

// genRow makes rows with hostile strings in them: a kernel map may hold anything.
func genRow(t *rapid.T) dataplane.Row {
	text := rapid.OneOf(rapid.String(), rapid.SampledFrom([]string{"", "true", "No", "~", "1e3", "0x1f", "12:30", "- a", "a: b", "#", "\xff", "\u2028", "=", "<<", "default/web"}))
	addr := rapid.Custom(func(t *rapid.T) netip.Addr {
		if rapid.Bool().Draw(t, "ipv6") {
			return netip.AddrFrom16([16]byte(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "address")))
		}
		return netip.AddrFrom4([4]byte(rapid.SliceOfN(rapid.Byte(), 4, 4).Draw(t, "address")))
	})
	return dataplane.Row{
		Service: text.Draw(t, "service"), PortName: text.Draw(t, "portName"), Kind: text.Draw(t, "kind"),
		Address: addr.Draw(t, "address"), Port: rapid.Uint16().Draw(t, "port"), Protocol: "TCP", Scope: "internal",
		SessionAffinitySeconds: rapid.Uint32().Draw(t, "affinity"),
		Backends: rapid.SliceOfN(rapid.Custom(func(t *rapid.T) dataplane.BackendRow {
			return dataplane.BackendRow{Address: addr.Draw(t, "backend"), Port: rapid.Uint16().Draw(t, "port"), State: text.Draw(t, "state"), Local: rapid.Bool().Draw(t, "local")}
		}), 0, 3).Draw(t, "backends"),
	}
}

func TestServicesAsJSONAreTheDumpsOwnJSONAndYAMLSaysTheSame(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d := dataplane.Dump{Dataplane: "ebpf", Frontends: rapid.SliceOfN(rapid.Custom(genRow), 0, 4).Draw(t, "rows")}
		if d.Frontends == nil {
			d.Frontends = []dataplane.Row{}
		}
		want, err := json.Marshal(d)
		if err != nil {
			t.Fatal(err)
		}
		var asJSON, asYAML, compact bytes.Buffer
		if err := writeDump(&asJSON, "json", "ebpf", servicesListing(d.Frontends)); err != nil {
			t.Fatal(err)
		}
		if err := json.Compact(&compact, asJSON.Bytes()); err != nil {
			t.Fatalf("%v in\n%s", err, asJSON.String())
		}
		if diff := cmp.Diff(string(want), compact.String()); diff != "" {
			t.Fatalf("JSON (-want +got)\n%s", diff)
		}
		if err := writeDump(&asYAML, "yaml", "ebpf", servicesListing(d.Frontends)); err != nil {
			t.Fatal(err)
		}
		back, err := yaml.YAMLToJSONStrict(asYAML.Bytes())
		if err != nil {
			t.Fatalf("%v in\n%s", err, asYAML.String())
		}
		var fromYAML, fromJSON any
		if err := json.Unmarshal(back, &fromYAML); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(want, &fromJSON); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(fromJSON, fromYAML); diff != "" {
			t.Fatalf("YAML (-JSON +YAML)\n%s\n%s", diff, asYAML.String())
		}
	})
}

func TestABackendIsCountedOnceForEachFrontendThatReachesIt(t *testing.T) {
	b := func(a string, local bool) dataplane.BackendRow {
		return dataplane.BackendRow{Address: netip.MustParseAddr(a), Port: 8080, State: "active", Local: local}
	}
	row := func(service, kind, addr, scope string, bs ...dataplane.BackendRow) dataplane.Row {
		return dataplane.Row{Service: service, PortName: "http", Kind: kind, Address: netip.MustParseAddr(addr), Port: 80, Protocol: "TCP", Scope: scope, Backends: bs}
	}
	rows := []dataplane.Row{
		row("a/web", "ClusterIP", "10.96.0.1", "internal", b("10.0.0.1", true), b("10.0.0.2", false)),
		row("a/web", "NodePort", "192.0.2.1", "internal", b("10.0.0.1", true), b("10.0.0.2", false)),
		row("a/web", "NodePort", "192.0.2.1", "external", b("10.0.0.1", true)),
		row("b/web", "ClusterIP", "10.96.0.2", "internal", b("10.0.0.1", true)),
	}
	dataplane.SortRows(rows)
	var got []string
	for _, r := range backendRows(rows) {
		got = append(got, fmt.Sprint(r.Service, " ", r.Address, " ", r.Scopes, " ", r.Frontends))
	}
	want := []string{"a/web 10.0.0.1 internal,external 2", "a/web 10.0.0.2 internal 2", "b/web 10.0.0.1 internal 1"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestAFailedWriteIsAnError(t *testing.T) {
	for _, format := range dumpFormats {
		if err := writeDump(failingWriter{}, format, "ebpf", servicesListing(nil)); err == nil {
			t.Errorf("-o %s: no error", format)
		}
	}
}

type failingWriter struct{}

func (failingWriter) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }

func TestTheServiceFilterTakes(t *testing.T) {
	for _, tc := range []struct {
		filter  serviceFilter
		service string
		want    bool
	}{
		{serviceFilter{}, "a/b", true},
		{serviceFilter{namespace: "a"}, "a/b", true},
		{serviceFilter{namespace: "a"}, "c/a", false},
		{serviceFilter{name: "b"}, "a/b", true},
		{serviceFilter{name: "b"}, "b/a", false},
		{serviceFilter{name: "a/b"}, "a/b", true},
		{serviceFilter{name: "a/b"}, "c/b", false},
		{serviceFilter{namespace: "a", name: "a/b"}, "a/b", true},
	} {
		f := tc.filter
		if err := f.check(); err != nil {
			t.Fatal(err)
		}
		if got := f.takes(tc.service); got != tc.want {
			t.Errorf("%+v takes %s: %v, want %v", tc.filter, tc.service, got, tc.want)
		}
	}
}

// BenchmarkDump writes a node of 50,000 Services with 10 Backends each.
func BenchmarkDump(b *testing.B) {
	rows := make([]dataplane.Row, 50_000)
	for i := range rows {
		rows[i] = dataplane.Row{Service: fmt.Sprintf("default/service-%d", i), PortName: "http", Kind: "ClusterIP",
			Address: netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)}), Port: 80, Protocol: "TCP", Scope: "internal"}
		for j := range 10 {
			rows[i].Backends = append(rows[i].Backends, dataplane.BackendRow{
				Address: netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), byte(j)}), Port: 8080, State: "active"})
		}
	}
	for _, format := range dumpFormats {
		b.Run(format, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := writeDump(io.Discard, format, "ebpf", servicesListing(rows)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	b.Run("backends", func(b *testing.B) {
		for b.Loop() {
			if err := writeDump(io.Discard, "table", "ebpf", backendsListing(backendRows(rows))); err != nil {
				b.Fatal(err)
			}
		}
	})
}
