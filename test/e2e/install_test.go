// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"sigs.k8s.io/yaml"
)

const installFile = "../../manifests/install.yaml"

// installed is what manifests/install.yaml gives an agent.
type installed struct {
	token        string // of its ServiceAccount
	config       string // its FairleadConfiguration
	capabilities []string
	daemonSet    appsv1.DaemonSet
}

// collections are where the API has the kinds of install.yaml.
var collections = map[string]string{
	"ServiceAccount":     "/api/v1/namespaces/%s/serviceaccounts",
	"ConfigMap":          "/api/v1/namespaces/%s/configmaps",
	"DaemonSet":          "/apis/apps/v1/namespaces/%s/daemonsets",
	"ClusterRole":        "/apis/rbac.authorization.k8s.io/v1/clusterroles",
	"ClusterRoleBinding": "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
}

// install creates what install.yaml has, strictly validated, unless an earlier
// test did, and gets a token for the agent.
func (c *cluster) install(t *testing.T) *installed {
	t.Helper()
	text, err := os.ReadFile(installFile)
	if err != nil {
		t.Fatal(err)
	}
	set := &installed{}
	for doc := range strings.SplitSeq(string(text), "\n---\n") {
		var o struct {
			Kind     string            `json:"kind"`
			Metadata metav1.ObjectMeta `json:"metadata"`
			Data     map[string]string `json:"data"`
		}
		if err := yaml.Unmarshal([]byte(doc), &o); err != nil {
			t.Fatalf("%s: %v", installFile, err)
		}
		path, ok := collections[o.Kind]
		if !ok {
			t.Fatalf("%s has a %q, which this test does not know", installFile, o.Kind)
		}
		if strings.Contains(path, "%s") {
			path = fmt.Sprintf(path, o.Metadata.Namespace)
		}
		body, err := yaml.YAMLToJSONStrict([]byte(doc))
		if err != nil {
			t.Fatal(err)
		}
		err = c.client.CoreV1().RESTClient().Post().AbsPath(path).Param("fieldValidation", "Strict").
			SetHeader("Content-Type", "application/json").Body(body).Do(t.Context()).Error()
		if err != nil && !apierrors.IsAlreadyExists(err) {
			t.Fatalf("%s: create %s %s: %v", installFile, o.Kind, o.Metadata.Name, err)
		}
		switch {
		case o.Kind == "ConfigMap" && o.Metadata.Name == "fairlead":
			set.config = o.Data["config.yaml"]
		case o.Kind == "DaemonSet":
			if err := yaml.UnmarshalStrict([]byte(doc), &set.daemonSet); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, added := range set.daemonSet.Spec.Template.Spec.Containers[0].SecurityContext.Capabilities.Add {
		set.capabilities = append(set.capabilities, string(added))
	}
	account := set.daemonSet.Spec.Template.Spec.ServiceAccountName
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: new(int64(3600))}}
	got, err := c.client.CoreV1().ServiceAccounts("kube-system").CreateToken(t.Context(), account, request, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	set.token = got.Status.Token
	return set
}

func TestTheAPIServerAdmitsThePodsOfTheDaemonSet(t *testing.T) {
	c := newCluster(t)
	set := c.install(t)
	template := set.daemonSet.Spec.Template
	pod := &corev1.Pod{ObjectMeta: template.ObjectMeta, Spec: template.Spec}
	pod.Name = "fairlead-dry-run"
	got, err := c.client.CoreV1().Pods("kube-system").Create(t.Context(), pod, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
	if err != nil {
		t.Fatal(err)
	}
	if *got.Spec.Priority < 2_000_000_000 {
		t.Errorf("priority %d: want a system pod's", *got.Spec.Priority)
	}
	if !slices.Equal(set.daemonSet.Spec.Template.Spec.Containers[0].SecurityContext.Capabilities.Drop, []corev1.Capability{"ALL"}) {
		t.Error("the container keeps the runtime's default capabilities")
	}
}

func TestTheManifestsGrantWhatTheAgentAsksForAndNothingElse(t *testing.T) {
	c := newCluster(t)
	set := c.install(t)
	agent, err := kubernetes.NewForConfig(c.RESTConfig(set.token))
	if err != nil {
		t.Fatal(err)
	}
	groups := map[string][]string{
		"": {"services", "nodes", "pods", "secrets", "configmaps", "endpoints", "events", "serviceaccounts", "namespaces"},

		"discovery.k8s.io": {"endpointslices"}, "coordination.k8s.io": {"leases"}, "apps": {"daemonsets"}, "*": {"*"},
	}
	var allowed []string
	for group, resources := range groups {
		for _, resource := range resources {
			for _, verb := range []string{"get", "list", "watch", "create", "update", "patch", "delete", "deletecollection", "*"} {
				review := &authorizationv1.SelfSubjectAccessReview{Spec: authorizationv1.SelfSubjectAccessReviewSpec{
					ResourceAttributes: &authorizationv1.ResourceAttributes{Group: group, Resource: resource, Verb: verb, Namespace: "kube-system"},
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
	want := []string{"list endpointslices", "list nodes", "list services", "watch endpointslices", "watch nodes", "watch services"}
	if !slices.Equal(allowed, want) {
		t.Errorf("the agent may %v, want %v", allowed, want)
	}
}
