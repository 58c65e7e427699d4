// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"fairlead.dev/controller/source"
)

// probe asks a health server that has a clock of its own.
type probe struct {
	t        *testing.T
	progress *progress
	clock    time.Time
	eligible bool
	handler  http.Handler
}

func newProbe(t *testing.T) *probe {
	p := &probe{t: t, clock: time.Unix(1_800_000_000, 0), eligible: true}
	p.progress = &progress{now: func() time.Time { return p.clock }, timeout: time.Minute}
	m := newMetrics()
	h := &healthServer{
		progress: p.progress, eligible: func() bool { return p.eligible }, connected: func() bool { return true },
		healthz: m.healthz, livez: m.livez,
	}
	p.handler = readOnly(h.handler())
	return p
}

func (p *probe) expect(when string, healthz, livez int) {
	p.t.Helper()
	for path, want := range map[string]int{"/healthz": healthz, "/livez": livez} {
		r := httptest.NewRecorder()
		p.handler.ServeHTTP(r, httptest.NewRequest(http.MethodGet, path, nil))
		if r.Code != want {
			p.t.Errorf("%s: %s answers %d, want %d: %s", when, path, r.Code, want, r.Body)
		}
	}
}

func TestHealthFollowsWhatWaitsForTheKernel(t *testing.T) {
	p := newProbe(t)
	p.expect("before the first Sync", 503, 200)
	p.progress.queued(1, 0)
	p.clock = p.clock.Add(2 * time.Minute)
	p.expect("while the source is slow to deliver", 503, 200)
	p.progress.taken()
	p.progress.done(0)
	p.expect("after the first Sync", 200, 200)
	p.clock = p.clock.Add(time.Hour)
	p.expect("after a quiet hour", 200, 200)

	p.progress.queued(0, 1)
	p.clock = p.clock.Add(time.Minute)
	p.expect("a change that has waited for the timeout", 200, 200)
	p.progress.taken()
	p.progress.queued(0, 1)
	p.clock = p.clock.Add(time.Second)
	p.expect("a change that has waited longer", 503, 503)
	p.progress.taken()
	p.expect("when it is compiled only", 503, 503)
	p.progress.done(0)
	p.expect("when it is in force", 200, 200)

	p.eligible = false
	p.expect("a node that is about to go", 503, 200)
	p.eligible = true
	p.progress.done(3)
	p.expect("three Services that fail by themselves", 200, 200)
}

func TestWhatArrivesDuringAnApplyStaysPendingAfterIt(t *testing.T) {
	p := newProbe(t)
	p.progress.queued(2, 1)
	p.progress.taken()
	p.progress.queued(1, 5)
	p.progress.done(0)
	if b, _, _ := p.progress.pending(); b.services != 1 || b.endpoints != 5 || b.since.IsZero() {
		t.Errorf("pending %+v, want the 1 Service and 5 endpoint changes that came later", b)
	}
}

func TestHealthBodyHasTheKeysOfKubeProxy(t *testing.T) {
	p := newProbe(t)
	p.progress.taken()
	p.progress.done(2)
	done := p.clock
	p.progress.queued(1, 0)
	p.clock = p.clock.Add(time.Second)
	for path, eligible := range map[string]bool{"/healthz": true, "/livez": false} {
		r := httptest.NewRecorder()
		p.handler.ServeHTTP(r, httptest.NewRequest(http.MethodGet, path, nil))
		var body struct {
			LastUpdated, CurrentTime time.Time
			NodeEligible             *bool
			FailedServices           int
		}
		if err := json.Unmarshal(r.Body.Bytes(), &body); err != nil {
			t.Fatalf("%s: %v: %s", path, err, r.Body)
		}
		if !body.LastUpdated.Equal(done) || !body.CurrentTime.Equal(p.clock) || (body.NodeEligible != nil) != eligible || body.FailedServices != 2 {
			t.Errorf("%s: %s", path, r.Body)
		}
		if got := r.Header().Get("Content-Type"); got != "application/json" {
			t.Errorf("%s: Content-Type %q", path, got)
		}
		if got := r.Header().Get("X-Content-Type-Options"); got != "nosniff" {
			t.Errorf("%s: X-Content-Type-Options %q", path, got)
		}
	}
}

