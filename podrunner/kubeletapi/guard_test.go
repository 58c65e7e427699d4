// SPDX-License-Identifier: Apache-2.0

package kubeletapi

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
)

// noRuntime is there for what does not ask it.
type noRuntime struct{ Runtime }

func TestWhatARequestWantsIsFoundByItsPath(t *testing.T) {
	for request, want := range map[string][]string{
		"GET /pods":                         {"get", "pods", "proxy"},
		"GET /pods/":                        {"get", "pods", "proxy"},
		"GET /podsandmore":                  {"get", "proxy"},
		"GET /runningpods/":                 {"get", "pods", "proxy"},
		"GET /healthz":                      {"get", "healthz", "proxy"},
		"GET /healthz/ping":                 {"get", "healthz", "proxy"},
		"GET /stats/summary":                {"get", "stats"},
		"GET /metrics":                      {"get", "metrics"},
		"GET /metrics/resource":             {"get", "metrics"},
		"GET /logs/x":                       {"get", "log"},
		"GET /containerLogs/a/b/c":          {"get", "proxy"},
		"POST /exec/a/b/c":                  {"create", "proxy"},
		"GET /exec/a/b/c":                   {"create", "proxy"},
		"GET /attach/a/b/c":                 {"create", "proxy"},
		"GET /portForward/a/b":              {"create", "proxy"},
		"POST /run/a/b/c":                   {"create", "proxy"},
		"PUT /pods":                         {"update", "pods", "proxy"},
		"DELETE /pods":                      {"delete", "pods", "proxy"},
		"PATCH /":                           {"patch", "proxy"},
		"OPTIONS /pods":                     {"", "pods", "proxy"},
		"GET /anything":                     {"get", "proxy"},
		"GET /EXEC/a/b/c":                   {"get", "proxy"}, // there is no such path
		"HEAD /metrics":                     {"get", "metrics"},
		"GET /debug/pprof/heap":             {"get", "proxy"},
		"GET /":                             {"get", "proxy"},
		"POST /containerLogs/a/b/c?x=/pods": {"create", "proxy"},
	} {
		method, path, _ := cut(request)
		verb, subs := attributes(httptest.NewRequest(method, path, nil))
		if got := append([]string{verb}, subs...); !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", request, got, want)
		}
	}
}

func cut(s string) (a, b string, ok bool) {
	for i := range s {
		if s[i] == ' ' {
			return s[:i], s[i+1:], true
		}
	}
	return s, "", false
}

