// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"fairlead.dev/test/e2e/controlplane"
)

// oldServer stands before the real API server and refuses streamed lists, as
// one does whose feature gate WatchList is off (default before 1.32).
type oldServer struct {
	config       *rest.Config
	serviceLists atomic.Int64
}

func newOldServer(t *testing.T, c *cluster) *oldServer {
	t.Helper()
	config := c.RESTConfig(controlplane.AdminToken)
	transport, err := rest.TransportFor(config)
	if err != nil {
		t.Fatal(err)
	}
	target, err := url.Parse(config.Host)
	if err != nil {
		t.Fatal(err)
	}
	o := &oldServer{}
	forward := &httputil.ReverseProxy{
		Transport:     transport,
		FlushInterval: -1,
		Rewrite:       func(r *httputil.ProxyRequest) { r.SetURL(target) },
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		if q.Has("sendInitialEvents") {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusUnprocessableEntity)
			_ = json.NewEncoder(w).Encode(metav1.Status{
				TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"},
				Status:   metav1.StatusFailure,
				Code:     http.StatusUnprocessableEntity,
				Reason:   metav1.StatusReasonInvalid,
				Message:  "sendInitialEvents: Forbidden: sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled",
			})
			return
		}
		if strings.HasSuffix(r.URL.Path, "/services") && !q.Has("watch") {
			o.serviceLists.Add(1)
		}
		forward.ServeHTTP(w, r)
	}))
	t.Cleanup(func() {
		server.CloseClientConnections()
		server.Close()
	})
	o.config = &rest.Config{Host: server.URL, BearerToken: controlplane.AdminToken}
	return o
}
