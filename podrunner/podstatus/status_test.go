// SPDX-License-Identifier: Apache-2.0

package podstatus

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
)

var t0 = time.Unix(1_700_000_000, 0)

func twoContainers() *corev1.Pod {
	return &corev1.Pod{Spec: corev1.PodSpec{
		RestartPolicy: corev1.RestartPolicyAlways,
		Containers:    []corev1.Container{{Name: "a", Image: "x"}, {Name: "b", Image: "x"}},
	}}
}

func sandbox() []Sandbox {
	return []Sandbox{{ID: "s", Ready: true, Created: t0, IPs: []netip.Addr{netip.MustParseAddr("fd00::5"), netip.MustParseAddr("10.0.0.5")}}}
}

func is(name string, state ContainerState, code int32, at int) Container {
	c := Container{
		ID: name + string(rune('0'+at)), SandboxID: "s", Name: name, State: state, ExitCode: code, RestartCount: at,
		Created: t0.Add(time.Duration(at) * time.Minute), Started: t0, Finished: t0.Add(time.Second), Image: "x", ImageRef: "sha256:1", Reason: "Completed",
	}
	if code != 0 {
		c.Reason = "Error"
	}
	return c
}

func input(p *corev1.Pod, o Observed) *Input {
	return &Input{
		Pod: p, Observed: &o, Runtime: "containerd", Now: t0.Add(time.Hour), HostIPs: []netip.Addr{netip.MustParseAddr("192.0.2.1")},
		Probed: func(*corev1.Container, string) Probed { return Probed{Started: true, Ready: true} },
	}
}

type want struct {
	phase                       corev1.PodPhase
	sandbox, initialized, ready corev1.ConditionStatus
	readyReason, readyMessage   string
	initializedMessage          string
}

