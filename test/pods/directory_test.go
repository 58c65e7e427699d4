// SPDX-License-Identifier: Apache-2.0

package pods

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
)

const serviceURL = "http://10.96.0.80/"

// TestTheExampleRunsFromADirectory walks through the life of examples/web, one
// step after the other on one node.
func TestTheExampleRunsFromADirectory(t *testing.T) {
	n := newNode(t)
	example(n)
	n.start()
	for _, s := range []struct {
		name string
		f    func(*node)
	}{
		{"both Pods become ready", func(n *node) { n.await("both Pods are ready", bothReady) }},
		{"the Service answers from both", func(n *node) { n.answers("hello", "web-0", "web-1") }},
		{"an edit of the ConfigMap reaches the answers", editTheConfigMap},
		{"pods, logs and exec see them", lookAtThem},
		{"a process that is killed is replaced, and the other Pod answers meanwhile", killOneProcess},
		{"an agent and a runtime that are killed disturb nothing, and the next ones go on", killBoth},
		{"limits are changed without a restart", resize},
		{"a stop disturbs nothing", stopAndStart},
		{"a file that is removed ends its Pod and all of it", removeOnePod},
		{"a stop with --drain-on-stop ends the Pods, and a start begins them again", drain},
		{"the last files are removed", removeTheRest},
	} {
		if !t.Run(s.name, func(t *testing.T) {
			c := n.as(t)
			defer func() { n.agent, n.ended = c.agent, c.ended }()
			s.f(c)
		}) {
			t.FailNow()
		}
	}
}

func bothReady(pods map[string]*corev1.Pod) bool { return ready(pods["web-0"]) && ready(pods["web-1"]) }

// answers waits until each of the Pods, and no other, answers at the Service's
// address with the message.
func (n *node) answers(message string, pods ...string) {
	n.Helper()
	n.until("the Service answers from "+strings.Join(pods, " and ")+" with "+message, func() bool {
		seen := map[string]bool{}
		for range 12 * len(pods) {
			answer, err := ask(serviceURL, 5*time.Second)
			if err != nil {
				n.Fatalf("ask the Service: %v", err)
			}
			who, _, _ := strings.Cut(answer, " ")
			if !strings.HasSuffix(answer, "and says "+message) {
				return false
			}
			seen[who] = true
		}
		for _, p := range pods {
			if !seen[p] {
				return false
			}
		}
		return len(seen) == len(pods)
	})
}

func editTheConfigMap(n *node) {
	before := ids(n.pods())
	n.edit("web.yaml", "message: hello", "message: salut")
	n.answers("salut", "web-0", "web-1")
	n.same(before)
}

// ids are the containers of Pods, with how often they were restarted.
func ids(pods map[string]*corev1.Pod) map[string]any {
	out := map[string]any{}
	for name, p := range pods {
		for _, c := range p.Status.ContainerStatuses {
			out[name+" "+c.Name] = []any{c.ContainerID, c.RestartCount, processOf(name)}
		}
	}
	return out
}

// same requires that the containers are those of before.
func (n *node) same(before map[string]any) {
	n.Helper()
	if diff := cmp.Diff(before, ids(n.pods())); diff != "" {
		n.Errorf("containers (ID, restarts, process) are others than before:\n%s", diff)
	}
}