func TestHealthServersRefuseToBeWrittenTo(t *testing.T) {
	p := newProbe(t)
	for _, method := range []string{http.MethodPost, http.MethodPut, http.MethodDelete, http.MethodOptions, http.MethodConnect} {
		r := httptest.NewRecorder()
		p.handler.ServeHTTP(r, httptest.NewRequest(method, "/livez", strings.NewReader("x")))
		if r.Code != http.StatusMethodNotAllowed {
			t.Errorf("%s: %d, want 405", method, r.Code)
		}
	}
}

// get asks a server of an agent, once it listens.
func get(t *testing.T, s *server, path string) (int, string) {
	t.Helper()
	eventually(t, "the server listens", func() bool { return s.bound.Load() != nil })
	return getURL(t, "http://"+s.bound.Load().String()+path)
}

func getURL(t *testing.T, url string) (int, string) {
	t.Helper()
	c := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	r, err := c.Get(url)
	if err != nil {
		return 0, err.Error()
	}
	defer r.Body.Close()
	body, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return r.StatusCode, string(body)
}

func TestHealthzOfAnAgentTellsFailureAndRecovery(t *testing.T) {
	a := newAgent(t, func(o *Options) {
		o.HealthzBindAddress, o.HealthTimeout = "127.0.0.1:0", 150*time.Millisecond
	})
	if code, body := get(t, a.healthz, "/healthz"); code != 503 || !strings.Contains(body, `"notSynced":true`) {
		t.Errorf("before the first Sync: %d %s", code, body)
	}
	a.source.do(func(h source.Handler) { h.OnSynced() })
	eventually(t, "200", func() bool { code, _ := get(t, a.healthz, "/healthz"); return code == 200 })
	fails := make([]error, 5)
	for i := range fails {
		fails[i] = errors.New("no")
	}
	a.model.FailNext(fails...)
	a.source.do(func(h source.Handler) { give(h, 1, "10.244.0.1") })
	eventually(t, "503", func() bool { code, _ := get(t, a.healthz, "/healthz"); return code == 503 })
	if code, body := get(t, a.healthz, "/livez"); code != 503 {
		t.Errorf("livez: %d %s", code, body)
	}
	eventually(t, "200 again", func() bool { code, _ := get(t, a.healthz, "/healthz"); return code == 200 })
	if a.backends(1) != "10.244.0.1" {
		t.Error("healthy without the Service in the kernel")
	}
}

func TestHealthzOfAnAgentFollowsItsNode(t *testing.T) {
	a := started(t, 1, func(o *Options) { o.HealthzBindAddress = "127.0.0.1:0" })
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}}
	leaving := node.DeepCopy()
	leaving.DeletionTimestamp = &metav1.Time{Time: time.Now()}
	a.source.do(func(h source.Handler) { h.OnNode("n1", node); h.OnNode("another", leaving) })
	if code, body := get(t, a.healthz, "/healthz"); code != 200 {
		t.Errorf("healthz %d %s", code, body)
	}
	a.source.do(func(h source.Handler) { h.OnNode("n1", leaving) })
	if code, body := get(t, a.healthz, "/healthz"); code != 503 || !strings.Contains(body, `"nodeEligible":false`) {
		t.Errorf("healthz of a node being deleted: %d %s", code, body)
	}
	if code, body := get(t, a.healthz, "/livez"); code != 200 {
		t.Errorf("livez of a node being deleted: %d %s", code, body)
	}
	a.source.disconnected.Store(true)
	if _, body := get(t, a.healthz, "/livez"); !strings.Contains(body, `"sourceDisconnected":true`) {
		t.Errorf("livez does not tell of the lost source: %s", body)
	}
}

func TestAnAddressInUseEndsRunWithTheRemedy(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	a := newAgent(t, func(o *Options) { o.MetricsBindAddress = l.Addr().String() })
	select {
	case err := <-a.done:
		if err == nil || !strings.Contains(err.Error(), "--metrics-bind-address") || !strings.Contains(err.Error(), l.Addr().String()) {
			t.Errorf("Run: %v", err)
		}
		a.done <- nil
	case <-time.After(3 * bindPatience):
		t.Fatal("Run goes on without its metrics")
	}
}

func TestAnAddressThatIsLetGoIsTaken(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	a := started(t, 0, func(o *Options) { o.HealthzBindAddress = l.Addr().String() })
	time.Sleep(50 * time.Millisecond)
	l.Close()
	if code, body := get(t, a.healthz, "/healthz"); code != 200 {
		t.Errorf("healthz %d %s", code, body)
	}
}
