// SPDX-License-Identifier: Apache-2.0

package migrate

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// kube-proxy's default addresses of its servers.
var (
	defaultMetrics = []string{"127.0.0.1:10249", "[::1]:10249"}
	defaultHealthz = []string{"127.0.0.1:10256", "[::1]:10256"}
)

const (
	// answerWithin bounds one question to a server of this machine.
	answerWithin = time.Second
	// answerBytes is more than any of kube-proxy's answers.
	answerBytes = 4096
)

// Running says how it shows that a kube-proxy runs in this process's network
// namespace: "process 4711", or the server that answers. It is empty
// where none does. Processes of other pid namespaces are not seen, their
// servers are; metrics and healthz are further addresses of these. No agent of
// fairlead may run there, since its /healthz looks the same.
func Running(ctx context.Context, metrics, healthz string) (string, error) {
	how, err := Process()
	if err != nil || how != "" {
		return how, err
	}
	return servers(ctx, &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}, metrics, healthz), nil
}

// Process is Running by processes alone.
func Process() (string, error) {
	ids, err := processes("/proc")
	if err != nil || len(ids) == 0 {
		return "", err
	}
	return "process " + strings.Join(ids, ", "), nil
}

// processes are the ids of those called kube-proxy that share this
// process's network namespace, or may: whoever may not look cannot tell.
func processes(proc string) (ids []string, err error) {
	self, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		return nil, fmt.Errorf("find this process's network namespace: %w", err)
	}
	names, err := filepath.Glob(filepath.Join(proc, "[0-9]*", "comm"))
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		comm, err := os.ReadFile(name)
		if err != nil || strings.TrimSpace(string(comm)) != "kube-proxy" {
			continue // or it ended meanwhile
		}
		dir := filepath.Dir(name)
		ns, err := os.Readlink(filepath.Join(dir, "ns", "net"))
		if os.IsNotExist(err) || err == nil && ns != self {
			continue
		}
		ids = append(ids, filepath.Base(dir))
	}
	return ids, nil
}

// servers asks where a kube-proxy would answer, and names the first that does.
func servers(ctx context.Context, client *http.Client, metrics, healthz string) string {
	type question struct {
		url        string
		kubeProxys func(body []byte) bool
	}
	var questions []question
	for _, a := range addresses(defaultMetrics, metrics) {
		questions = append(questions, question{"http://" + a + "/proxyMode", isMode})
	}
	for _, a := range addresses(defaultHealthz, healthz) {
		questions = append(questions, question{"http://" + a + "/healthz", isHealth})
	}
	for _, q := range questions {
		if body, err := get(ctx, client, q.url); err == nil && q.kubeProxys(body) {
			return "who answers at " + q.url
		}
	}
	return ""
}

// addresses are the defaults and one more, where that can be asked from here.
func addresses(defaults []string, more string) []string {
	host, port, err := net.SplitHostPort(more)
	if err != nil || port == "0" {
		return defaults
	}
	switch ip := net.ParseIP(host); {
	case host == "" || ip != nil && ip.IsUnspecified() && ip.To4() != nil:
		host = "127.0.0.1"
	case ip != nil && ip.IsUnspecified():
		host = "::1"
	}
	a := net.JoinHostPort(host, port)
	if slices.Contains(defaults, a) {
		return defaults
	}
	return append(slices.Clone(defaults), a)
}

func get(ctx context.Context, client *http.Client, url string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	return io.ReadAll(io.LimitReader(resp.Body, answerBytes))
}

func isMode(body []byte) bool {
	return slices.Contains([]string{"iptables", "ipvs", "nftables"}, strings.TrimSpace(string(body)))
}

// isHealth knows the answer of kube-proxy's /healthz, with any status.
func isHealth(body []byte) bool {
	var answer struct {
		LastUpdated, CurrentTime *string
	}
	return json.Unmarshal(body, &answer) == nil && answer.LastUpdated != nil && answer.CurrentTime != nil
}

// Remedy is what to do about a kube-proxy that runs: on this node, and no other.
const Remedy = `take it off this node first: kubectl -n kube-system patch daemonset kube-proxy --type merge -p '{"spec":{"template":{"spec":{"affinity":{"nodeAffinity":` +
	`{"requiredDuringSchedulingIgnoredDuringExecution":{"nodeSelectorTerms":[{"matchExpressions":[{"key":"fairlead.dev/proxy","operator":"DoesNotExist"}]}]}}}}}}}' once, ` +
	`then kubectl label node NODE fairlead.dev/proxy= (or stop its service), its rules stay until fairlead has taken over`
