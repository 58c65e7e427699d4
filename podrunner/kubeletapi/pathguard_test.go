// SPDX-License-Identifier: Apache-2.0

package kubeletapi

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"testing"
	"time"
)

func TestThePathGuardLetsInWhoMayHaveThePath(t *testing.T) {
	var asked []Access
	g := &PathGuard{
		Authenticate: func(r *http.Request) (User, error) {
			if u := r.Header.Get("User"); u != "" {
				return User{Name: u}, nil
			}
			return User{}, errNobody
		},
		Authorize: func(_ context.Context, a Access) (bool, error) {
			asked = append(asked, a)
			if a.User.Name == "unlucky" {
				return false, errors.New("no answer")
			}
			return a.User.Name == "prometheus" && a.Path == "/metrics" && a.Verb == "get" && a.Node == "", nil
		},
		Logger: slog.New(slog.DiscardHandler),
	}
	h := g.Wrap(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "numbers") }))
	for _, c := range []struct {
		method, path, user string
		want               int
		asks               bool
	}{
		{"GET", "/metrics", "prometheus", http.StatusOK, true},
		{"HEAD", "/metrics", "prometheus", http.StatusOK, true},
		{"GET", "/metrics", "", http.StatusUnauthorized, false},
		{"GET", "/metrics", "somebody", http.StatusForbidden, true},
		{"GET", "/debug/pprof/heap", "prometheus", http.StatusForbidden, true},
		{"POST", "/metrics", "prometheus", http.StatusForbidden, true},
		{"GET", "/metrics", "unlucky", http.StatusInternalServerError, true},
		{"GET", "//metrics", "prometheus", http.StatusBadRequest, false},
		{"GET", "/x/../metrics", "prometheus", http.StatusBadRequest, false},
		{"GET", "/%6detrics/%2e%2e", "prometheus", http.StatusBadRequest, false},
	} {
		asked = nil
		r := httptest.NewRequest(c.method, c.path, nil)
		r.Header.Set("User", c.user)
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code != c.want || (len(asked) > 0) != c.asks {
			t.Errorf("%s %s of %q: %d, asked %v; want %d", c.method, c.path, c.user, w.Code, asked, c.want)
		}
	}
}

func TestACertificateOfMemoryIsGoodForTheNode(t *testing.T) {
	get, err := SelfSignedInMemory("one", []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")})
	if err != nil {
		t.Fatal(err)
	}
	c, err := get(&tls.ClientHelloInfo{})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"one", "192.0.2.1", "2001:db8::1"} {
		if err := c.Leaf.VerifyHostname(name); err != nil {
			t.Error(err)
		}
	}
	if time.Until(c.Leaf.NotAfter) < 360*24*time.Hour {
		t.Errorf("it ends %v", c.Leaf.NotAfter)
	}
}