func TestThePhaseAndConditionsAreTheKubelets(t *testing.T) {
	const yes, no = corev1.ConditionTrue, corev1.ConditionFalse
	never := func(p *corev1.Pod) *corev1.Pod { p.Spec.RestartPolicy = corev1.RestartPolicyNever; return p }
	withInit := func(p *corev1.Pod, sidecar bool) *corev1.Pod {
		c := corev1.Container{Name: "i", Image: "x"}
		if sidecar {
			c.RestartPolicy = ptr.To(corev1.ContainerRestartPolicyAlways)
		}
		p.Spec.InitContainers = []corev1.Container{c}
		return p
	}
	both := []Container{is("a", Running, 0, 0), is("b", Running, 0, 0)}
	for name, c := range map[string]struct {
		in   *Input
		with func(*Input)
		want want
	}{
		"nothing yet": {in: input(twoContainers(), Observed{}),
			want: want{corev1.PodPending, no, yes, no, "ContainersNotReady", "containers with unready status: [a b]", ""}},
		"one of two runs": {in: input(twoContainers(), Observed{sandbox(), both[:1]}),
			want: want{corev1.PodPending, yes, yes, no, "ContainersNotReady", "containers with unready status: [b]", ""}},
		"both run": {in: input(twoContainers(), Observed{sandbox(), both}), want: want{corev1.PodRunning, yes, yes, yes, "", "", ""}},
		"not ready": {in: input(twoContainers(), Observed{sandbox(), both}),
			with: func(in *Input) {
				in.Probed = func(c *corev1.Container, id string) Probed { return Probed{true, c.Name == "a"} }
			},
			want: want{corev1.PodRunning, yes, yes, no, "ContainersNotReady", "containers with unready status: [b]", ""}},
		"a gate that nobody set": {in: input(twoContainers(), Observed{sandbox(), both}),
			with: func(in *Input) { in.Pod.Spec.ReadinessGates = []corev1.PodReadinessGate{{ConditionType: "x/y"}} },
			want: want{corev1.PodRunning, yes, yes, no, "ReadinessGatesNotReady", `corresponding condition of pod readiness gate "x/y" does not exist.`, ""}},
		"a gate that is closed": {in: input(twoContainers(), Observed{sandbox(), both}),
			with: func(in *Input) {
				in.Pod.Spec.ReadinessGates = []corev1.PodReadinessGate{{ConditionType: "x/y"}}
				in.Pod.Status.Conditions = []corev1.PodCondition{{Type: "x/y", Status: no}}
			},
			want: want{corev1.PodRunning, yes, yes, no, "ReadinessGatesNotReady", `the status of pod readiness gate "x/y" is not "True", but False`, ""}},
		"one is being restarted": {in: input(twoContainers(), Observed{sandbox(), []Container{both[0], is("b", Exited, 1, 0)}}),
			want: want{corev1.PodRunning, yes, yes, no, "ContainersNotReady", "containers with unready status: [b]", ""}},
		"both wait to be restarted": {in: input(twoContainers(), Observed{sandbox(), []Container{is("a", Exited, 0, 0), is("b", Exited, 1, 0)}}),
			want: want{corev1.PodRunning, yes, yes, no, "ContainersNotReady", "containers with unready status: [a b]", ""}},
		"both are done": {in: input(never(twoContainers()), Observed{sandbox(), []Container{is("a", Exited, 0, 0), is("b", Exited, 0, 0)}}),
			want: want{corev1.PodSucceeded, yes, yes, no, "PodCompleted", "", ""}},
		"one failed": {in: input(never(twoContainers()), Observed{sandbox(), []Container{is("a", Exited, 0, 0), is("b", Exited, 9, 0)}}),
			want: want{corev1.PodFailed, yes, yes, no, "PodFailed", "", ""}},
		"stopped for its deletion": {in: input(twoContainers(), Observed{nil, []Container{is("a", Exited, 0, 0), is("b", Exited, 0, 0)}}),
			with: func(in *Input) { in.Terminal = true },
			want: want{corev1.PodSucceeded, no, yes, no, "PodCompleted", "", ""}},
		"evicted, and running still": {in: input(twoContainers(), Observed{sandbox(), both}),
			with: func(in *Input) { in.Failed = &Failure{"Evicted", "too much"} },
			want: want{corev1.PodRunning, yes, yes, no, "PodFailed", "", ""}},
		"evicted": {in: input(twoContainers(), Observed{sandbox(), []Container{is("a", Exited, 143, 0), is("b", Exited, 143, 0)}}),
			with: func(in *Input) { in.Failed = &Failure{"Evicted", "too much"} },
			want: want{corev1.PodFailed, yes, yes, no, "PodFailed", "", ""}},
		"the API says that it failed": {in: input(twoContainers(), Observed{sandbox(), both}),
			with: func(in *Input) { in.Pod.Status.Phase = corev1.PodFailed },
			want: want{corev1.PodFailed, yes, yes, no, "PodFailed", "", ""}},
		"an init container runs": {in: input(withInit(twoContainers(), false), Observed{sandbox(), []Container{is("i", Running, 0, 0)}}),
			want: want{corev1.PodPending, yes, no, no, "ContainersNotReady", "containers with unready status: [a b]", "containers with incomplete status: [i]"}},
		"an init container failed": {in: input(never(withInit(twoContainers(), false)), Observed{sandbox(), []Container{is("i", Exited, 2, 0)}}),
			want: want{corev1.PodFailed, yes, no, no, "PodFailed", "", "containers with incomplete status: [i]"}},
		"a sidecar and both run": {in: input(withInit(twoContainers(), true), Observed{sandbox(), append(slices.Clone(both), is("i", Running, 0, 0))}),
			want: want{corev1.PodRunning, yes, yes, yes, "", "", ""}},
		"a sidecar that has not started": {in: input(withInit(twoContainers(), true), Observed{sandbox(), []Container{is("i", Running, 0, 0)}}),
			with: func(in *Input) { in.Probed = func(*corev1.Container, string) Probed { return Probed{} } },
			want: want{corev1.PodPending, yes, no, no, "ContainersNotReady", "containers with unready status: [i a b]", "containers with incomplete status: [i]"}},
		"an init container that was removed": {in: input(withInit(twoContainers(), false), Observed{sandbox(), both}), want: want{corev1.PodRunning, yes, yes, yes, "", "", ""}},
		"no address":                         {in: input(twoContainers(), Observed{[]Sandbox{{ID: "s", Ready: true}}, nil}), want: want{corev1.PodPending, no, yes, no, "ContainersNotReady", "containers with unready status: [a b]", ""}},
	} {
		t.Run(name, func(t *testing.T) {
			if c.with != nil {
				c.with(c.in)
			}
			s := Make(c.in)
			got := want{phase: s.Phase}
			for _, cond := range s.Conditions {
				switch cond.Type {
				case corev1.PodReadyToStartContainers:
					got.sandbox = cond.Status
				case corev1.PodInitialized:
					got.initialized, got.initializedMessage = cond.Status, cond.Message
				case corev1.PodReady:
					got.ready, got.readyReason, got.readyMessage = cond.Status, cond.Reason, cond.Message
				}
			}
			if d := cmp.Diff(c.want, got, cmp.AllowUnexported(want{})); d != "" {
				t.Errorf("want - got +:\n%s", d)
			}
		})
	}
}

