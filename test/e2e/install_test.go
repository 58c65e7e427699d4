// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"sigs.k8s.io/yaml"

	"fairlead.dev/test/e2e/controlplane"
)

// installed is what the manifests give an agent.
type installed struct {
	token        string // of its ServiceAccount
	config       string // its FairleadConfiguration
	capabilities []string
	args         []string // those that the overlay adds
	daemonSet    appsv1.DaemonSet
	objects      []manifest
}

// manifest is one object as it is written.
type manifest struct {
	Kind     string            `json:"kind"`
	Metadata metav1.ObjectMeta `json:"metadata"`
	Data     map[string]string `json:"data"`
	path     string            // where the API has its kind
	json     []byte
}

// collections are where the API has the kinds of the manifests.
var collections = map[string]string{
	"ServiceAccount":     "/api/v1/namespaces/%s/serviceaccounts",
	"ConfigMap":          "/api/v1/namespaces/%s/configmaps",
	"Secret":             "/api/v1/namespaces/%s/secrets",
	"DaemonSet":          "/apis/apps/v1/namespaces/%s/daemonsets",
	"ClusterRole":        "/apis/rbac.authorization.k8s.io/v1/clusterroles",
	"ClusterRoleBinding": "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
	"Role":               "/apis/rbac.authorization.k8s.io/v1/namespaces/%s/roles",
	"RoleBinding":        "/apis/rbac.authorization.k8s.io/v1/namespaces/%s/rolebindings",
}

// overlays are the directories of manifests/overlays.
func overlays(t *testing.T) (names []string) {
	t.Helper()
	entries, err := os.ReadDir("../../manifests/overlays")
	if err != nil || len(entries) == 0 {
		t.Fatalf("found overlays %v: %v", entries, err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// overlay is what `kubectl apply -k` would create.
func overlay(t *testing.T, name string) []byte {
	t.Helper()
	cmd := exec.Command("go", "run", "./manifests/gen", "-render", "manifests/overlays/"+name)
	cmd.Dir, cmd.Stderr = "../..", os.Stderr
	cmd.Env = append(os.Environ(), "GOWORK=off")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("render overlay %s: %v", name, err)
	}
	return out
}

func parseManifests(t *testing.T, text []byte) *installed {
	t.Helper()
	set := &installed{}
	for doc := range strings.SplitSeq(string(text), "\n---\n") {
		var m manifest
		if err := yaml.Unmarshal([]byte(doc), &m); err != nil {
			t.Fatal(err)
		}
		var ok bool
		if m.path, ok = collections[m.Kind]; !ok {
			t.Fatalf("the manifests have a %q, which this test does not know", m.Kind)
		}
		if strings.Contains(m.path, "%s") {
			m.path = fmt.Sprintf(m.path, m.Metadata.Namespace)
		}
		var err error
		if m.json, err = yaml.YAMLToJSONStrict([]byte(doc)); err != nil {
			t.Fatal(err)
		}
		set.objects = append(set.objects, m)
		switch {
		case m.Kind == "ConfigMap" && m.Metadata.Name == "fairlead":
			set.config = m.Data["config.yaml"]
		case m.Kind == "DaemonSet":
			if err := yaml.UnmarshalStrict([]byte(doc), &set.daemonSet); err != nil {
				t.Fatal(err)
			}
			c := set.daemonSet.Spec.Template.Spec.Containers[0]
			for _, added := range c.SecurityContext.Capabilities.Add {
				set.capabilities = append(set.capabilities, string(added))
			}
			set.args = c.Args[3:] // after run, --config and --node-name
		}
	}
	return set
}

// create asks the API server for an object, strictly validated. One that an
// earlier test created is as good.
func (c *cluster) create(t *testing.T, m *manifest, params ...string) {
	t.Helper()
	r := c.client.CoreV1().RESTClient().Post().AbsPath(m.path).Param("fieldValidation", "Strict")
	for _, p := range params {
		key, value, _ := strings.Cut(p, "=")
		r = r.Param(key, value)
	}
	err := r.SetHeader("Content-Type", "application/json").Body(m.json).Do(t.Context()).Error()
	if err != nil && !apierrors.IsAlreadyExists(err) {
		t.Fatalf("create %s %s: %v", m.Kind, m.Metadata.Name, err)
	}
}

// install creates what install.yaml has, unless an earlier test did, and gets a
// token for the agent.
func (c *cluster) install(t *testing.T) *installed {
	t.Helper()
	text, err := os.ReadFile("../../manifests/install.yaml")
	if err != nil {
		t.Fatal(err)
	}
	return c.installThese(t, text)
}

func (c *cluster) installThese(t *testing.T, text []byte) *installed {
	t.Helper()
	set := parseManifests(t, text)
	for i := range set.objects {
		c.create(t, &set.objects[i])
	}
	set.token = c.tokenOf(t, set.daemonSet.Spec.Template.Spec.ServiceAccountName)
	return set
}

// tokenOf is a token of a ServiceAccount in kube-system.
func (c *cluster) tokenOf(t *testing.T, account string) string {
	t.Helper()
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: new(int64(3600))}}
	got, err := c.client.CoreV1().ServiceAccounts("kube-system").CreateToken(t.Context(), account, request, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return got.Status.Token
}

func TestTheAPIServerAdmitsEveryOverlayAndItsPods(t *testing.T) {
	// As kubeadm starts it: IPVS's overlay is privileged.
	cp, err := controlplane.New(t.Context(), controlplane.Options{APIServerArgs: []string{"--allow-privileged=true"}})
	if err != nil {
		t.Fatal(err)
	}
	defer cp.Close()
	c := newClusterIn(t, cp)
	c.install(t) // pods are admitted where their ServiceAccount is
	if err := ensureNamespace(t, c, corev1.NamespaceNodeLease); err != nil {
		t.Fatal(err)
	}
	for _, name := range overlays(t) {
		t.Run(name, func(t *testing.T) {
			set := parseManifests(t, overlay(t, name))
			for i := range set.objects {
				c.create(t, &set.objects[i], "dryRun=All")
			}
			c.admitsPod(t, &set.daemonSet.Spec.Template)
		})
	}
}

// ensureNamespace is for one that a controller of the API server makes in time.
func ensureNamespace(t *testing.T, c *cluster, name string) error {
	t.Helper()
	_, err := c.client.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		return nil
	}
	return err
}

