// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"

	"fairlead.dev/podrunner/cri"
)

// bench is a Prober that runs, with what it told.
type bench struct {
	*Prober
	t       *testing.T
	changed chan types.UID
	mu      sync.Mutex
	said    []string
}

func newBench(t *testing.T, exec func(command []string) (int, error)) *bench {
	b := &bench{t: t, changed: make(chan types.UID, 100)}
	b.Prober = New(Options{
		Exec: func(_ context.Context, _ string, command []string, _ time.Duration) ([]byte, int, error) {
			code, err := exec(command)
			return []byte("output"), code, err
		},
		Changed: func(pod types.UID) { b.changed <- pod },
		Unhealthy: func(_ *Target, reason, message string) {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.said = append(b.said, reason+" "+message)
		},
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { b.Run(ctx); close(done) }()
	t.Cleanup(func() { cancel(); <-done })
	return b
}

func (b *bench) await(k Kind, want Result) {
	b.t.Helper()
	end := time.After(20 * time.Second)
	for {
		if got := b.Result("u", "id", k); got == want {
			return
		}
		select {
		case <-b.changed:
		case <-end:
			b.t.Fatalf("%s is %d, want %d; said %q", k, b.Result("u", "id", k), want, b.said)
		}
	}
}

func command(args ...string) corev1.ProbeHandler {
	return corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: args}}
}

func probed(h corev1.ProbeHandler, period, success, failure int32) *corev1.Probe {
	return &corev1.Probe{ProbeHandler: h, TimeoutSeconds: 1, PeriodSeconds: period, SuccessThreshold: success, FailureThreshold: failure}
}

func all(c *corev1.Container) (targets []Target) {
	for _, k := range []Kind{Startup, Readiness, Liveness} {
		targets = append(targets, Target{Pod: "u", Container: c, ContainerID: "id", Kind: k, Host: "127.0.0.1", Started: time.Now()})
	}
	return targets
}

func TestReadinessAndLivenessWaitForTheStartupProbe(t *testing.T) {
	var up atomic.Bool
	var early atomic.Int32
	looked := make(chan struct{})
	b := newBench(t, func(c []string) (int, error) {
		if c[0] != "startup" && !up.Load() {
			early.Add(1)
		}
		<-looked
		if c[0] == "startup" && !up.Load() {
			up.Store(true) // the second time it is
			return 1, nil
		}
		return 0, nil
	})
	b.Set("u", all(&corev1.Container{
		StartupProbe: probed(command("startup"), 1, 1, 5), ReadinessProbe: probed(command("ready"), 1, 1, 3), LivenessProbe: probed(command("live"), 1, 1, 3),
	}))
	if r := b.Result("u", "id", Readiness); r != Unknown {
		t.Errorf("ready before it was asked: %d", r)
	}
	close(looked)
	b.await(Startup, Success)
	b.await(Readiness, Success)
	b.await(Liveness, Success)
	if n := early.Load(); n > 0 {
		t.Errorf("asked %d times before the container had started", n)
	}
}

func TestThresholdsCountInARow(t *testing.T) {
	answers := []int{0, 1, 0, 1, 1, 0, 1, 1, 1, 0, 0}
	//               ^ready          not ^3rd in a row   ^ready again
	var asked atomic.Int32
	results := make(chan Result, 20)
	var b *bench
	b = newBench(t, func([]string) (int, error) {
		results <- b.Result("u", "id", Readiness)
		n := int(asked.Add(1)) - 1
		return answers[min(n, len(answers)-1)], nil
	})
	p := probed(command("x"), 1, 2, 3)
	p.SuccessThreshold = 1
	// The period is at least a second: the entry is made due by hand.
	b.Set("u", all(&corev1.Container{ReadinessProbe: p}))
	want := []Result{Unknown, Success, Success, Success, Success, Success, Success, Success, Success, Failure, Success}
	for i, w := range want {
		if got := <-results; got != w {
			t.Errorf("before answer %d: %d, want %d", i, got, w)
		}
		b.hurry()
	}
}

// hurry makes everything due now.
func (b *bench) hurry() {
	for range 200 {
		b.Prober.mu.Lock()
		waiting := len(b.queue.h)
		for _, e := range b.queue.h {
			e.due = time.Now()
		}
		b.Prober.mu.Unlock()
		if waiting > 0 {
			break
		}
		time.Sleep(time.Millisecond)
	}
	select {
	case b.poke <- struct{}{}:
	default:
	}
}

