// SPDX-License-Identifier: Apache-2.0

package kubeletapi

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	authorizationv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"fairlead.dev/podrunner/apiclient"
)

// allowedTTL and deniedTTL are how long an answer is kept (the kubelet's
// authorization.webhook.cacheAuthorizedTTL and cacheUnauthorizedTTL).
const (
	allowedTTL = 5 * time.Minute
	deniedTTL  = 30 * time.Second
)

// Authorizer asks the API server, by SubjectAccessReview.
type Authorizer struct {
	client  apiclient.Interface
	answers *answers[bool]
}

// NewAuthorizer asks with this client, whose user needs the role
// system:auth-delegator or what nodes have.
func NewAuthorizer(client apiclient.Interface) *Authorizer {
	return &Authorizer{client: client, answers: newAnswers[bool]()}
}

// Authorize says whether the user may; an error: it could not be asked.
func (a *Authorizer) Authorize(ctx context.Context, want Access) (bool, error) {
	key, err := json.Marshal(want)
	if err != nil {
		return false, fmt.Errorf("review access of %q: %w", want.User.Name, err)
	}
	return a.answers.ask(ctx, string(key), func(ctx context.Context) (bool, time.Duration, error) {
		spec := authorizationv1.SubjectAccessReviewSpec{
			User: want.User.Name, UID: want.User.UID, Groups: want.User.Groups,
		}
		if want.Path != "" {
			spec.NonResourceAttributes = &authorizationv1.NonResourceAttributes{Verb: want.Verb, Path: want.Path}
		} else {
			spec.ResourceAttributes = &authorizationv1.ResourceAttributes{
				Verb: want.Verb, Version: "v1", Resource: "nodes", Subresource: want.Subresource, Name: want.Node,
			}
		}
		for k, v := range want.User.Extra {
			if spec.Extra == nil {
				spec.Extra = map[string]authorizationv1.ExtraValue{}
			}
			spec.Extra[k] = v
		}
		got, err := a.client.SubjectAccessReviews().Create(ctx, &authorizationv1.SubjectAccessReview{Spec: spec}, metav1.CreateOptions{})
		switch {
		case err != nil:
			return false, 0, fmt.Errorf("review access of %q: %w", want.User.Name, err)
		case got.Status.Allowed:
			return true, allowedTTL, nil
		}
		return false, deniedTTL, nil
	})
}
