// SPDX-License-Identifier: Apache-2.0

package objects

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	"k8s.io/apimachinery/pkg/types"

	"fairlead.dev/podrunner/apiclient"
)

const (
	defaultTokenSeconds = 3600
	maxTokenAge         = 24 * time.Hour
	renewJitter         = 10 * time.Second
)

// tokenCache has the tokens of used Pods. It writes none of them to a log.
type tokenCache struct {
	client apiclient.Interface
	now    func() time.Time
	log    *slog.Logger

	mu     sync.Mutex
	tokens map[TokenRequest]*tokenEntry
}

type tokenEntry struct {
	sync.Mutex // one asks at a time
	token      *Token
}

func (c *tokenCache) get(ctx context.Context, r TokenRequest) (*Token, error) {
	c.mu.Lock()
	e := c.tokens[r]
	if e == nil {
		e = new(tokenEntry)
		c.tokens[r] = e
	}
	c.mu.Unlock()
	e.Lock()
	defer e.Unlock()
	now := c.now()
	if e.token != nil && now.Before(e.token.Renew) {
		return e.token, nil
	}
	t, err := c.ask(ctx, r)
	switch {
	case err == nil:
		e.token = t
		return t, nil
	case e.token != nil && now.Before(e.token.Expires):
		c.log.Warn("a service account token is not renewed; the old one is valid until it expires",
			"serviceaccount", r.Namespace+"/"+r.ServiceAccount, "pod", r.PodName, "expires", e.token.Expires, "err", err)
		return e.token, nil
	case e.token != nil:
		return nil, fmt.Errorf("token of %s/%s expired and refresh failed: %w", r.Namespace, r.ServiceAccount, err)
	}
	return nil, err
}

func (c *tokenCache) ask(ctx context.Context, r TokenRequest) (*Token, error) {
	seconds := r.ExpirationSeconds
	if seconds == 0 {
		seconds = defaultTokenSeconds
	}
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{
		ExpirationSeconds: &seconds,
		BoundObjectRef:    &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: r.PodName, UID: r.PodUID},
	}}
	if r.Audience != "" {
		request.Spec.Audiences = []string{r.Audience}
	}
	answer, err := c.client.CreateToken(ctx, r.Namespace, r.ServiceAccount, request)
	if err != nil {
		return nil, err
	}
	if answer.Spec.ExpirationSeconds != nil && *answer.Spec.ExpirationSeconds > 0 {
		seconds = *answer.Spec.ExpirationSeconds
	}
	t := &Token{Value: answer.Status.Token, Expires: answer.Status.ExpirationTimestamp.Time}
	t.Renew = renewal(t.Expires, time.Duration(seconds)*time.Second)
	return t, nil
}

// renewal is when a token that lives so long and ends then is asked for anew:
// at 80 % of its life, or after a day; a little earlier, differently for each.
func renewal(expires time.Time, life time.Duration) time.Time {
	issued := expires.Add(-life)
	return issued.Add(min(life*8/10, maxTokenAge)).Add(-rand.N(renewJitter))
}

func (c *tokenCache) forget(uid types.UID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for r := range c.tokens {
		if r.PodUID == uid {
			delete(c.tokens, r)
		}
	}
}