func TestAContainerThatIsNotAliveIsToldOnce(t *testing.T) {
	var asked atomic.Int32
	looked := make(chan struct{})
	defer close(looked)
	b := newBench(t, func([]string) (int, error) {
		if asked.Add(1) > 1 {
			<-looked
		}
		return 1, nil
	})
	b.Set("u", all(&corev1.Container{LivenessProbe: probed(command("x"), 1, 1, 1)}))
	b.await(Liveness, Failure)
	b.hurry()
	time.Sleep(50 * time.Millisecond)
	if n := asked.Load(); n != 1 {
		t.Errorf("asked %d times, want 1: it is to be ended", n)
	}
	if len(b.said) != 1 || b.said[0] != "Unhealthy Liveness probe failed: output" {
		t.Errorf("said %q", b.said)
	}
	c := &corev1.Container{LivenessProbe: probed(command("x"), 1, 1, 1)}
	b.Set("u", []Target{{Pod: "u", Container: c, ContainerID: "next", Kind: Liveness, Started: time.Now()}})
	if r := b.Result("u", "next", Liveness); r != Unknown {
		t.Errorf("the next container begins with %d", r)
	}
}

func TestAnErrorOfTheRuntimeIsNoFailureOfTheContainer(t *testing.T) {
	var asked atomic.Int32
	b := newBench(t, func([]string) (int, error) { asked.Add(1); return 0, errors.New("runtime is away") })
	c := &corev1.Container{LivenessProbe: probed(command("x"), 1, 1, 1)}
	b.Set("u", all(c))
	for asked.Load() < 3 {
		time.Sleep(time.Millisecond)
	}
	time.Sleep(20 * time.Millisecond)
	if r := b.Result("u", "id", Liveness); r != Unknown {
		t.Errorf("result %d, want none", r)
	}
	timeout := newBench(t, func([]string) (int, error) { return 0, fmt.Errorf("%w after 1s", cri.ErrTimeout) })
	timeout.Set("u", all(c))
	timeout.await(Liveness, Failure)
}

func TestWhatWasKnownHoldsUntilAskedAgain(t *testing.T) {
	block := make(chan struct{})
	b := newBench(t, func(c []string) (int, error) { <-block; return 1, nil })
	c := &corev1.Container{StartupProbe: probed(command("s"), 1, 1, 1), ReadinessProbe: probed(command("r"), 1, 1, 1)}
	targets := all(c)
	targets[0].Initial, targets[1].Initial = Success, Success
	b.Set("u", targets)
	if b.Result("u", "id", Startup) != Success || b.Result("u", "id", Readiness) != Success {
		t.Error("it is not as it was known")
	}
	close(block)
	b.await(Readiness, Failure)
	if b.Result("u", "id", Startup) != Success {
		t.Error("a container that has started was asked again whether it has")
	}
}

func TestOneSlowContainerDoesNotHoldAnotherUp(t *testing.T) {
	block := make(chan struct{})
	defer close(block)
	b := newBench(t, func(c []string) (int, error) {
		if c[0] == "slow" {
			<-block
		}
		return 0, nil
	})
	slow, quick := &corev1.Container{ReadinessProbe: probed(command("slow"), 1, 1, 1)}, &corev1.Container{ReadinessProbe: probed(command("quick"), 1, 1, 1)}
	for i := range 50 {
		id := fmt.Sprint("slow", i)
		b.Set(types.UID(id), []Target{{Pod: types.UID(id), Container: slow, ContainerID: id, Kind: Readiness, Started: time.Now()}})
	}
	b.Set("u", []Target{{Pod: "u", Container: quick, ContainerID: "id", Kind: Readiness, Started: time.Now()}})
	b.await(Readiness, Success)
}

