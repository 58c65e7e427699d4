// SPDX-License-Identifier: Apache-2.0

package kubeletapi

import (
	"net/http"
	"strings"
)

// Access is what a request wants: a verb on a subresource of this Node, as
// "get nodes/metrics", or on a URL path.
type Access struct {
	User        User
	Verb        string
	Node        string
	Subresource string
	// Path is the URL path (nonResourceURLs of RBAC); empty: the Node is meant.
	Path string
}

// fineGrained are the subresources that suffice besides nodes/proxy (KEP-2862).
var fineGrained = map[string]string{"pods": "pods", "runningpods": "pods", "healthz": "healthz"}

// narrow are those that are asked for instead of nodes/proxy.
var narrow = map[string]string{"stats": "stats", "metrics": "metrics", "logs": "log"}

// entering are the paths that run something in a container or reach into it.
// With a WebSocket they are a GET, but to read is not what they do: unlike the
// kubelet this wants "create" for them whatever the method.
var entering = map[string]bool{"exec": true, "attach": true, "portForward": true, "run": true}

// attributes are the verb and the subresources of a request; one of them is to
// be allowed.
func attributes(r *http.Request) (verb string, subresources []string) {
	root, _, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	switch r.Method {
	case http.MethodPost:
		verb = "create"
	case http.MethodGet, http.MethodHead:
		verb = "get"
	case http.MethodPut:
		verb = "update"
	case http.MethodPatch:
		verb = "patch"
	case http.MethodDelete:
		verb = "delete"
	}
	if entering[root] {
		verb = "create"
	}
	if sub, ok := narrow[root]; ok {
		return verb, []string{sub}
	}
	if sub, ok := fineGrained[root]; ok {
		return verb, []string{sub, "proxy"}
	}
	return verb, []string{"proxy"}
}