// guarded is a server whose users come in a header and may what is listed.
func guarded(t *testing.T, allowed ...string) (*Server, *[]string) {
	t.Helper()
	var mu sync.Mutex
	var asked []string
	s, err := New(Options{
		NodeName: "one", Runtime: noRuntime{}, Pods: func() []*corev1.Pod { return nil },
		Certificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return nil, nil },
		Authenticate: func(r *http.Request) (User, error) {
			if u := r.Header.Get("User"); u != "" {
				return User{Name: u}, nil
			}
			return User{}, errNobody
		},
		Authorize: func(_ context.Context, a Access) (bool, error) {
			mu.Lock()
			defer mu.Unlock()
			asked = append(asked, a.User.Name+" "+a.Verb+" "+a.Node+"/"+a.Subresource)
			if a.User.Name == "broken" {
				return false, errors.New("the API server is away")
			}
			return slices.Contains(allowed, a.Verb+" "+a.Subresource), nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	return s, &asked
}

func TestOnlyThoseWhoMayGetIn(t *testing.T) {
	s, asked := guarded(t, "get pods", "get proxy")
	for _, c := range []struct {
		user, method, path string
		code               int
		asked              []string
	}{
		{"", "GET", "/pods", http.StatusUnauthorized, nil},
		{"", "GET", "/healthz", http.StatusUnauthorized, nil},
		{"", "GET", "/nothing", http.StatusUnauthorized, nil},
		{"eve", "GET", "/pods", http.StatusOK, []string{"eve get one/pods"}},
		{"eve", "GET", "/healthz", http.StatusOK, []string{"eve get one/healthz", "eve get one/proxy"}},
		{"eve", "GET", "/metrics", http.StatusForbidden, []string{"eve get one/metrics"}},
		// To read is not to run: the kubelet lets this in.
		{"eve", "GET", "/exec/a/b/c?command=sh&output=1", http.StatusForbidden, []string{"eve create one/proxy"}},
		{"eve", "GET", "/containerLogs/a/b/c", http.StatusNotFound, []string{"eve get one/proxy"}},
		{"eve", "GET", "/nothing", http.StatusNotFound, []string{"eve get one/proxy"}},
		{"broken", "GET", "/pods", http.StatusInternalServerError, []string{"broken get one/pods"}},
		// No path is served that was authorized as another.
		{"eve", "GET", "/pods/../exec/a/b/c", http.StatusBadRequest, nil},
		{"eve", "GET", "/pods%2f..%2fexec/a/b/c", http.StatusBadRequest, nil},
		{"eve", "GET", "//exec/a/b/c", http.StatusBadRequest, nil},
		{"eve", "GET", "/%65xec%2fa", http.StatusBadRequest, nil},
	} {
		*asked = nil
		r := httptest.NewRequest(c.method, "https://node"+c.path, nil)
		r.Header.Set("User", c.user)
		w := httptest.NewRecorder()
		s.ServeHTTP(w, r)
		if w.Code != c.code || cmp.Diff(c.asked, *asked) != "" {
			t.Errorf("%s %s as %q: %d %q and asked %q, want %d %q", c.method, c.path, c.user, w.Code, w.Body, *asked, c.code, c.asked)
		}
	}
}

func TestHealthIsWhatTheRunnerSays(t *testing.T) {
	const fine, broken = "", "the container runtime was last listed 3m0s ago"
	for _, c := range []struct {
		path, says string
		code       int
		body       string
	}{
		{"/healthz", fine, http.StatusOK, "ok"},
		{"/healthz?verbose", fine, http.StatusOK, "[+]ping ok\n[+]syncloop ok\nhealthz check passed\n"},
		{"/healthz/ping", fine, http.StatusOK, "ok"},
		{"/healthz/syncloop", fine, http.StatusOK, "ok"},
		{"/healthz", broken, http.StatusInternalServerError, "[+]ping ok\n[-]syncloop failed: " + broken + "\nhealthz check failed\n"},
		{"/healthz/ping", broken, http.StatusOK, "ok"},
		{"/healthz/syncloop", broken, http.StatusInternalServerError, "internal server error: " + broken + "\n"},
	} {
		s, _ := guarded(t, "get healthz")
		s.o.Healthy = func() error {
			if c.says == fine {
				return nil
			}
			return errors.New(c.says)
		}
		r := httptest.NewRequest("GET", "https://node"+c.path, nil)
		r.Header.Set("User", "eve")
		w := httptest.NewRecorder()
		s.ServeHTTP(w, r)
		if w.Code != c.code || w.Body.String() != c.body {
			t.Errorf("%s where the runner says %q: %d %q, want %d %q", c.path, c.says, w.Code, w.Body, c.code, c.body)
		}
	}
}

func TestAnAnswerIsKeptForItsTimeAndAnErrorIsNot(t *testing.T) {
	now := time.Unix(0, 0)
	a := newAnswers[bool]()
	a.now = func() time.Time { return now }
	asked := 0
	ask := func(answer bool, fail bool) bool {
		got, _ := a.ask(t.Context(), "k", func(context.Context) (bool, time.Duration, error) {
			asked++
			if fail {
				return answer, time.Hour, errors.New("away")
			}
			return answer, time.Minute, nil
		})
		return got
	}
	if ask(true, true); asked != 1 {
		t.Error("not asked")
	}
	if got := ask(true, false); !got || asked != 2 {
		t.Errorf("an error was kept: %t after %d questions", got, asked)
	}
	now = now.Add(59 * time.Second)
	if got := ask(false, false); !got || asked != 2 {
		t.Errorf("the answer was not kept: %t after %d questions", got, asked)
	}
	now = now.Add(time.Second)
	if got := ask(false, false); got || asked != 3 {
		t.Errorf("the answer was kept for too long: %t after %d questions", got, asked)
	}
	for i := range 3 * maxAnswers {
		a.put(string(rune(i)), true, time.Hour)
	}
	if len(a.kept) > maxAnswers {
		t.Errorf("%d answers are kept", len(a.kept))
	}
}

func TestASelfSignedCertificateIsKeptUntilTheNodeIsAnother(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pki")
	serial := func(hostname string, addresses ...string) string {
		t.Helper()
		var ips []netip.Addr
		for _, a := range addresses {
			ips = append(ips, netip.MustParseAddr(a))
		}
		get, err := SelfSigned(dir, hostname, ips)
		if err != nil {
			t.Fatal(err)
		}
		c, err := get(nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range append(addresses, hostname) {
			if err := c.Leaf.VerifyHostname(name); err != nil {
				t.Error(err)
			}
		}
		return c.Leaf.SerialNumber.String()
	}
	first := serial("one", "10.0.0.1", "fd00::1")
	if serial("one", "10.0.0.1") != first {
		t.Error("made anew though it fits")
	}
	if serial("one", "10.0.0.2") == first {
		t.Error("kept for another address")
	}
}

func TestEveryConnectionEndsWithTheServer(t *testing.T) {
	cert, err := SelfSigned(t.TempDir(), "localhost", []netip.Addr{netip.MustParseAddr("127.0.0.1")})
	if err != nil {
		t.Fatal(err)
	}
	s, _ := guarded(t, "get proxy")
	s.o.Certificate = cert
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx, l) }()
	conn, err := tls.Dial("tcp", l.Addr().String(), &tls.Config{InsecureSkipVerify: true, VerifyConnection: func(c tls.ConnectionState) error {
		return c.PeerCertificates[0].VerifyHostname("localhost")
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	plain, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	for _, c := range []net.Conn{conn, plain} {
		_ = c.SetReadDeadline(time.Now().Add(time.Minute))
		if n, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, context.DeadlineExceeded) || isTimeout(err) {
			t.Errorf("read %d bytes, %v", n, err)
		}
	}
}

func isTimeout(err error) bool {
	var n net.Error
	return errors.As(err, &n) && n.Timeout()
}

func TestNoAuthorityOrAWrongOneLetsNobodyIn(t *testing.T) {
	mine, other := newAuthority(t, "mine"), newAuthority(t, "other")
	roots := x509.NewCertPool()
	roots.AddCert(mine.cert)
	a := NewAuthenticator(func() *x509.CertPool { return roots }, nil)
	for _, c := range []struct {
		name  string
		chain []*x509.Certificate
		user  string
	}{
		{"of the authority", mine.issue(t, "jane", x509.ExtKeyUsageClientAuth, time.Hour), "jane"},
		{"of another authority", other.issue(t, "jane", x509.ExtKeyUsageClientAuth, time.Hour), ""},
		{"of a server", mine.issue(t, "jane", x509.ExtKeyUsageServerAuth, time.Hour), ""},
		{"that has expired", mine.issue(t, "jane", x509.ExtKeyUsageClientAuth, -time.Minute), ""},
		{"without a name", mine.issue(t, "", x509.ExtKeyUsageClientAuth, time.Hour), ""},
		{"none", nil, ""},
	} {
		r := httptest.NewRequest("GET", "/pods", nil)
		r.TLS = &tls.ConnectionState{PeerCertificates: c.chain}
		got, err := a.Authenticate(r)
		if got.Name != c.user || (err == nil) != (c.user != "") {
			t.Errorf("a certificate %s: %+v, %v", c.name, got, err)
		}
		if err == nil && !slices.Equal(got.Groups, []string{"team", "system:authenticated"}) {
			t.Errorf("groups %q", got.Groups)
		}
	}
	r := httptest.NewRequest("GET", "/pods", nil)
	r.Header.Set("Authorization", "Bearer x")
	if got, err := a.Authenticate(r); err == nil {
		t.Errorf("a token that nobody checks makes %+v", got)
	}
}
