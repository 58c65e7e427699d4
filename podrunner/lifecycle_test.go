// SPDX-License-Identifier: Apache-2.0

package podrunner

import (
	"fmt"
	"os"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// readLog takes the text out of a log in the CRI's format.
func readLog(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	var out strings.Builder
	for line := range strings.Lines(string(b)) {
		if f := strings.SplitN(line, " ", 4); len(f) == 4 {
			out.WriteString(f[3])
		}
	}
	return out.String()
}

// brief says what a container's status is, in a line.
func brief(s *corev1.ContainerStatus) string {
	var b strings.Builder
	state := func(s *corev1.ContainerState) {
		switch {
		case s.Waiting != nil:
			fmt.Fprintf(&b, "waiting(%s)", s.Waiting.Reason)
		case s.Running != nil:
			b.WriteString("running")
		case s.Terminated != nil:
			fmt.Fprintf(&b, "terminated(%s,%d)", s.Terminated.Reason, s.Terminated.ExitCode)
		}
	}
	state(&s.State)
	if s.LastTerminationState.Terminated != nil {
		b.WriteString(" after ")
		state(&s.LastTerminationState)
	}
	return b.String()
}

func briefAll(s *corev1.PodStatus) string {
	var all []string
	for _, cs := range [][]corev1.ContainerStatus{s.InitContainerStatuses, s.ContainerStatuses, s.EphemeralContainerStatuses} {
		for i := range cs {
			all = append(all, cs[i].Name+": "+brief(&cs[i]))
		}
	}
	return strings.Join(all, "; ")
}

// lifecycleCases are Pods, each with what becomes of it.
var lifecycleCases = []struct {
	name, spec string
	phase      corev1.PodPhase
	containers string // as briefAll has it
	restarts   int32  // at least, of the first container
	events     []string
	message    string // of the first container's termination or waiting
}{
	{name: "a server runs and is ready", spec: `
containers: [{name: c, image: IMAGE, args: [sleep]}]`,
		phase: corev1.PodRunning, containers: "c: running", events: []string{"Pulled", "Created", "Started"}},
	{name: "a job that succeeds is done", spec: `
restartPolicy: Never
containers: [{name: c, image: IMAGE, args: [exit, "0"]}]`,
		phase: corev1.PodSucceeded, containers: "c: terminated(Completed,0)"},
	{name: "a job that fails is failed", spec: `
restartPolicy: Never
containers: [{name: c, image: IMAGE, args: [exit, "3"]}]`,
		phase: corev1.PodFailed, containers: "c: terminated(Error,3)"},
	{name: "one failure of two is a failure", spec: `
restartPolicy: Never
containers: [{name: a, image: IMAGE, args: [exit, "0"]}, {name: b, image: IMAGE, args: [exit, "1"]}]`,
		phase: corev1.PodFailed, containers: "a: terminated(Completed,0); b: terminated(Error,1)"},
	{name: "on failure it is tried again until it succeeds", spec: `
restartPolicy: OnFailure
volumes: [{name: v, emptyDir: {}}]
containers: [{name: c, image: IMAGE, args: [once, /v/x, "4"], volumeMounts: [{name: v, mountPath: /v}]}]`,
		phase: corev1.PodSucceeded, containers: "c: terminated(Completed,0) after terminated(Error,4)", restarts: 1},
	{name: "what always ends waits longer and longer", spec: `
containers: [{name: c, image: IMAGE, args: [exit, "1"]}]`,
		phase: corev1.PodRunning, containers: "c: waiting(CrashLoopBackOff) after terminated(Error,1)", restarts: 2,
		events: []string{"BackOff Back-off restarting failed container c in pod "}, message: "restarting failed container=c pod="},
	{name: "always also means after a success", spec: `
containers: [{name: c, image: IMAGE, args: [exit, "0"]}]`,
		phase: corev1.PodRunning, containers: "c: waiting(CrashLoopBackOff) after terminated(Completed,0)", restarts: 1},
	{name: "init containers run one after the other, before the rest", spec: `
volumes: [{name: v, emptyDir: {}}]
initContainers:
- {name: i1, image: IMAGE, args: [write, /v/1, x], volumeMounts: [{name: v, mountPath: /v}]}
- {name: i2, image: IMAGE, args: [then, exists, /v/1, ;, write, /v/2, x], volumeMounts: [{name: v, mountPath: /v}]}
containers: [{name: c, image: IMAGE, args: [then, exists, /v/2, ;, sleep], volumeMounts: [{name: v, mountPath: /v}]}]`,
		phase: corev1.PodRunning, containers: "i1: terminated(Completed,0); i2: terminated(Completed,0); c: running"},
	{name: "an init container that fails for good fails the Pod", spec: `
restartPolicy: Never
initContainers: [{name: i, image: IMAGE, args: [exit, "7"]}]
containers: [{name: c, image: IMAGE, args: [sleep]}]`,
		phase: corev1.PodFailed, containers: "i: terminated(Error,7); c: waiting(PodInitializing)"},
	{name: "an init container that fails is tried again", spec: `
initContainers: [{name: i, image: IMAGE, args: [exit, "7"]}]
containers: [{name: c, image: IMAGE, args: [sleep]}]`,
		phase: corev1.PodPending, containers: "i: waiting(CrashLoopBackOff) after terminated(Error,7); c: waiting(PodInitializing)", restarts: 1},
	{name: "a sidecar runs beside the rest", spec: `
initContainers: [{name: s, image: IMAGE, args: [sleep], restartPolicy: Always}]
containers: [{name: c, image: IMAGE, args: [sleep]}]`,
		phase: corev1.PodRunning, containers: "s: running; c: running"},
	{name: "a sidecar does not keep a job from its end", spec: `
restartPolicy: Never
initContainers: [{name: s, image: IMAGE, args: [sleep], restartPolicy: Always, LISTENS}]
containers: [{name: c, image: IMAGE, args: [exit, "0"]}]`,
		phase: corev1.PodSucceeded, containers: "s: terminated(Error,143); c: terminated(Completed,0)"},
	{name: "a sidecar that ends is restarted", spec: `
initContainers: [{name: s, image: IMAGE, args: [sleep, "0.3"], restartPolicy: Always}]
containers: [{name: c, image: IMAGE, args: [sleep]}]`,
		phase: corev1.PodRunning, containers: "s: waiting(CrashLoopBackOff) after terminated(Completed,0); c: running", restarts: 1},
	{name: "a rule restarts what would not be", spec: `
restartPolicy: Never
volumes: [{name: v, emptyDir: {}}]
containers:
- {name: c, image: IMAGE, args: [once, /v/x, "42"], volumeMounts: [{name: v, mountPath: /v}], restartPolicy: Never,
   restartPolicyRules: [{action: Restart, exitCodes: {operator: In, values: [42]}}]}`,
		phase: corev1.PodSucceeded, containers: "c: terminated(Completed,0) after terminated(Error,42)", restarts: 1},
	{name: "too much memory ends it", spec: `
restartPolicy: Never
containers: [{name: c, image: IMAGE, args: [oom], resources: {limits: {memory: 32Mi}}}]`,
		phase: corev1.PodFailed, containers: "c: terminated(OOMKilled,137)"},
	{name: "what is not there cannot be run", spec: `
restartPolicy: Never
containers: [{name: c, image: IMAGE, command: [/nothing]}]`,
		phase: corev1.PodFailed, containers: "c: terminated(StartError,128)", message: "no such file or directory",
		events: []string{"Failed Error: "}},
	{name: "an image that may not be pulled", spec: `
containers: [{name: c, image: "fairlead.test/none:1", imagePullPolicy: Never}]`,
		phase: corev1.PodPending, containers: "c: waiting(ErrImageNeverPull)",
		message: `Container image "fairlead.test/none:1" is not present with pull policy of Never`},
	{name: "an image that cannot be pulled", spec: `
containers: [{name: c, image: "127.0.0.1:9/none:1"}]`,
		phase: corev1.PodPending, containers: "c: waiting(ImagePullBackOff)", message: `Back-off pulling image "127.0.0.1:9/none:1": ErrImagePull: `,
		events: []string{"Pulling Pulling image", "Failed Failed to pull image", "Failed Error: ErrImagePull", "BackOff Back-off pulling image"}},
	{name: "a name that is none", spec: `
containers: [{name: c, image: "UPPER CASE"}]`,
		phase: corev1.PodPending, containers: "c: waiting(InvalidImageName)", message: "invalid reference format"},
	{name: "a ConfigMap that is not there", spec: `
containers: [{name: c, image: IMAGE, args: [sleep], envFrom: [{configMapRef: {name: none}}]}]`,
		phase: corev1.PodPending, containers: "c: waiting(CreateContainerConfigError)", message: `configmaps "none" not found`},
	{name: "one image that is not there does not keep the others from running", spec: `
containers: [{name: a, image: "127.0.0.1:9/none:1"}, {name: b, image: IMAGE, args: [sleep]}]`,
		phase: corev1.PodPending, containers: "a: waiting(ImagePullBackOff); b: running"},
	{name: "the deadline fails it", spec: `
activeDeadlineSeconds: 3
containers: [{name: c, image: IMAGE, args: [sleep]}]`,
		phase: corev1.PodFailed, containers: "c: ", events: []string{"DeadlineExceeded Pod was active on the node longer than the specified deadline"}},
	{name: "a failed postStart hook ends the container", spec: `
restartPolicy: Never
containers: [{name: c, image: IMAGE, args: [sleep], lifecycle: {postStart: {exec: {command: [/guest, then, wait, /listening, ;, exit, "1"]}}}}]`,
		phase: corev1.PodFailed, containers: "c: terminated(Error,143)", events: []string{"FailedPostStartHook PostStartHook failed"}},
	{name: "an ephemeral container runs once", spec: `
containers: [{name: c, image: IMAGE, args: [sleep]}]
ephemeralContainers: [{name: e, image: IMAGE, args: [exit, "1"], targetContainerName: c}]`,
		phase: corev1.PodRunning, containers: "c: running; e: terminated(Error,1)"},
	{name: "on the host's network", spec: `
hostNetwork: true
containers: [{name: c, image: IMAGE, args: [sleep]}]`,
		phase: corev1.PodRunning, containers: "c: running"},
}

func TestPodsBecomeWhatTheirManifestSays(t *testing.T) {
	g := newRig(t)
	for i, c := range lifecycleCases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			g := g.as(t)
			indented := strings.ReplaceAll(c.spec, "\n", "\n  ")
			key := g.pod(fmt.Sprintf("metadata: {name: p%d}\nspec:\n  terminationGracePeriodSeconds: 2%s", i, indented))
			s := g.await(key, fmt.Sprintf("%s, %s, %d restarts", c.phase, c.containers, c.restarts), func(s *corev1.PodStatus) bool {
				restarts := int32(0)
				for _, cs := range [][]corev1.ContainerStatus{s.ContainerStatuses, s.InitContainerStatuses} {
					if len(cs) > 0 {
						restarts = max(restarts, cs[0].RestartCount)
					}
				}
				return s.Phase == c.phase && strings.HasPrefix(briefAll(s), c.containers) && restarts >= c.restarts
			})
			checkCase(t, g, key.Name, &s, c.events, c.message)
			g.remove(key)
		})
	}
}

