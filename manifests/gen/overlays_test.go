// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/yaml"
)

// overlay is what one of the overlays creates.
type overlay struct {
	objects   []runtime.Object
	daemonSet *appsv1.DaemonSet
	config    string // the agent's file
}

// overlayNames are the directories of manifests/overlays.
func overlayNames(t *testing.T) (names []string) {
	t.Helper()
	entries, err := os.ReadDir("../overlays")
	if err != nil || len(entries) < 6 {
		t.Fatalf("found overlays %v: %v", entries, err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// load renders an overlay, and decodes it by the types of the API. A field that
// they do not have, or one given twice, is an error.
func load(t *testing.T, name string) overlay {
	t.Helper()
	return loadDir(t, filepath.Join("../overlays", name))
}

func loadDir(t *testing.T, name string) (o overlay) {
	t.Helper()
	text, err := render(name)
	if err != nil {
		t.Fatal(err)
	}
	strict := serializer.NewCodecFactory(scheme.Scheme, serializer.EnableStrict).UniversalDeserializer()
	for doc := range bytes.SplitSeq(text, []byte("\n---\n")) {
		object, _, err := strict.Decode(doc, nil, nil)
		if err != nil {
			t.Fatalf("overlay %s: %v in\n%s", name, err, doc)
		}
		o.objects = append(o.objects, object)
		switch x := object.(type) {
		case *appsv1.DaemonSet:
			o.daemonSet = x
		case *corev1.ConfigMap:
			if x.Name == "fairlead" {
				o.config = x.Data["config.yaml"]
			}
		}
	}
	if o.daemonSet == nil || o.config == "" {
		t.Fatalf("overlay %s has no DaemonSet or no configuration", name)
	}
	return o
}

// As the docs say: a kustomization of the operator's, with some of them.
func TestComponentsCombine(t *testing.T) {
	base, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	for _, dataplane := range []string{"", "nftables", "iptables", "ipvs"} {
		for some := range 8 {
			var components []string
			for i, name := range []string{"metrics", "pods", "takeover"} {
				if some&(1<<i) != 0 {
					components = append(components, name)
				}
			}
			if dataplane != "" {
				components = append([]string{dataplane}, components...)
			}
			dir := t.TempDir()
			to, err := filepath.Rel(dir, base)
			if err != nil {
				t.Fatal(err)
			}
			k := "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources: [" + to + "/base]\ncomponents:\n"
			for _, c := range components {
				k += "- " + to + "/components/" + c + "\n"
			}
			if err := os.WriteFile(filepath.Join(dir, "kustomization.yaml"), []byte(k), 0o644); err != nil {
				t.Fatal(err)
			}
			c := loadDir(t, dir).daemonSet.Spec.Template.Spec.Containers[0]
			for _, want := range []struct {
				component, arg string
			}{{"metrics", "--metrics-auth=delegated"}, {"takeover", "--take-over"}, {dataplane, "--dataplane=" + dataplane}} {
				if has := slices.Contains(c.Args, want.arg); want.component != "" && has != slices.Contains(components, want.component) {
					t.Errorf("components %v: argument %s: %v in %v", components, want.arg, has, c.Args)
				}
			}
		}
	}
}

func TestAMisspeltFieldIsNoticed(t *testing.T) {
	strict := serializer.NewCodecFactory(scheme.Scheme, serializer.EnableStrict).UniversalDeserializer()
	text, err := os.ReadFile("../base/daemonset.yaml")
	if err != nil {
		t.Fatal(err)
	}
	text = bytes.Replace(text, []byte("hostNetwork:"), []byte("hostNetwrok:"), 1)
	if _, _, err := strict.Decode(text, nil, nil); err == nil || !strings.Contains(err.Error(), "hostNetwrok") {
		t.Errorf("error %v, want one that names hostNetwrok", err)
	}
}

func TestEveryOverlayIsAnAgentThatIsConfinedToWhatItNeeds(t *testing.T) {
	for _, name := range overlayNames(t) {
		t.Run(name, func(t *testing.T) {
			o := load(t, name)
			spec := o.daemonSet.Spec.Template.Spec
			if len(spec.Containers) != 1 || len(spec.InitContainers) != 0 {
				t.Fatal("want one container")
			}
			c := spec.Containers[0]
			checkConfined(t, name, &spec, c.SecurityContext)
			checkLife(t, o.daemonSet)
			var volumes, mounts []string
			for _, v := range spec.Volumes {
				volumes = append(volumes, v.Name)
			}
			for _, m := range c.VolumeMounts {
				mounts = append(mounts, m.Name)
			}
			slices.Sort(volumes)
			slices.Sort(mounts)
			if diff := cmp.Diff(volumes, mounts); diff != "" {
				t.Errorf("volumes and their mounts (-volumes +mounts):\n%s", diff)
			}
			loadConfig(t, o.config)
		})
	}
}

// checkConfined: IPVS's sysctls are the one reason to be privileged.
func checkConfined(t *testing.T, overlay string, pod *corev1.PodSpec, s *corev1.SecurityContext) {
	t.Helper()
	want := map[string][]corev1.Capability{
		"nftables": {"NET_ADMIN"}, "iptables": {"NET_ADMIN", "NET_RAW"}, "ipvs": {"NET_ADMIN"},
	}[overlay]
	if want == nil {
		want = []corev1.Capability{"SYS_ADMIN"}
	}
	if diff := cmp.Diff(&corev1.Capabilities{Drop: []corev1.Capability{"ALL"}, Add: want}, s.Capabilities); diff != "" {
		t.Errorf("capabilities (-want +got):\n%s", diff)
	}
	if privileged := overlay == "ipvs"; *s.Privileged != privileged || *s.AllowPrivilegeEscalation != privileged {
		t.Errorf("privileged: %v, want %v", *s.Privileged, privileged)
	}
	if !*s.ReadOnlyRootFilesystem || pod.HostPID || pod.HostIPC || !pod.HostNetwork {
		t.Error("want a read-only root, and no namespace of the host's but the network")
	}
}

func checkLife(t *testing.T, d *appsv1.DaemonSet) {
	t.Helper()
	u, spec := d.Spec.UpdateStrategy, d.Spec.Template.Spec
	if u.Type != appsv1.RollingUpdateDaemonSetStrategyType || u.RollingUpdate.MaxSurge.IntValue() != 0 || u.RollingUpdate.MaxUnavailable.IntValue() != 1 {
		t.Errorf("update strategy %+v, want one node after another without a second agent on one", u)
	}
	if spec.PriorityClassName != "system-node-critical" || !slices.Equal(spec.Tolerations, []corev1.Toleration{{Operator: corev1.TolerationOpExists}}) {
		t.Error("want a pod for every node, and one of the last to go")
	}
	c := spec.Containers[0]
	for _, p := range []*corev1.Probe{c.LivenessProbe, c.ReadinessProbe, c.StartupProbe} {
		if p == nil || p.HTTPGet.Port.IntValue() != 10256 {
			t.Errorf("probe %+v, want one of the health address", p)
		}
	}
}

func TestOnlyThePodsOverlayMayWriteOrReadSecrets(t *testing.T) {
	for _, name := range overlayNames(t) {
		for _, object := range load(t, name).objects {
			role, ok := object.(*rbacv1.ClusterRole)
			if !ok {
				continue
			}
			for _, r := range role.Rules {
				if slices.Contains(r.Resources, "*") || slices.Contains(r.Verbs, "*") || slices.Contains(r.APIGroups, "*") {
					t.Errorf("overlay %s: role %s has a wildcard", name, role.Name)
				}
				asks := slices.Equal(r.Verbs, []string{"create"}) && role.Name == "fairlead-authenticator"
				reads := len(r.NonResourceURLs) > 0 || !slices.ContainsFunc(r.Verbs, func(v string) bool { return v != "list" && v != "watch" })
				if name != "pods" && !asks && !reads || name != "pods" && slices.Contains(r.Resources, "secrets") {
					t.Errorf("overlay %s: role %s may %v %v", name, role.Name, r.Verbs, r.Resources)
				}
			}
		}
	}
}

func TestThePodMonitorReachesThePortOfTheMonitoredOverlay(t *testing.T) {
	o := load(t, "monitored")
	var monitor struct {
		Spec struct {
			Selector struct {
				MatchLabels map[string]string `json:"matchLabels"`
			} `json:"selector"`
			PodMetricsEndpoints []struct {
				Port, Path, Scheme string
			} `json:"podMetricsEndpoints"`
		} `json:"spec"`
	}
	if err := yaml.Unmarshal([]byte(read(t, "../prometheus/podmonitor.yaml")), &monitor); err != nil {
		t.Fatal(err)
	}
	e := monitor.Spec.PodMetricsEndpoints[0]
	template := o.daemonSet.Spec.Template
	i := slices.IndexFunc(template.Spec.Containers[0].Ports, func(p corev1.ContainerPort) bool { return p.Name == e.Port })
	if i < 0 {
		t.Fatalf("the DaemonSet has no port %q", e.Port)
	}
	want := map[string]string{"prometheus.io/scrape": "true", "prometheus.io/scheme": e.Scheme, "prometheus.io/path": e.Path, "prometheus.io/port": "10249"}
	if diff := cmp.Diff(want, template.Annotations); diff != "" || template.Spec.Containers[0].Ports[i].ContainerPort != 10249 {
		t.Errorf("annotations and the PodMonitor differ (-monitor +annotations):\n%s", diff)
	}
	for k, v := range monitor.Spec.Selector.MatchLabels {
		if template.Labels[k] != v {
			t.Errorf("the PodMonitor wants label %s=%s, which the pods do not have", k, v)
		}
	}
}

func TestTheFileOfANodeThatRunsPodsIsValid(t *testing.T) {
	loadConfig(t, read(t, "../node/config.yaml"))
}

func TestTheMonitoringObjectsRender(t *testing.T) {
	text, err := render("../prometheus")
	if err != nil {
		t.Fatal(err)
	}
	var kinds []string
	for doc := range bytes.SplitSeq(text, []byte("\n---\n")) {
		var o struct {
			Kind     string
			Metadata struct{ Namespace string }
		}
		if err := yaml.Unmarshal(doc, &o); err != nil {
			t.Fatal(err)
		}
		if o.Kind != "ClusterRoleBinding" && o.Metadata.Namespace != "kube-system" {
			t.Errorf("%s is in namespace %q: a PodMonitor reads Secrets of its own only", o.Kind, o.Metadata.Namespace)
		}
		kinds = append(kinds, o.Kind)
	}
	slices.Sort(kinds)
	if want := []string{"ClusterRoleBinding", "PodMonitor", "PrometheusRule", "Secret", "ServiceAccount"}; !slices.Equal(kinds, want) {
		t.Errorf("kinds %v, want %v", kinds, want)
	}
}
