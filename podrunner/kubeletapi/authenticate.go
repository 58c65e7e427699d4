// SPDX-License-Identifier: Apache-2.0

package kubeletapi

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"fairlead.dev/podrunner/apiclient"
)

// User is who asks.
type User struct {
	Name   string
	UID    string
	Groups []string
	Extra  map[string][]string
}

// tokenTTL is how long the answer about a token is kept (the kubelet's
// authentication.webhook.cacheTTL), and badTokenTTL that it is no good.
const (
	tokenTTL    = 2 * time.Minute
	badTokenTTL = 10 * time.Second
)

// errNobody is the answer to a request without credentials.
var errNobody = errors.New("no client certificate and no token")

// Authenticator knows users by their client certificate or their token.
type Authenticator struct {
	roots  func() *x509.CertPool
	client apiclient.Interface
	tokens *answers[tokenAnswer]
}

type tokenAnswer struct {
	user User
	ok   bool
}

// NewAuthenticator trusts the client certificates of the roots (nil: none; see
// CAFile) and the tokens that the API server's TokenReview knows (nil: none).
func NewAuthenticator(roots func() *x509.CertPool, client apiclient.Interface) *Authenticator {
	return &Authenticator{roots: roots, client: client, tokens: newAnswers[tokenAnswer]()}
}

// Authenticate says who asks; an error: nobody that is known.
func (a *Authenticator) Authenticate(r *http.Request) (User, error) {
	err := errNobody
	if a.roots != nil && r.TLS != nil && len(r.TLS.PeerCertificates) > 0 {
		var u User
		if u, err = a.certificate(r.TLS.PeerCertificates); err == nil {
			return u, nil
		}
	}
	token, ok := bearer(r)
	if !ok || a.client == nil {
		return User{}, err
	}
	return a.token(r.Context(), token)
}

func (a *Authenticator) certificate(chain []*x509.Certificate) (User, error) {
	roots := a.roots()
	if roots == nil {
		return User{}, errors.New("no authority for client certificates is known")
	}
	o := x509.VerifyOptions{Roots: roots, Intermediates: x509.NewCertPool(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	for _, c := range chain[1:] {
		o.Intermediates.AddCert(c)
	}
	if _, err := chain[0].Verify(o); err != nil {
		return User{}, fmt.Errorf("verify the client certificate: %w", err)
	}
	if chain[0].Subject.CommonName == "" {
		return User{}, errors.New("the client certificate names no user")
	}
	return User{Name: chain[0].Subject.CommonName, Groups: append(chain[0].Subject.Organization, "system:authenticated")}, nil
}

// bearer is the token of a request. One of a WebSocket's subprotocol is not
// taken: the API server takes it out before it comes here.
func bearer(r *http.Request) (string, bool) {
	scheme, token, _ := strings.Cut(strings.TrimSpace(r.Header.Get("Authorization")), " ")
	token = strings.TrimSpace(token)
	return token, strings.EqualFold(scheme, "bearer") && token != ""
}

func (a *Authenticator) token(ctx context.Context, token string) (User, error) {
	key := fmt.Sprintf("%x", sha256.Sum256([]byte(token)))
	got, err := a.tokens.ask(ctx, key, func(ctx context.Context) (tokenAnswer, time.Duration, error) {
		review, err := a.client.TokenReviews().Create(ctx,
			&authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{Token: token}}, metav1.CreateOptions{})
		if err != nil {
			return tokenAnswer{}, 0, fmt.Errorf("review a token: %w", err)
		}
		if !review.Status.Authenticated {
			return tokenAnswer{}, badTokenTTL, nil
		}
		u := review.Status.User
		user := User{Name: u.Username, UID: u.UID, Groups: u.Groups, Extra: map[string][]string{}}
		for k, v := range u.Extra {
			user.Extra[k] = v
		}
		return tokenAnswer{user, true}, tokenTTL, nil
	})
	if err != nil {
		return User{}, err
	}
	if !got.ok {
		return User{}, errors.New("the API server does not know the token")
	}
	return got.user, nil
}