func checkCase(t *testing.T, g *rig, name string, s *corev1.PodStatus, events []string, message string) {
	t.Helper()
	if want := s.Phase == corev1.PodRunning && !strings.Contains(briefAll(s), "waiting"); want != ready(s) {
		t.Errorf("ready: %v, want %v: %s", ready(s), want, briefAll(s))
	}
	if s.PodIP == "" && s.Phase == corev1.PodRunning || s.HostIP != "10.88.0.1" || s.StartTime == nil || s.QOSClass == "" {
		t.Errorf("podIP %q hostIP %q startTime %v qosClass %q", s.PodIP, s.HostIP, s.StartTime, s.QOSClass)
	}
	g.mu.Lock()
	all := strings.Join(g.events, "\n")
	g.mu.Unlock()
	for _, e := range events {
		if !strings.Contains(all, name+" "+e) {
			t.Errorf("no event %q in\n%s", e, all)
		}
	}
	var said string
	for _, c := range append(s.InitContainerStatuses, s.ContainerStatuses...) {
		switch {
		case c.State.Waiting != nil:
			said += c.State.Waiting.Message
		case c.State.Terminated != nil:
			said += c.State.Terminated.Message
		}
	}
	if !strings.Contains(said, message) {
		t.Errorf("messages %q, want %q in them", said, message)
	}
}