func (c *cluster) admitsPod(t *testing.T, template *corev1.PodTemplateSpec) {
	t.Helper()
	pod := &corev1.Pod{ObjectMeta: template.ObjectMeta, Spec: template.Spec}
	pod.Name = "fairlead-dry-run"
	got, err := c.client.CoreV1().Pods("kube-system").Create(t.Context(), pod, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
	if err != nil {
		t.Fatal(err)
	}
	if *got.Spec.Priority < 2_000_000_000 {
		t.Errorf("priority %d: want a system pod's", *got.Spec.Priority)
	}
	if !slices.Equal(template.Spec.Containers[0].SecurityContext.Capabilities.Drop, []corev1.Capability{"ALL"}) {
		t.Error("the container keeps the runtime's default capabilities")
	}
}

// rights are what a token allows in a namespace, of all that a node could want.
func (c *cluster) rights(t *testing.T, token, namespace string) (allowed []string) {
	t.Helper()
	agent, err := kubernetes.NewForConfig(c.RESTConfig(token))
	if err != nil {
		t.Fatal(err)
	}
	groups := map[string][]string{
		"": {"services", "nodes", "nodes/status", "nodes/proxy", "pods", "pods/status", "pods/exec", "pods/eviction", "secrets", "configmaps", "endpoints",
			"events", "serviceaccounts", "serviceaccounts/token", "namespaces", "persistentvolumes", "persistentvolumeclaims"},
		"discovery.k8s.io": {"endpointslices"}, "coordination.k8s.io": {"leases"}, "apps": {"daemonsets"}, "node.k8s.io": {"runtimeclasses"},
		"authentication.k8s.io": {"tokenreviews"}, "authorization.k8s.io": {"subjectaccessreviews"},
		"certificates.k8s.io": {"certificatesigningrequests"}, "rbac.authorization.k8s.io": {"clusterroles"}, "*": {"*"},
	}
	for group, resources := range groups {
		for _, resource := range resources {
			for _, verb := range []string{"get", "list", "watch", "create", "update", "patch", "delete", "deletecollection", "*"} {
				name, sub, _ := strings.Cut(resource, "/")
				review := &authorizationv1.SelfSubjectAccessReview{Spec: authorizationv1.SelfSubjectAccessReviewSpec{
					ResourceAttributes: &authorizationv1.ResourceAttributes{Group: group, Resource: name, Subresource: sub, Verb: verb, Namespace: namespace},
				}}
				ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
				got, err := agent.AuthorizationV1().SelfSubjectAccessReviews().Create(ctx, review, metav1.CreateOptions{})
				cancel()
				if err != nil {
					t.Fatal(err)
				}
				if got.Status.Allowed {
					allowed = append(allowed, verb+" "+resource)
				}
			}
		}
	}
	slices.Sort(allowed)
	return allowed
}

// networking is what an agent asks for that runs no Pods.
var networking = []string{"list endpointslices", "list nodes", "list services", "watch endpointslices", "watch nodes", "watch services"}

func TestTheManifestsGrantWhatTheAgentAsksForAndNothingElse(t *testing.T) {
	c := newCluster(t)
	set := c.install(t)
	if got := c.rights(t, set.token, "kube-system"); !slices.Equal(got, networking) {
		t.Errorf("the agent may %v, want %v", got, networking)
	}
}

func TestThePodsOverlayGrantsWhatTheRunnerOfPodsAsksForAndNothingElse(t *testing.T) {
	cp, err := controlplane.New(t.Context(), controlplane.Options{}) // its roles are not for the others
	if err != nil {
		t.Fatal(err)
	}
	defer cp.Close()
	c := newClusterIn(t, cp)
	if err := ensureNamespace(t, c, corev1.NamespaceNodeLease); err != nil {
		t.Fatal(err)
	}
	set := c.installThese(t, overlay(t, "pods"))
	token := c.tokenOf(t, "fairlead-pods")
	want := append(slices.Clone(networking),
		"create events", "patch events", "create nodes", "get nodes", "patch nodes", "patch nodes/status",
		"delete pods", "get pods", "list pods", "watch pods", "patch pods/status",
		"get configmaps", "list configmaps", "watch configmaps", "get secrets", "list secrets", "watch secrets",
		"create serviceaccounts/token", "get runtimeclasses", "create tokenreviews", "create subjectaccessreviews",
		"create certificatesigningrequests", "list certificatesigningrequests", "watch certificatesigningrequests")
	slices.Sort(want)
	if diff := cmp.Diff(want, c.rights(t, token, "kube-system")); diff != "" {
		t.Errorf("rights of fairlead-pods (-want +got):\n%s", diff)
	}
	want = append(want, "create leases", "get leases", "update leases")
	slices.Sort(want)
	if diff := cmp.Diff(want, c.rights(t, token, corev1.NamespaceNodeLease)); diff != "" {
		t.Errorf("rights of fairlead-pods among leases of nodes (-want +got):\n%s", diff)
	}
	if got := c.rights(t, set.token, "kube-system"); !slices.Equal(got, networking) {
		t.Errorf("beside it the DaemonSet's agent may %v, want %v", got, networking)
	}
}

// As a Prometheus elsewhere asks, by manifests/overlays/monitored.
func TestMetricsAreForThoseWhomTheAPIServerLets(t *testing.T) {
	b := newBed(t)
	set := b.installThese(t, overlay(t, "monitored"))
	text, err := os.ReadFile("../../manifests/prometheus/reader.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range parseManifests(t, text).objects {
		b.create(t, &m)
	}
	a := b.startIn(place{capabilities: set.capabilities, args: set.args}).ready()
	client := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true, DialContext: dialer(b.host.NetNSPath), TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	ask := func(path, token string) (int, string) {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+net.JoinHostPort(b.host.PrimaryIPv4.String(), "10249")+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		if token != "" {
			r.Header.Set("Authorization", "Bearer "+token)
		}
		answer, err := client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer answer.Body.Close()
		body, err := io.ReadAll(answer.Body)
		if err != nil {
			t.Fatal(err)
		}
		return answer.StatusCode, string(body)
	}
	reader := b.tokenOf(t, "fairlead-metrics-reader")
	for _, c := range []struct {
		who, path, token string
		want             int
	}{
		{"the reader", "/metrics", reader, http.StatusOK},
		{"the reader, of another path", "/debug/pprof/", reader, http.StatusForbidden},
		{"nobody", "/metrics", "", http.StatusUnauthorized},
		{"a token that nobody gave", "/metrics", "made-up", http.StatusUnauthorized},
		{"the agent itself, who may not read them", "/metrics", set.token, http.StatusForbidden},
	} {
		code, body := ask(c.path, c.token)
		if code != c.want || (code == http.StatusOK) != strings.Contains(body, "fairlead_build_info") {
			t.Errorf("%s gets %d %.200s, want %d", c.who, code, body, c.want)
		}
	}
	if log := a.log.String(); strings.Contains(log, reader) || strings.Contains(log, "made-up") {
		t.Error("a token is in the log")
	}
}