func TestAContainersStatusTellsWhatIsAndWhatWas(t *testing.T) {
	p := twoContainers()
	in := input(p, Observed{sandbox(), []Container{is("a", Exited, 137, 2), is("a", Exited, 1, 1), is("a", Exited, 3, 0)}})
	in.Observed.Containers[0].Reason, in.Observed.Containers[0].Message = "OOMKilled", "last words"
	s := Make(in).ContainerStatuses[0]
	if s.State.Terminated == nil || s.State.Terminated.Reason != "OOMKilled" || s.State.Terminated.Message != "last words" ||
		s.LastTerminationState.Terminated.ExitCode != 1 || s.RestartCount != 2 || s.ContainerID != "containerd://a2" || s.ImageID != "sha256:1" {
		t.Errorf("%+v", s)
	}
	in.Waiting = map[string]Waiting{"a": {"CrashLoopBackOff", "back-off"}}
	s = Make(in).ContainerStatuses[0]
	if s.State.Waiting == nil || s.State.Waiting.Reason != "CrashLoopBackOff" || s.LastTerminationState.Terminated.ExitCode != 137 {
		t.Errorf("in its backoff: %+v", s)
	}
	p.Spec.RestartPolicy = corev1.RestartPolicyNever
	if s = Make(in).ContainerStatuses[0]; s.State.Terminated == nil {
		t.Errorf("it waits for what will not be: %+v", s)
	}
}

func TestAContainerThatTheRuntimeForgotIsNotForgotten(t *testing.T) {
	in := input(twoContainers(), Observed{sandbox(), []Container{is("b", Running, 0, 0)}})
	in.Previous = Make(input(twoContainers(), Observed{sandbox(), []Container{is("a", Running, 0, 0), is("b", Running, 0, 0)}}))
	s := Make(in)
	a := s.ContainerStatuses[0]
	if a.State.Waiting == nil || a.LastTerminationState.Terminated == nil || a.LastTerminationState.Terminated.Reason != "ContainerStatusUnknown" ||
		a.LastTerminationState.Terminated.ExitCode != 137 || a.RestartCount != 1 || s.Phase != corev1.PodRunning {
		t.Errorf("phase %s, %+v", s.Phase, a)
	}
	in.Previous = s
	if again := Make(in); again.ContainerStatuses[0].RestartCount != 1 {
		t.Errorf("it counts the same loss twice: %d", again.ContainerStatuses[0].RestartCount)
	}
}

func TestAStatusThatDidNotChangeKeepsItsTimes(t *testing.T) {
	in := input(twoContainers(), Observed{sandbox(), []Container{is("a", Running, 0, 0), is("b", Running, 0, 0)}})
	first := Make(in)
	if first.StartTime.Unix() != t0.Unix() {
		t.Errorf("startTime %v, want the sandbox's", first.StartTime)
	}
	in.Previous, in.Now = first, in.Now.Add(time.Hour)
	if d := cmp.Diff(first, Make(in)); d != "" {
		t.Errorf("- first + second:\n%s", d)
	}
	in.Probed = func(*corev1.Container, string) Probed { return Probed{Started: true} }
	for _, c := range Make(in).Conditions {
		changed := c.Type == corev1.PodReady || c.Type == corev1.ContainersReady
		if got := c.LastTransitionTime.Time.Equal(in.Now); got != changed {
			t.Errorf("%s: transition time moved %v, want %v", c.Type, got, changed)
		}
	}
}

func TestAddressesComeInTheNodesOrder(t *testing.T) {
	in := input(twoContainers(), Observed{Sandboxes: sandbox()})
	if s := Make(in); s.PodIP != "10.0.0.5" || len(s.PodIPs) != 2 || s.PodIPs[1].IP != "fd00::5" || s.HostIP != "192.0.2.1" {
		t.Errorf("%+v", s.PodIPs)
	}
	in.HostIPs = []netip.Addr{netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("192.0.2.1")}
	if s := Make(in); s.PodIP != "fd00::5" || len(s.HostIPs) != 2 {
		t.Errorf("on an IPv6 node: %+v", s.PodIPs)
	}
	in.Pod.Spec.HostNetwork, in.Observed.Sandboxes[0].HostNetwork = true, true
	if s := Make(in); s.PodIP != "2001:db8::1" || s.PodIPs[1].IP != "192.0.2.1" {
		t.Errorf("on the host's network: %+v", s.PodIPs)
	}
}

