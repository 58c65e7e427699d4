// SPDX-License-Identifier: Apache-2.0

package podspec

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/utils/ptr"
)

func fullContainer(p *corev1.Pod) {
	p.DeletionGracePeriodSeconds = ptr.To[int64](7)
	p.Spec.TerminationGracePeriodSeconds = ptr.To[int64](30)
	c := &p.Spec.Containers[0]
	c.Command, c.Args = []string{"/bin/$(NAME)", "$$(X)"}, []string{"$(NAME)", "$(NONE)"}
	c.Env = []corev1.EnvVar{{Name: "NAME", Value: "app"}, {Name: "ABC", Value: "1"}}
	c.WorkingDir, c.Stdin, c.StdinOnce, c.TTY = "/w", true, true, true
	c.TerminationMessagePath, c.TerminationMessagePolicy = "/dev/termination-log", corev1.TerminationMessageFallbackToLogsOnError
	c.Ports = []corev1.ContainerPort{{Name: "http", ContainerPort: 80, Protocol: corev1.ProtocolTCP}}
	c.Lifecycle = &corev1.Lifecycle{
		PreStop:    &corev1.LifecycleHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/bye", Port: intstr.FromString("http")}},
		StopSignal: ptr.To(corev1.SIGUSR1),
	}
	c.Resources.Limits = list("memory", "1Gi")
}

func TestContainerIsTranslatedWhole(t *testing.T) {
	pod := testPod(fullContainer)
	mounts := []*runtimeapi.Mount{{ContainerPath: "/a", HostPath: "/b"}}
	got, err := Container(t.Context(), pod, &pod.Spec.Containers[0],
		ContainerInput{RestartCount: 4, ImageRef: "sha256:1234", Mounts: mounts}, testFacts(), testStore())
	if err != nil {
		t.Fatal(err)
	}
	var envs []*runtimeapi.KeyValue
	for _, e := range got.Envs {
		if len(e.Key) < 4 || e.Key == "NAME" {
			envs = append(envs, e)
		}
	}
	if len(got.Envs) != len(kubernetesEnv)+2 {
		t.Errorf("%d environment variables, want %d", len(got.Envs), len(kubernetesEnv)+2)
	}
	got.Envs = envs
	want := &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: "main", Attempt: 4},
		Image:    &runtimeapi.ImageSpec{Image: "sha256:1234", UserSpecifiedImage: "img:1"},
		Command:  []string{"/bin/app", "$(X)"}, Args: []string{"app", "$(NONE)"},
		Envs:       []*runtimeapi.KeyValue{{Key: "ABC", Value: []byte("1")}, {Key: "NAME", Value: []byte("app")}},
		WorkingDir: "/w", Stdin: true, StdinOnce: true, Tty: true, Mounts: mounts, LogPath: "main/4.log",
		StopSignal: runtimeapi.Signal_SIGNAL_SIGUSR1,
		Labels: map[string]string{"io.kubernetes.pod.name": "front", "io.kubernetes.pod.namespace": "web",
			"io.kubernetes.pod.uid": "0b1c-2d", "io.kubernetes.container.name": "main"},
		Annotations: map[string]string{
			"io.kubernetes.container.hash":                     got.Annotations["io.kubernetes.container.hash"],
			"io.kubernetes.container.restartCount":             "4",
			"io.kubernetes.container.terminationMessagePath":   "/dev/termination-log",
			"io.kubernetes.container.terminationMessagePolicy": "FallbackToLogsOnError",
			"io.kubernetes.container.preStopHandler":           `{"httpGet":{"path":"/bye","port":"http"}}`,
			"io.kubernetes.container.ports":                    `[{"name":"http","containerPort":80,"protocol":"TCP"}]`,
			"io.kubernetes.pod.deletionGracePeriod":            "7",
			"io.kubernetes.pod.terminationGracePeriod":         "30",
			"fairlead.dev/container.resources":                 `{"limits":{"memory":"1Gi"}}`,
		},
		Linux: got.Linux,
	}
	if d := cmp.Diff(want, got, protocmp.Transform()); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

