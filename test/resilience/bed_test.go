// SPDX-License-Identifier: Apache-2.0

package resilience

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"fairlead.dev/test/conformance"
	"fairlead.dev/test/internal/namespace"
	"fairlead.dev/test/internal/traffic"
)

// binaries are two builds of the agent that differ in their version.
var binaries [2]string

func TestMain(m *testing.M) {
	os.Exit(runTests(m))
}

func runTests(m *testing.M) int {
	if os.Getuid() != 0 {
		fmt.Println("needs root: agents are run in network namespaces and cgroups")
		return m.Run()
	}
	dir, err := os.MkdirTemp("", "fairlead-resilience-")
	if err != nil {
		fmt.Println(err)
		return 1
	}
	defer os.RemoveAll(dir)
	for i, version := range []string{"resilience-a", "resilience-b"} {
		binaries[i] = filepath.Join(dir, "fairlead-"+version)
		out, err := exec.Command("go", "build", "-ldflags", "-X main.version="+version, "-o", binaries[i], "fairlead.dev/cmd/fairlead").CombinedOutput()
		if err != nil {
			fmt.Printf("build cmd/fairlead: %v\n%s", err, out)
			return 1
		}
	}
	return m.Run()
}

// seed gives the random choices of a test, and says how to repeat them.
func seed(t *testing.T) (*rand.Rand, uint64) {
	t.Helper()
	n := uint64(time.Now().UnixNano())
	if text := os.Getenv("FAIRLEAD_SEED"); text != "" {
		var err error
		if n, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatalf("FAIRLEAD_SEED=%q: want a number", text)
		}
	}
	t.Logf("FAIRLEAD_SEED=%d repeats the choices of this run", n)
	return rand.New(rand.NewPCG(n, n)), n
}

// bed is a lab and the places of one agent on node1.
type bed struct {
	t      *testing.T
	lab    *conformance.Lab
	node   *conformance.Node
	thread *namespace.Thread
	// manifests is the agent's directory, state its --state-dir.
	manifests, state string
}

func newBed(t *testing.T) *bed {
	t.Helper()
	watchForLeftovers(t)
	b := &bed{t: t, lab: conformance.NewLab(t)}
	b.node = b.lab.Node(1)
	dir, err := os.MkdirTemp("", fmt.Sprintf("fairlead-resilience-%d-", os.Getpid()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	b.manifests, b.state = filepath.Join(dir, "manifests"), filepath.Join(dir, "state")
	if err := os.Mkdir(b.manifests, 0o755); err != nil {
		t.Fatal(err)
	}
	if b.thread, err = namespace.NewThread(b.node.NetNSPath); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.thread.Close)
	return b
}

func (b *bed) member(name string) conformance.Member {
	b.t.Helper()
	return b.lab.Member(b.t, name)
}

// load is a running load process.
type load struct {
	*traffic.Process
	name   string
	plan   loadPlan
	report loadReport
}

// load starts asking from a member's place.
func (b *bed) load(from string, plan loadPlan) *load {
	b.t.Helper()
	m := b.member(from)
	p, err := traffic.Start(from, m.PID, m.CgroupDir, plan)
	if err != nil {
		b.t.Fatal(err)
	}
	l := &load{Process: p, name: from, plan: plan}
	b.t.Cleanup(func() { l.stop() })
	return l
}

// await waits until each stream of the loads has asked once.
func await(loads []*load) {
	for _, l := range loads {
		l.Await()
	}
}

// stop ends the load and waits for its report.
func (l *load) stop() (_ loadReport, err error) {
	l.report, err = l.Stop()
	return l.report, err
}

func (l *load) question(r *record) string { return l.Question(r) }

func (l *load) server(r *record) netip.AddrPort { return l.Server(r) }

// What test/internal/traffic has.
type (
	stream     = traffic.Stream
	loadPlan   = traffic.Plan
	loadReport = traffic.Report
	record     = traffic.Record
)

const (
	tcpFresh  = traffic.TCPFresh
	udpFresh  = traffic.UDPFresh
	udpSendto = traffic.UDPSendto
	tcpHeld   = traffic.TCPHeld
	udpHeld   = traffic.UDPHeld
	udpShared = traffic.UDPShared
)

func monotonic() int64 { return traffic.Monotonic() }
