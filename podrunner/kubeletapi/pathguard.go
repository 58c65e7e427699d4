// SPDX-License-Identifier: Apache-2.0

package kubeletapi

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"path"

	"github.com/go-logr/logr"
	"k8s.io/klog/v2"
)

// PathGuard lets those in whom the API server knows and who may do what they
// ask with the URL path, by a rule with nonResourceURLs. It serves those of the
// node's servers that are no kubelet's.
type PathGuard struct {
	// Authenticate and Authorize are an Authenticator's and an Authorizer's.
	Authenticate func(*http.Request) (User, error)
	Authorize    func(context.Context, Access) (bool, error)
	Logger       *slog.Logger
}

// Wrap puts the guard before a handler that answers GET and HEAD.
func (g *PathGuard) Wrap(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r, user, ok := identify(w, r, g.Authenticate, g.Logger)
		if !ok {
			return
		}
		verb, _ := attributes(r)
		allowed, err := g.Authorize(r.Context(), Access{User: user, Verb: verb, Path: r.URL.Path})
		switch {
		case err != nil:
			g.Logger.Warn("cannot ask whether a request is allowed", "user", user.Name, "path", r.URL.Path, "err", err)
			http.Error(w, fmt.Sprintf("Authorization error (user=%s, verb=%s, path=%s)", user.Name, verb, r.URL.Path), http.StatusInternalServerError)
		case !allowed:
			http.Error(w, fmt.Sprintf("Forbidden (user=%s, verb=%s, path=%s)", user.Name, verb, r.URL.Path), http.StatusForbidden)
		default:
			next.ServeHTTP(w, r)
		}
	})
}

// identify says who asks, or answers and gives false. The request that it gives
// is the one to go on with.
func identify(w http.ResponseWriter, r *http.Request, authenticate func(*http.Request) (User, error), log *slog.Logger) (*http.Request, User, bool) {
	// What is authorized by its path must be what is served: no path of these
	// servers needs an escape or a dot.
	if p := r.URL.Path; r.URL.RawPath != "" || (path.Clean(p) != p && path.Clean(p)+"/" != p) {
		http.Error(w, "malformed path", http.StatusBadRequest)
		return r, User{}, false
	}
	// What libraries would log of each request is said here, where it matters.
	r = r.WithContext(klog.NewContext(r.Context(), logr.Discard()))
	user, err := authenticate(r)
	if err != nil {
		log.Debug("request of nobody known", "from", r.RemoteAddr, "path", r.URL.Path, "err", err)
		http.Error(w, "Unauthorized", http.StatusUnauthorized)
		return r, User{}, false
	}
	return r, user, true
}
