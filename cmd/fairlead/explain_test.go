// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"fairlead.dev/dataplane"
	"fairlead.dev/explain"
)

// anAnswer has something of everything.
func anAnswer() explain.Answer {
	snat := netip.MustParseAddr("192.0.2.11")
	return explain.Answer{
		Dataplane: "ebpf", Client: netip.MustParseAddr("198.51.100.7"), ClientPort: 40000,
		Address: netip.MustParseAddr("192.0.2.11"), Port: 30080, Protocol: "TCP", From: explain.FromOutside,
		Outcome: explain.Forwarded, Service: "default/web", PortName: "http", Kind: "NodePort", Scope: "external", Path: "tc", Hook: "tc ingress",
		Policy: explain.Policy{
			Decides: "externalTrafficPolicy", ExternalTrafficPolicy: "Cluster", SessionAffinitySeconds: 600,
			SourceRanges: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}, MasqueradeExternal: true,
		},
		Backends: []explain.Backend{
			{Address: netip.MustParseAddr("10.244.1.11"), Port: 8080, State: "active", Local: true, Share: 0.5, Source: &explain.Source{Address: &snat, Masquerade: true, Why: "external"}},
			{Address: netip.MustParseAddr("10.244.2.11"), Port: 8080, State: "active", Share: 0.5, Source: &explain.Source{Masquerade: true, Why: "external"}},
			{Address: netip.MustParseAddr("192.0.2.11"), Port: 8080, State: "terminating", Local: true, HostNetwork: true},
		},
		Affinity: &explain.Affinity{Client: "198.51.100.7", Backend: netip.MustParseAddrPort("10.244.2.12:8080"), RemainingSeconds: 500, Why: "gone"},
		Flows: []dataplane.ConntrackRow{{
			Service: "default/web", PortName: "http", Protocol: "TCP", Client: netip.MustParseAddrPort("198.51.100.7:40000"),
			Frontend: netip.MustParseAddrPort("192.0.2.11:30080"), Backend: netip.MustParseAddrPort("10.244.1.11:8080"),
			Masquerade: "192.0.2.11:1024", Scope: "external", State: "closing", IdleSeconds: 3, AgeSeconds: 9,
		}},
		Because: []explain.Step{{Topic: "sourceRanges", Text: "it is in them"}, {Topic: "outcome", Text: "to one of 2 Backends"}},
		Unknown: []string{"not readable from here: something"},
	}
}

func TestAnAnswerIsPrintedForPeople(t *testing.T) {
	a := anAnswer()
	const want = `198.51.100.7:40000 -> 192.0.2.11:30080/TCP (ebpf)
FORWARDED: to one of 2 Backends

Source ranges it is in them

BACKEND            STATE         WHERE             SHARE   SEES
10.244.1.11:8080   active        this node         1/2     192.0.2.11 (SNAT)
10.244.2.11:8080   active        another node      1/2     an address of this node (SNAT)
192.0.2.11:8080    terminating   this node's own   -       -

Flow          198.51.100.7:40000 as 192.0.2.11:1024 -> 10.244.1.11:8080, closing, idle for 3s
Unknown       not readable from here: something
`
	var b bytes.Buffer
	if err := writeAnswer(&b, "text", &a); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, b.String()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	refused := explain.Answer{Client: a.Client, Address: a.Address, Port: 80, Protocol: "TCP", Dataplane: "ipvs", Outcome: explain.Refused,
		Reason: "no_backends", Because: []explain.Step{{Topic: "outcome", Text: "refused at once"}}}
	if got := headline(&refused); got != "REFUSED (no_backends): refused at once" {
		t.Errorf("headline %q", got)
	}
}

// What this test has is the contract: add to it, and change nothing.
func TestTheJSONOfAnAnswerIsAContract(t *testing.T) {
	const want = `{
  "dataplane": "ebpf",
  "client": "198.51.100.7",
  "clientPort": 40000,
  "address": "192.0.2.11",
  "port": 30080,
  "protocol": "TCP",
  "from": "outside",
  "outcome": "forwarded",
  "reason": "",
  "service": "default/web",
  "portName": "http",
  "kind": "NodePort",
  "scope": "external",
  "path": "tc",
  "hook": "tc ingress",
  "policy": {
    "decides": "externalTrafficPolicy",
    "internalTrafficPolicy": "",
    "externalTrafficPolicy": "Cluster",
    "sessionAffinitySeconds": 600,
    "sourceRanges": [
      "198.51.100.0/24"
    ],
    "masqueradeExternal": true
  },
  "backends": [
    {
      "address": "10.244.1.11",
      "port": 8080,
      "state": "active",
      "local": true,
      "hostNetwork": false,
      "share": 0.5,
      "source": {
        "address": "192.0.2.11",
        "masquerade": true,
        "why": "external"
      },
      "dropped": ""
    },
    {
      "address": "10.244.2.11",
      "port": 8080,
      "state": "active",
      "local": false,
      "hostNetwork": false,
      "share": 0.5,
      "source": {
        "address": null,
        "masquerade": true,
        "why": "external"
      },
      "dropped": ""
    },
    {
      "address": "192.0.2.11",
      "port": 8080,
      "state": "terminating",
      "local": true,
      "hostNetwork": true,
      "share": 0,
      "source": null,
      "dropped": ""
    }
  ],
  "affinity": {
    "client": "198.51.100.7",
    "backend": "10.244.2.12:8080",
    "remainingSeconds": 500,
    "honoured": false,
    "why": "gone"
  },
  "flows": [
    {
      "service": "default/web",
      "portName": "http",
      "protocol": "TCP",
      "client": "198.51.100.7:40000",
      "frontend": "192.0.2.11:30080",
      "backend": "10.244.1.11:8080",
      "masquerade": "192.0.2.11:1024",
      "scope": "external",
      "state": "closing",
      "idleSeconds": 3,
      "ageSeconds": 9
    }
  ],
  "because": [
    {
      "topic": "sourceRanges",
      "text": "it is in them"
    },
    {
      "topic": "outcome",
      "text": "to one of 2 Backends"
    }
  ],
  "unknown": [
    "not readable from here: something"
  ]
}
`
	a := anAnswer()
	var b bytes.Buffer
	if err := writeAnswer(&b, "json", &a); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, b.String()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	// Lists are never null, however little there is to say.
	none := explain.Judge(explain.Question{Client: a.Client, To: dataplane.FrontendKey{Address: a.Address, Port: 1, Protocol: dataplane.TCP}},
		explain.Facts{Inspection: &dataplane.Inspection{}, Origin: explain.FromPod})
	text, err := json.Marshal(none)
	if err != nil {
		t.Fatal(err)
	}
	var fields map[string]any
	if err := json.Unmarshal(text, &fields); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"backends", "flows", "because", "unknown"} {
		if fields[name] == nil {
			t.Errorf("%s is null in %s", name, text)
		}
	}
}
