// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"runtime"
	"runtime/pprof"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"fairlead.dev/test/e2e/controlplane"
)

// reconnectBound: the backoff of these tests ends at 2 s, and an API server
// that starts answers before it can serve.
const reconnectBound = 15 * time.Second

func (r *running) isConnected() string {
	if s := r.source.State(); !s.Connected || len(s.Problems) != 0 {
		return fmt.Sprintf("State is %+v, want connected without problems", s)
	}
	return ""
}

func (r *running) isDisconnected() string {
	if s := r.source.State(); s.Connected || len(s.Problems) == 0 {
		return fmt.Sprintf("State is %+v, want disconnected with problems", s)
	}
	return ""
}

func TestARestartedAPIServerCausesNoDeletion(t *testing.T) {
	c := newCluster(t)
	s := c.createService(t, "a", "1", nil)
	c.createSlice(t, "a", "1", nil)
	r := runSource(t, c, c.RESTConfig(controlplane.AdminToken), nil)
	eventually(t, 5*time.Second, r.isSynced)
	connected := r.source.State().Since

	c.KillAPIServer()
	eventually(t, 3*time.Second, r.isDisconnected)
	state := r.source.State()
	t.Logf("problems: %q", state.Problems)
	if !state.Since.After(connected) {
		t.Errorf("Since is %v, before the API server ended", state.Since)
	}
	if err := c.StartAPIServer(t.Context()); err != nil {
		t.Fatal(err)
	}
	ready := time.Now()
	eventually(t, reconnectBound, r.isConnected)
	t.Logf("connected %v after the API server was ready", time.Since(ready))
	c.updateService(t, s, "2")
	r.waitFor(t, "service "+c.namespace+"/a", false, "2")
	if gone := r.deletions("", 0); len(gone) != 0 {
		t.Errorf("delivered as deleted, though they exist: %v", gone)
	}
	if len(r.synced) != 1 {
		t.Errorf("OnSynced was called %d times, want once", len(r.synced))
	}
}

func TestWhatChangedWhileDisconnectedIsDeliveredOnce(t *testing.T) {
	for _, test := range []struct {
		name string
		// restart also restarts the API server: it does not know the version
		// where the Source stopped, so that only a new list helps.
		restart bool
	}{
		{"resuming the watch", false},
		{"listing again", true},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := newCluster(t)
			proxy, err := controlplane.NewProxy(c.Addr)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(proxy.Close)
			config := c.RESTConfig(controlplane.AdminToken)
			config.Host = "https://" + proxy.Addr()
			for _, name := range []string{"kept", "deleted", "recreated"} {
				c.createService(t, name, "1", nil)
			}
			changed := c.createService(t, "changed", "1", nil)
			c.createSlice(t, "deleted", "1", nil)
			r := runSource(t, c, config, nil)
			eventually(t, 5*time.Second, r.isSynced)

			proxy.Cut()
			eventually(t, 3*time.Second, r.isDisconnected)
			before := r.count()
			c.deleteService(t, "deleted")
			if err := c.client.DiscoveryV1().EndpointSlices(c.namespace).Delete(t.Context(), "deleted", metav1.DeleteOptions{}); err != nil {
				t.Fatal(err)
			}
			c.updateService(t, changed, "2")
			c.deleteService(t, "recreated")
			c.createService(t, "recreated", "2", nil)
			c.createService(t, "new", "1", nil)
			c.createService(t, "passing", "1", nil)
			c.deleteService(t, "passing")
			if test.restart {
				c.KillAPIServer()
				if err := c.StartAPIServer(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			if n := r.count(); n != before {
				t.Fatalf("%d events while the wire was cut", n-before)
			}
			proxy.Restore()
			restored := time.Now()
			eventually(t, reconnectBound, r.isConnected)
			t.Logf("connected %v after the wire was restored", time.Since(restored))

			prefix := "service " + c.namespace + "/"
			r.waitFor(t, prefix+"changed", false, "2")
			r.waitFor(t, prefix+"recreated", false, "2")
			r.waitFor(t, prefix+"new", false, "1")
			r.waitFor(t, prefix+"deleted", true, "")
			r.waitFor(t, "slice "+c.namespace+"/deleted", true, "")
			var want []string
			if !test.restart {
				// A resumed watch tells the story as it was.
				want = []string{prefix + "deleted", prefix + "passing", prefix + "recreated", "slice " + c.namespace + "/deleted"}
			} else {
				want = []string{prefix + "deleted", "slice " + c.namespace + "/deleted"}
				if len(r.of(prefix+"kept", before)) == 0 {
					t.Error("there was no new list: this test tests nothing")
				}
			}
			got := r.deletions("", before)
			slices.Sort(got)
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("delivered as deleted (-want +got):\n%s", diff)
			}
			if e, _ := r.last(prefix + "kept"); e.deleted {
				t.Errorf("kept was delivered as deleted")
			}
		})
	}
}