func lookAtThem(n *node) {
	out, errOut, status := n.fairlead("pods", "--state-dir", n.rt.Root)
	if lines := strings.Split(strings.TrimSpace(out), "\n"); status != 0 || len(lines) != 3 || !strings.Contains(lines[1], "web-0") ||
		!strings.Contains(lines[1], "1/1") || !strings.Contains(lines[1], "Running") {
		n.Errorf("fairlead pods: status %d, %s, %s", status, out, errOut)
	}
	if out, errOut, status = n.fairlead("logs", "web-0", "--cri-socket", n.rt.Socket); status != 0 || out != "web-0 listens on :8080\n" {
		n.Errorf("fairlead logs web-0: status %d, %q, %s", status, out, errOut)
	}
	out, errOut, status = n.fairlead("pods", "--events", "--state-dir", n.rt.Root)
	for _, want := range []string{"Created", "Started", "default/web-0(web)", "default/web-1(web)"} {
		if status != 0 || !strings.Contains(out, want) {
			n.Errorf("fairlead pods --events: status %d, no %q in:\n%s%s", status, want, out, errOut)
		}
	}
	// From inside one Pod through the Service: to itself too.
	seen := map[string]bool{}
	for range 20 {
		out, errOut, status = n.fairlead("exec", "web-0", "--cri-socket", n.rt.Socket, "--", "/responder", "-get", serviceURL)
		if who, _, ok := strings.Cut(out, " "); status == 0 && ok {
			seen[who] = true
		} else {
			n.Errorf("fairlead exec web-0: status %d, %q, %s", status, out, errOut)
			break
		}
	}
	if !seen["web-0"] || !seen["web-1"] {
		n.Errorf("a Pod that asks the Service got answers of %v, want both", seen)
	}
	if _, _, status = n.fairlead("exec", "web-0", "--cri-socket", n.rt.Socket, "--", "/responder", "-none"); status != 2 {
		n.Errorf("fairlead exec ended with status %d, want that of the command, 2", status)
	}
	if _, errOut, status = n.fairlead("logs", "web-2", "--cri-socket", n.rt.Socket); status != 1 || !strings.Contains(errOut, "web-2") {
		n.Errorf("fairlead logs of a Pod that is not there: status %d, %s", status, errOut)
	}
}

// noticed is how long the end of a process may stay unnoticed: requests that go
// to it are refused, and nobody could know.
const noticed = 2 * time.Second

func killOneProcess(n *node) {
	l := startLoad(serviceURL)
	killed := time.Now()
	if err := syscall.Kill(processOf("web-0"), syscall.SIGKILL); err != nil {
		n.Fatal(err)
	}
	n.await("web-0 was restarted and is ready", func(pods map[string]*corev1.Pod) bool {
		return bothReady(pods) && pods["web-0"].Status.ContainerStatuses[0].RestartCount == 1
	})
	n.answers("salut", "web-0", "web-1")
	answers, failed := l.end()
	gap := time.Duration(0)
	for _, f := range failed {
		gap = max(gap, f.at.Sub(killed))
		// Refused, or cut where the process had it already.
		if !errors.Is(f.err, syscall.ECONNREFUSED) && !errors.Is(f.err, syscall.ECONNRESET) && !errors.Is(f.err, io.EOF) {
			n.Errorf("a request %v after the end of the process: %v", f.at.Sub(killed), f.err)
		}
	}
	n.Logf("answers %v; %d requests were refused, the last one %v after the process was killed", answers, len(failed), gap)
	if gap > noticed {
		n.Errorf("requests were refused up to %v after the process was killed, want that it is noticed within %v", gap, noticed)
	}
	out, errOut, status := n.fairlead("logs", "web-0", "--previous", "--cri-socket", n.rt.Socket)
	if status != 0 || out != "web-0 listens on :8080\n" {
		n.Errorf("fairlead logs --previous: status %d, %q, %s", status, out, errOut)
	}
}

func killBoth(n *node) {
	before := ids(n.pods())
	l := startLoad(serviceURL)
	n.kill()
	n.rt.Kill()                        // the runtime comes back after the agent
	time.Sleep(300 * time.Millisecond) // nobody is there for a while
	said := len(n.log(1 << 30))
	n.start()
	n.until("the agent misses the runtime", func() bool { return strings.Contains(n.log(1 << 30)[said:], "no container runtime yet") })
	if err := n.rt.Launch(); err != nil {
		n.Fatal(err)
	}
	n.await("both Pods are ready", bothReady)
	n.edit("web.yaml", "message: salut", "message: hello")
	n.answers("hello", "web-0", "web-1")
	n.noneFailed(l)
	n.same(before)
}