func TestHandlersAskAsDocumented(t *testing.T) {
	seen := make(chan *http.Request, 10)
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/ok":
			seen <- r
		case "/bad":
			w.WriteHeader(503)
		case "/here":
			http.Redirect(w, r, "/bad", http.StatusFound)
		case "/away":
			http.Redirect(w, r, "http://example.invalid/", http.StatusFound)
		case "/slow":
			<-r.Context().Done()
		}
	}))
	defer web.Close()
	secure := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	defer secure.Close()
	port := func(s *httptest.Server) intstr.IntOrString {
		return intstr.FromInt32(int32(s.Listener.Addr().(*net.TCPAddr).Port))
	}
	get := func(path string) corev1.ProbeHandler {
		return corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: path, Port: port(web)}}
	}
	named := get("/ok")
	named.HTTPGet.Port = intstr.FromString("web")
	named.HTTPGet.HTTPHeaders = []corev1.HTTPHeader{{Name: "Host", Value: "other.test"}, {Name: "X-A", Value: "1"}}
	none := get("/ok")
	none.HTTPGet.Port = intstr.FromString("none")
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed := intstr.FromInt32(int32(free.Addr().(*net.TCPAddr).Port))
	free.Close()

	b := newBench(t, func(c []string) (int, error) {
		if strings.Join(c, " ") != "say hello $(UNKNOWN) $X" {
			return 1, nil
		}
		return 0, nil
	})
	c := &corev1.Container{
		Name: "c", Ports: []corev1.ContainerPort{{Name: "web", ContainerPort: port(web).IntVal}},
		Env: []corev1.EnvVar{{Name: "GREETING", Value: "hello"}},
	}
	for name, tt := range map[string]struct {
		h    corev1.ProbeHandler
		want answer
		err  string
	}{
		"200":           {h: get("/ok"), want: answer{ok: true}},
		"503":           {h: get("/bad"), want: answer{output: "HTTP probe failed with statuscode: 503"}},
		"redirect here": {h: get("/here"), want: answer{output: "HTTP probe failed with statuscode: 503"}},
		"redirect away": {h: get("/away"), want: answer{ok: true, warn: true}},
		"slow":          {h: get("/slow"), want: answer{output: "Client.Timeout exceeded"}},
		"named port":    {h: named, want: answer{ok: true}},
		"unknown port":  {h: none, err: `couldn't find port: "none"`},
		"https":         {h: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Scheme: "HTTPS", Port: port(secure)}}, want: answer{ok: true}},
		"tcp":           {h: corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: port(web)}}, want: answer{ok: true}},
		"tcp closed":    {h: corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: closed}}, want: answer{output: "connection refused"}},
		"exec":          {h: command("say", "$(GREETING)", "$(UNKNOWN)", "$$X"), want: answer{ok: true}},
		"exec fails":    {h: command("x"), want: answer{output: "output"}},
		"nothing":       {err: "missing probe handler"},
	} {
		t.Run(name, func(t *testing.T) {
			p := probed(tt.h, 1, 1, 1)
			if name != "slow" { // the others have time
				p.TimeoutSeconds = 20
			}
			got, err := b.ask(t.Context(), &Target{Container: c, Host: "127.0.0.1"}, p)
			if (err != nil) != (tt.err != "") || err != nil && !strings.Contains(err.Error(), tt.err) {
				t.Fatalf("error %v, want %q", err, tt.err)
			}
			if got.ok != tt.want.ok || got.warn != tt.want.warn || !strings.Contains(got.output, tt.want.output) {
				t.Errorf("%+v, want %+v", got, tt.want)
			}
		})
	}
	for range len(seen) {
		if r := <-seen; r.Header.Get("X-A") == "1" && r.Host != "other.test" {
			t.Errorf("asked for host %q, want other.test", r.Host)
		} else if r.Header.Get("User-Agent") != "kube-probe/1.37" {
			t.Errorf("user agent %q", r.Header.Get("User-Agent"))
		}
	}
}

func TestGRPCHealthIsAskedFor(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	state := health.NewServer()
	state.SetServingStatus("bad", grpc_health_v1.HealthCheckResponse_NOT_SERVING)
	server := grpc.NewServer()
	grpc_health_v1.RegisterHealthServer(server, state)
	go func() { _ = server.Serve(l) }()
	defer server.Stop()
	plain, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	other := grpc.NewServer()
	go func() { _ = other.Serve(plain) }()
	defer other.Stop()
	port := func(l net.Listener) int32 { return int32(l.Addr().(*net.TCPAddr).Port) }
	for _, c := range []struct {
		port    int32
		service *string
		ok      bool
		says    string
	}{
		{port(l), nil, true, ""}, {port(l), ptr.To(""), true, ""},
		{port(l), ptr.To("bad"), false, `service unhealthy (responded with "NOT_SERVING")`},
		{port(l), ptr.To("none"), false, "health rpc probe failed"},
		{port(plain), nil, false, "doesn't implement the grpc health protocol"},
		{1, nil, false, "probe failed"},
	} {
		a := askGRPC(t.Context(), "127.0.0.1", &corev1.GRPCAction{Port: c.port, Service: c.service}, 20*time.Second)
		if a.ok != c.ok || !strings.Contains(a.output, c.says) {
			t.Errorf("port %d service %v: %+v, want %v %q", c.port, c.service, a, c.ok, c.says)
		}
	}
}

func FuzzExpand(f *testing.F) {
	for _, s := range []string{"$(A)", "$$(A)", "$(", "$", "$(B)$(A)x", "a$b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		out := expandOne(s, map[string]string{"A": "1"})
		if !strings.Contains(s, "$") && out != s {
			t.Errorf("%q became %q", s, out)
		}
	})
}
