// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"fairlead.dev/podrunner/apiclient"
	"fairlead.dev/podrunner/apiclient/clientset"
	"fairlead.dev/podrunner/objects"
	"fairlead.dev/test/e2e/controlplane"
)

// allowByName lets the agent read one Secret and one ConfigMap, as the Node
// authorizer lets a node read what its Pods name, and make tokens.
func (c *cluster) allowByName(t *testing.T, name string) {
	t.Helper()
	role := &rbacv1.Role{ObjectMeta: metav1.ObjectMeta{Name: "podrunner", Namespace: c.namespace}, Rules: []rbacv1.PolicyRule{
		{APIGroups: []string{""}, Resources: []string{"secrets", "configmaps"}, ResourceNames: []string{name}, Verbs: []string{"get", "list", "watch"}},
		{APIGroups: []string{""}, Resources: []string{"serviceaccounts/token"}, Verbs: []string{"create"}},
		{APIGroups: []string{""}, Resources: []string{"services"}, Verbs: []string{"list"}},
	}}
	if _, err := c.client.RbacV1().Roles(c.namespace).Create(t.Context(), role, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	binding := &rbacv1.RoleBinding{ObjectMeta: role.ObjectMeta, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: role.Name},
		Subjects: []rbacv1.Subject{{Kind: rbacv1.UserKind, APIGroup: rbacv1.GroupName, Name: "fairlead"}}}
	if _, err := c.client.RbacV1().RoleBindings(c.namespace).Create(t.Context(), binding, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

func TestObjectsOfPodsAreFollowedByNameAlone(t *testing.T) {
	c := newCluster(t)
	c.allowByName(t, "conf")
	client, err := apiclient.New(c.RESTConfig(controlplane.AgentToken))
	if err != nil {
		t.Fatal(err)
	}
	store := objects.NewAPI(objects.APIOptions{Client: client})
	defer store.Close()
	changes := make(chan objects.Key, 10)
	store.OnChange(func(k objects.Key) { changes <- k })
	key := types.NamespacedName{Namespace: c.namespace, Name: "conf"}
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: c.namespace, Name: "p", UID: "none-yet"}, Spec: corev1.PodSpec{
		Volumes: []corev1.Volume{
			{Name: "c", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: "conf"}}}},
			{Name: "f", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "forbidden"}}},
		},
		Containers: []corev1.Container{{Name: "c", Image: "i", EnvFrom: []corev1.EnvFromSource{{SecretRef: &corev1.SecretEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "conf"}}}}}},
	}}
	// The role may take a moment to be known.
	get := func() (*corev1.ConfigMap, error) {
		ctx, cancel := context.WithTimeout(t.Context(), agentBound)
		defer cancel()
		return store.ConfigMap(ctx, key)
	}
	store.Use(pod)
	deadline := time.Now().Add(startBound)
	for _, err = get(); !apierrors.IsNotFound(err); _, err = get() {
		if time.Now().After(deadline) {
			t.Fatalf("before it is made: %v", err)
		}
		time.Sleep(20 * time.Millisecond)
	}
	if want := `configmap "conf" not found`; err.Error() != want {
		t.Errorf("got %q, want %q", err, want)
	}
	if _, err := store.Secret(t.Context(), types.NamespacedName{Namespace: c.namespace, Name: "forbidden"}); !apierrors.IsForbidden(err) {
		t.Errorf("a Secret that is not the agent's to see: %v", err)
	}

	maps := c.client.CoreV1().ConfigMaps(c.namespace)
	changed := func(what string) {
		t.Helper()
		select {
		case k := <-changes:
			if k != (objects.Key{Kind: objects.KindConfigMap, NamespacedName: key}) {
				t.Errorf("%s: told of %v", what, k)
			}
		case <-time.After(startBound):
			t.Fatalf("%s: not told", what)
		}
	}
	m := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "conf"}, Data: map[string]string{"k": "1"}}
	for _, value := range []string{"1", "2"} {
		m.Data["k"] = value
		do := func() error { _, err := maps.Update(t.Context(), m, metav1.UpdateOptions{}); return err }
		if value == "1" {
			do = func() error { _, err := maps.Create(t.Context(), m, metav1.CreateOptions{}); return err }
		}
		began := time.Now()
		if err := do(); err != nil {
			t.Fatal(err)
		}
		changed("value " + value)
		if got, err := get(); err != nil || got.Data["k"] != value {
			t.Errorf("got %v, %v, want %s", got, err, value)
		}
		t.Logf("value %s was there after %v", value, time.Since(began).Round(time.Millisecond))
	}
	if err := maps.Delete(t.Context(), "conf", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	changed("deletion")
	if _, err := get(); !apierrors.IsNotFound(err) {
		t.Errorf("after the deletion: %v", err)
	}

	// What a container needs at its start is asked for then.
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "conf"}, Data: map[string][]byte{"k": []byte("s")}}
	if _, err := c.client.CoreV1().Secrets(c.namespace).Create(t.Context(), secret, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if s, err := store.Secret(t.Context(), key); err != nil || string(s.Data["k"]) != "s" {
		t.Errorf("Secret of the environment: %v, %v", s, err)
	}
	service := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "db"}, Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 5432}}}}
	if _, err := c.client.CoreV1().Services(c.namespace).Create(t.Context(), service, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if l, err := store.Services(t.Context(), c.namespace); err != nil || len(l) != 1 || l[0].Spec.ClusterIP == "" {
		t.Errorf("Services: %v, %v", l, err)
	}
}

func TestTokensOfPodsAreBoundToThem(t *testing.T) {
	c := newCluster(t)
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "sa"}}
	if _, err := c.client.CoreV1().ServiceAccounts(c.namespace).Create(t.Context(), account, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	no := false
	pod, err := c.client.CoreV1().Pods(c.namespace).Create(t.Context(), &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p"}, Spec: corev1.PodSpec{
		NodeName: c.node, ServiceAccountName: "sa", AutomountServiceAccountToken: &no, Containers: []corev1.Container{{Name: "c", Image: "i"}}}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.client.CoreV1().Pods(c.namespace).Delete(context.Background(), "p", *metav1.NewDeleteOptions(0))
	store := objects.NewAPI(objects.APIOptions{Client: clientset.Clientset{Interface: c.client}})
	defer store.Close()
	request := objects.TokenRequest{Namespace: c.namespace, ServiceAccount: "sa", PodName: "p", PodUID: pod.UID, ExpirationSeconds: 600}
	token, err := store.Token(t.Context(), request)
	if err != nil {
		t.Fatal(err)
	}
	if left := time.Until(token.Renew); left < 400*time.Second || left > 490*time.Second || !token.Expires.After(token.Renew) {
		t.Errorf("renewed in %v, expires %v; want 80 %% of 10 minutes", left, token.Expires)
	}
	review := func() *authenticationv1.TokenReview {
		t.Helper()
		r, err := c.client.AuthenticationV1().TokenReviews().Create(t.Context(), &authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{Token: token.Value}}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	if r := review(); !r.Status.Authenticated || len(r.Status.User.Extra["authentication.kubernetes.io/pod-name"]) != 1 || r.Status.User.Username != "system:serviceaccount:"+c.namespace+":sa" {
		t.Errorf("the API server says %+v", r.Status)
	}
	if again, err := store.Token(t.Context(), request); err != nil || again.Value != token.Value {
		t.Errorf("a second request: %v, the same %v", err, again == token)
	}
	request.PodUID = "another"
	if _, err := store.Token(t.Context(), request); err == nil {
		t.Error("a token is given to a Pod that is not there")
	}
}