// noneFailed ends the load.
func (n *node) noneFailed(l *load) {
	n.Helper()
	answers, failed := l.end()
	n.Logf("answers: %v", answers)
	for i, f := range failed {
		if i == 10 {
			n.Errorf("and %d more", len(failed)-i)
			break
		}
		n.Errorf("a request failed at %s: %v", f.at.Format(time.StampMilli), f.err)
	}
}

func resize(n *node) {
	before := ids(n.pods())
	pid := processOf("web-0")
	if cpu, memory := n.limits(pid); cpu != "20000 100000" || memory != "67108864" {
		n.Errorf("limits of web-0 are %q and %q, want 200m of a CPU and 64 Mi", cpu, memory)
	}
	n.edit("web-0.yaml", "cpu: 200m", "cpu: 300m")
	n.edit("web-0.yaml", "memory: 64Mi", "memory: 96Mi")
	n.until("the limits of web-0 are the new ones", func() bool {
		cpu, memory := n.limits(pid)
		return cpu == "30000 100000" && memory == "100663296"
	})
	n.await("the status says so", func(pods map[string]*corev1.Pod) bool {
		r := pods["web-0"].Status.ContainerStatuses[0].Resources
		return r != nil && r.Limits.Cpu().MilliValue() == 300 && r.Limits.Memory().Value() == 96<<20
	})
	n.same(before)
	if cpu, memory := n.limits(processOf("web-1")); cpu != "20000 100000" || memory != "67108864" {
		n.Errorf("limits of web-1 became %q and %q", cpu, memory)
	}
}

func stopAndStart(n *node) {
	before := ids(n.pods())
	l := startLoad(serviceURL)
	n.stop()
	n.start()
	n.await("both Pods are ready", bothReady)
	n.noneFailed(l)
	n.same(before)
	if cpu, memory := n.limits(processOf("web-0")); cpu != "30000 100000" || memory != "100663296" {
		n.Errorf("limits of web-0 are %q and %q after a restart of the agent", cpu, memory)
	}
}

func removeOnePod(n *node) {
	pods := n.pods()
	uid, other := string(pods["web-0"].UID), string(pods["web-1"].UID)
	l := startLoad(serviceURL)
	if err := os.Remove(filepath.Join(n.manifests, "web-0.yaml")); err != nil {
		n.Fatal(err)
	}
	n.await("web-0 is gone", func(pods map[string]*corev1.Pod) bool { return len(pods) == 1 && pods["web-1"] != nil })
	n.answers("hello", "web-1")
	n.noneFailed(l)
	n.until("nothing is left of web-0", func() bool { return len(n.remains(uid)) == 1 }) // the link of web-1
	if left := n.remains(other); len(left) < 3 {
		n.Errorf("of web-1, which runs, the test sees only %v", left)
	}
}

func drain(n *node) {
	n.stop()
	n.flags = append(n.flags, "--drain-on-stop")
	n.start()
	n.await("web-1 is ready", func(pods map[string]*corev1.Pod) bool { return ready(pods["web-1"]) })
	n.stop()
	if pid := processOf("web-1"); pid != 0 {
		n.Errorf("process %d of web-1 still runs", pid)
	}
	example(n)
	n.start()
	n.await("both Pods run again", bothReady)
	n.answers("hello", "web-0", "web-1")
}

func removeTheRest(n *node) {
	pods := n.pods()
	for _, name := range []string{"web-0.yaml", "web-1.yaml", "web.yaml"} {
		if err := os.Remove(filepath.Join(n.manifests, name)); err != nil {
			n.Fatal(err)
		}
	}
	n.await("there are no Pods", func(pods map[string]*corev1.Pod) bool { return pods != nil && len(pods) == 0 })
	for name, p := range pods {
		n.until("nothing is left of "+name, func() bool { return len(n.remains(string(p.UID))) == 0 })
	}
	n.stop()
}
