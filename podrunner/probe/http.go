// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// maxBody is how much of an answer is read.
const maxBody = 10 << 10

// errElsewhere ends the following of redirects: the answer counts, with a
// warning, but another host is not asked.
var errElsewhere = errors.New("redirected to another host")

// transport makes a connection for each request: containers are asked rarely,
// and one that takes no new connections is not well. Certificates are not
// checked: it is the container that is asked, whatever its name.
var transport = &http.Transport{
	TLSClientConfig:    &tls.Config{InsecureSkipVerify: true},
	DisableKeepAlives:  true,
	DisableCompression: true,
	DialContext:        (&net.Dialer{}).DialContext,
}

// Request makes the request of an httpGet action of a probe or a hook.
func Request(ctx context.Context, a *corev1.HTTPGetAction, c *corev1.Container, podIP, agent string) (*http.Request, error) {
	port, err := Port(a.Port, c)
	if err != nil {
		return nil, err
	}
	host := a.Host
	if host == "" {
		host = podIP
	}
	u, err := url.Parse(a.Path)
	if err != nil {
		u = &url.URL{Path: a.Path}
	}
	u.Scheme = strings.ToLower(string(a.Scheme))
	if u.Scheme == "" {
		u.Scheme = "http"
	}
	u.Host = net.JoinHostPort(host, strconv.Itoa(port))
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	for _, h := range a.HTTPHeaders {
		req.Header.Add(h.Name, h.Value)
	}
	if _, ok := req.Header["User-Agent"]; !ok {
		req.Header.Set("User-Agent", agent)
	}
	if accept, ok := req.Header["Accept"]; !ok {
		req.Header.Set("Accept", "*/*")
	} else if accept[0] == "" {
		req.Header.Del("Accept")
	}
	if h := req.Header.Get("Host"); h != "" {
		req.Host = h
	}
	return req, nil
}

func askHTTP(req *http.Request, timeout time.Duration) answer {
	client := http.Client{Transport: transport, Timeout: timeout, CheckRedirect: stayHere}
	resp, err := client.Do(req)
	if resp != nil {
		defer resp.Body.Close()
	}
	elsewhere := errors.Is(err, errElsewhere)
	if err != nil && !elsewhere {
		return answer{output: err.Error()}
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxBody))
	if err != nil && !elsewhere {
		return answer{output: err.Error()}
	}
	switch {
	case resp.StatusCode < 200 || resp.StatusCode >= 400:
		return answer{output: fmt.Sprintf("HTTP probe failed with statuscode: %d", resp.StatusCode)}
	case elsewhere || resp.StatusCode >= 300:
		return answer{ok: true, warn: true, output: fmt.Sprintf("Probe terminated redirects, Response body: %v", string(body))}
	}
	return answer{ok: true}
}

func stayHere(req *http.Request, via []*http.Request) error {
	switch {
	case req.URL.Hostname() != via[0].URL.Hostname():
		return errElsewhere
	case len(via) >= 10:
		return errors.New("stopped after 10 redirects")
	}
	return nil
}
