// SPDX-License-Identifier: Apache-2.0

package source

import (
	"context"
	"net/http"
)

// errorRecorder notes why a request failed. rest.Request.Watch reports a
// timeout or a closed connection as an empty watch without an error.
type errorRecorder struct{ next http.RoundTripper }

type errorRecordKey struct{}

// recordErrors returns a context whose requests leave their transport error at
// the returned address.
func recordErrors(ctx context.Context) (context.Context, *error) {
	err := new(error)
	return context.WithValue(ctx, errorRecordKey{}, err), err
}

// RoundTrip implements http.RoundTripper.
func (t errorRecorder) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := t.next.RoundTrip(r)
	if record, ok := r.Context().Value(errorRecordKey{}).(*error); ok {
		*record = err
	}
	return resp, err
}