func TestResourcesAreWhatTheCgroupHas(t *testing.T) {
	p := twoContainers()
	list := func(cpu, memory string) corev1.ResourceList {
		return corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(cpu), corev1.ResourceMemory: resource.MustParse(memory)}
	}
	p.Spec.Containers[0].Resources = corev1.ResourceRequirements{Requests: list("200m", "64Mi"), Limits: list("1", "128Mi")}
	a := is("a", Running, 0, 0)
	a.Actual = &Resources{CPUShares: 102, CPUQuota: 50000, CPUPeriod: 100000, MemoryBytes: 64 << 20}
	s := Make(input(p, Observed{sandbox(), []Container{a}})).ContainerStatuses[0]
	want := corev1.ResourceRequirements{Requests: list("100m", "64Mi"), Limits: list("500m", "64Mi")}
	if !sameList(s.Resources.Limits, want.Limits) || !sameList(s.Resources.Requests, want.Requests) || !sameList(s.AllocatedResources, list("200m", "64Mi")) {
		t.Errorf("resources %v, allocated %v, want %v", s.Resources, s.AllocatedResources, want)
	}
	a.Actual = &Resources{CPUShares: 204, CPUQuota: 100000, CPUPeriod: 100000, MemoryBytes: 128 << 20}
	s = Make(input(p, Observed{sandbox(), []Container{a}})).ContainerStatuses[0]
	if !sameList(s.Resources.Limits, list("1", "128Mi")) || !sameList(s.Resources.Requests, list("200m", "64Mi")) {
		t.Errorf("as in the spec: %v", s.Resources)
	}
}

func sameList(a, b corev1.ResourceList) bool {
	if len(a) != len(b) {
		return false
	}
	for name, q := range a {
		if o := b[name]; q.Cmp(o) != 0 {
			return false
		}
	}
	return true
}

func TestConditionsOfOthersAreKept(t *testing.T) {
	in := input(twoContainers(), Observed{})
	at := metav1.NewTime(t0)
	in.Pod.Status.Conditions = []corev1.PodCondition{
		{Type: "example.com/x", Status: corev1.ConditionTrue, LastTransitionTime: at},
		{Type: corev1.PodReady, Status: corev1.ConditionTrue},
	}
	s := Make(in)
	n := 0
	for _, c := range s.Conditions {
		if c.Type == "example.com/x" && c.LastTransitionTime.Equal(&at) {
			n++
		}
		if c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue {
			t.Error("it believes another's word about its own condition")
		}
	}
	if n != 1 {
		t.Errorf("%d times the condition of another: %+v", n, s.Conditions)
	}
}

func TestRulesAndPoliciesSayWhatRestarts(t *testing.T) {
	in := func(op corev1.ContainerRestartRuleOnExitCodesOperator, values ...int32) []corev1.ContainerRestartRule {
		return []corev1.ContainerRestartRule{{Action: corev1.ContainerRestartRuleActionRestart, ExitCodes: &corev1.ContainerRestartRuleOnExitCodes{Operator: op, Values: values}}}
	}
	policy := func(p corev1.ContainerRestartPolicy) *corev1.ContainerRestartPolicy { return &p }
	for _, c := range []struct {
		pod  corev1.RestartPolicy
		own  *corev1.ContainerRestartPolicy
		rule []corev1.ContainerRestartRule
		init bool
		code int32
		want bool
	}{
		{pod: "Always", want: true}, {pod: "Always", code: 1, want: true}, {pod: "Always", init: true, want: false}, {pod: "Always", init: true, code: 1, want: true},
		{pod: "OnFailure", want: false}, {pod: "OnFailure", code: 1, want: true}, {pod: "Never", code: 1, want: false},
		{pod: "Never", own: policy("Always"), want: true}, {pod: "Always", own: policy("Never"), code: 1, want: false}, {pod: "Never", own: policy("OnFailure"), code: 1, want: true},
		{pod: "Never", own: policy("Never"), rule: in("In", 42, 43), code: 42, want: true}, {pod: "Never", own: policy("Never"), rule: in("In", 42), code: 1, want: false},
		{pod: "Never", own: policy("Never"), rule: in("NotIn", 42), code: 1, want: true}, {pod: "Never", own: policy("Never"), rule: in("NotIn", 42), code: 42, want: false},
	} {
		p := &corev1.Pod{Spec: corev1.PodSpec{RestartPolicy: c.pod}}
		if got := ShouldRestart(p, &corev1.Container{RestartPolicy: c.own, RestartPolicyRules: c.rule}, c.init, c.code); got != c.want {
			t.Errorf("%+v: %v", c, got)
		}
	}
}