func TestMissingRightsAreNamedAndSufficeOnceGranted(t *testing.T) {
	c := newCluster(t)
	r := runSource(t, c, c.RESTConfig(controlplane.AgentToken), nil)
	eventually(t, 5*time.Second, func() string {
		problems := strings.Join(r.source.State().Problems, "\n")
		for _, want := range []string{
			`services: `, `"fairlead"`, `grant the verbs list and watch on "services" in API group ""`,
			`grant the verbs list and watch on "endpointslices" in API group "discovery.k8s.io"`,
			`grant the verbs list and watch on "nodes" in API group ""`,
		} {
			if !strings.Contains(problems, want) {
				return fmt.Sprintf("no %q in the problems:\n%s", want, problems)
			}
		}
		return ""
	})
	t.Logf("problems:\n%s", strings.Join(r.source.State().Problems, "\n"))
	if r.isSynced() == "" {
		t.Error("OnSynced was called without any right to list")
	}

	rbac := c.client.RbacV1()
	name := c.namespace
	_, err := rbac.ClusterRoles().Create(t.Context(), &rbacv1.ClusterRole{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Rules: []rbacv1.PolicyRule{
			{APIGroups: []string{""}, Resources: []string{"services", "nodes"}, Verbs: []string{"list", "watch"}},
			{APIGroups: []string{"discovery.k8s.io"}, Resources: []string{"endpointslices"}, Verbs: []string{"list", "watch"}},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = rbac.ClusterRoleBindings().Create(t.Context(), &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: name},
		Subjects:   []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: "User", Name: "fairlead"}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = rbac.ClusterRoleBindings().Delete(t.Context(), name, metav1.DeleteOptions{})
		_ = rbac.ClusterRoles().Delete(t.Context(), name, metav1.DeleteOptions{})
	}()
	eventually(t, reconnectBound, r.isConnected)
	eventually(t, 0, r.isSynced)
}

func TestAWrongTokenIsAProblemThatNamesTheCredentials(t *testing.T) {
	c := newCluster(t)
	r := runSource(t, c, c.RESTConfig("wrong"), nil)
	eventually(t, 5*time.Second, func() string {
		problems := strings.Join(r.source.State().Problems, "\n")
		if want := "services: the API server does not accept the credentials (401 Unauthorized)"; !strings.Contains(problems, want) {
			return fmt.Sprintf("no %q in the problems %q", want, problems)
		}
		return ""
	})
}

func TestAnEndedSourceLeavesNoGoroutines(t *testing.T) {
	c := newCluster(t)
	proxy, err := controlplane.NewProxy(c.Addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(proxy.Close)
	before := runtime.NumGoroutine()
	for _, disconnected := range []bool{false, true} {
		config := c.RESTConfig(controlplane.AdminToken)
		config.Host = "https://" + proxy.Addr()
		r := runSource(t, c, config, nil)
		eventually(t, reconnectBound, r.isConnected)
		if disconnected {
			proxy.Cut()
			eventually(t, 3*time.Second, r.isDisconnected)
		}
		ending := time.Now()
		r.stop()
		t.Logf("disconnected=%v: Run returned after %v", disconnected, time.Since(ending))
		eventually(t, 2*time.Second, func() string {
			if n := runtime.NumGoroutine(); n > before {
				var b strings.Builder
				_ = pprof.Lookup("goroutine").WriteTo(&b, 1)
				return fmt.Sprintf("%d goroutines, %d before:\n%s", n, before, b.String())
			}
			return ""
		})
	}
}
