// SPDX-License-Identifier: Apache-2.0

package cri

import (
	"fmt"
	"regexp"
	"strings"
)

// The grammar of image references, of the distribution specification. Hosts
// may be IPv6 addresses in brackets.
var (
	hostPattern   = regexp.MustCompile(`^(?:[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?(?:\.[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?)*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?$`)
	partPattern   = regexp.MustCompile(`^[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*$`)
	tagPattern    = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$`)
	digestPattern = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,}$`)
)

// reference is an image's name in parts.
type reference struct {
	// host and path make the repository; host is "docker.io" where none is
	// named, and its path then begins with "library/" where it has one part.
	host, path  string
	tag, digest string
}

// repository is host and path.
func (r reference) repository() string { return r.host + "/" + r.path }

// parseReference reads "[host/]path[:tag][@digest]". Without tag and digest the
// tag is "latest".
func parseReference(name string) (r reference, err error) {
	rest := name
	if before, digest, ok := strings.Cut(rest, "@"); ok {
		if !digestPattern.MatchString(digest) {
			return r, invalidReference(name)
		}
		rest, r.digest = before, digest
	}
	if colon := strings.LastIndexByte(rest, ':'); colon > strings.LastIndexByte(rest, '/') {
		rest, r.tag = rest[:colon], rest[colon+1:]
		if !tagPattern.MatchString(r.tag) {
			return r, invalidReference(name)
		}
	}
	r.host, r.path = splitHost(rest)
	if !hostPattern.MatchString(r.host) || len(r.repository()) > 255 {
		return r, invalidReference(name)
	}
	for part := range strings.SplitSeq(r.path, "/") {
		if !partPattern.MatchString(part) {
			return r, invalidReference(name)
		}
	}
	if r.tag == "" && r.digest == "" {
		r.tag = "latest"
	}
	return r, nil
}

func splitHost(name string) (host, path string) {
	first, rest, ok := strings.Cut(name, "/")
	isHost := ok && (strings.ContainsAny(first, ".:") || first == "localhost" || strings.ToLower(first) != first)
	if !isHost {
		host, path = "docker.io", name
	} else {
		host, path = first, rest
	}
	if host == "index.docker.io" {
		host = "docker.io"
	}
	if host == "docker.io" && !strings.Contains(path, "/") {
		path = "library/" + path
	}
	return host, path
}

func invalidReference(name string) error {
	return fmt.Errorf("couldn't parse image name %q: invalid reference format", name)
}

// withTag is the name as it was given, with ":latest" where it has neither tag
// nor digest.
func withTag(name string) (string, error) {
	r, err := parseReference(name)
	if err != nil {
		return "", err
	}
	if r.digest == "" && r.tag == "latest" && !strings.HasSuffix(name, ":latest") {
		return name + ":latest", nil
	}
	return name, nil
}