func TestContainerIsReadFromTheRuntimeAsItWasMade(t *testing.T) {
	pod := testPod(fullContainer)
	c := &pod.Spec.Containers[0]
	config, err := Container(t.Context(), pod, c, ContainerInput{RestartCount: 4}, testFacts(), testStore())
	if err != nil {
		t.Fatal(err)
	}
	got, err := ParseContainer(config.Labels, config.Annotations)
	want := ContainerInfo{
		Namespace: "web", Pod: "front", Name: "main", UID: "0b1c-2d", Hash: ContainerHash(c), RestartCount: 4,
		TerminationMessagePath: c.TerminationMessagePath, TerminationMessagePolicy: c.TerminationMessagePolicy,
		DeletionGraceSeconds: ptr.To[int64](7), TerminationGraceSeconds: ptr.To[int64](30),
		PreStop: c.Lifecycle.PreStop, Ports: c.Ports, Resources: &c.Resources,
	}
	if d := cmp.Diff(want, got); d != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, d)
	}
	config.Annotations[annotationRestartCount] = "many"
	if got, err := ParseContainer(config.Labels, config.Annotations); err == nil || got.Hash != ContainerHash(c) {
		t.Errorf("with an unreadable restart count: %v, hash %x", err, got.Hash)
	}
	if _, err := ParseContainer(map[string]string{LabelPodName: "x"}, nil); err == nil {
		t.Error("a container without our labels is taken for one of a Pod")
	}
}

func TestSandboxIsReadFromTheRuntimeAsItWasMade(t *testing.T) {
	pod := testPod()
	config, err := Sandbox(pod, 0, testFacts())
	if err != nil {
		t.Fatal(err)
	}
	got, err := ParseSandbox(config.Labels, config.Annotations)
	want := SandboxInfo{Namespace: "web", Name: "front", UID: "0b1c-2d", Labels: pod.Labels, Annotations: pod.Annotations, PodHash: PodHash(pod)}
	if d := cmp.Diff(want, got); d != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, d)
	}
	if _, err := ParseSandbox(map[string]string{LabelPodName: "x"}, nil); err == nil {
		t.Error("a sandbox without our labels is taken for one of a Pod")
	}
}

func TestHashesChangeOnlyWithWhatNeedsANewContainerOrPod(t *testing.T) {
	base := testPod(fullContainer)
	for name, c := range map[string]struct {
		change         func(*corev1.Pod)
		container, pod bool
	}{
		"image":     {func(p *corev1.Pod) { p.Spec.Containers[0].Image = "img:2" }, true, true},
		"command":   {func(p *corev1.Pod) { p.Spec.Containers[0].Command = nil }, false, true},
		"label":     {func(p *corev1.Pod) { p.Labels["app"] = "y" }, false, true},
		"volume":    {func(p *corev1.Pod) { p.Spec.Volumes = []corev1.Volume{{Name: "v"}} }, false, true},
		"resources": {func(p *corev1.Pod) { p.Spec.Containers[0].Resources.Limits = list("memory", "2Gi") }, false, false},
		"deadline":  {func(p *corev1.Pod) { p.Spec.ActiveDeadlineSeconds = ptr.To[int64](1) }, false, false},
		"status":    {func(p *corev1.Pod) { p.Status.Phase = corev1.PodRunning }, false, false},
		"deletion":  {func(p *corev1.Pod) { p.DeletionGracePeriodSeconds = nil }, false, false},
	} {
		changed := testPod(fullContainer, c.change)
		if got := ContainerHash(&changed.Spec.Containers[0]) != ContainerHash(&base.Spec.Containers[0]); got != c.container {
			t.Errorf("%s: the container's hash changed: %v", name, got)
		}
		if got := PodHash(changed) != PodHash(base); got != c.pod {
			t.Errorf("%s: the Pod's hash changed: %v", name, got)
		}
	}
}

func TestStopSignalsAreTheCRIs(t *testing.T) {
	for s, want := range map[corev1.Signal]runtimeapi.Signal{
		corev1.SIGTERM: runtimeapi.Signal_SIGNAL_SIGTERM, corev1.SIGRTMINPLUS1: runtimeapi.Signal_SIGNAL_SIGRTMINPLUS1,
		corev1.SIGRTMAXMINUS2: runtimeapi.Signal_SIGNAL_SIGRTMAXMINUS2, "SIGNONE": runtimeapi.Signal_SIGNAL_RUNTIME_DEFAULT,
	} {
		if got := stopSignal(s); got != want {
			t.Errorf("%s: %s, want %s", s, got, want)
		}
	}
}

func TestLogPathsNameThePod(t *testing.T) {
	dir := LogDir(testPod(), &Facts{LogRoot: "/logs"})
	if dir != "/logs/web_front_0b1c-2d" {
		t.Errorf("directory %s", dir)
	}
	if k, uid, ok := ParseLogDir("web_front_0b1c-2d"); !ok || k.String() != "web/front" || uid != "0b1c-2d" {
		t.Errorf("parsed: %v %v %v", k, uid, ok)
	}
	for _, s := range []string{"", "a_b", "a_b_", "a_b_c_d"} {
		if _, _, ok := ParseLogDir(s); ok {
			t.Errorf("%q is taken for a log directory", s)
		}
	}
}
