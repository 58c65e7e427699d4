// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"fairlead.dev/test/conformance"
	"fairlead.dev/test/e2e/controlplane"
	"fairlead.dev/test/internal/output"
)

// agentBound is the longest that a change may take to be in force on a loaded
// machine; typical are milliseconds, which TestEndpointFlips prints.
const agentBound = 3 * time.Second

// startBound is the longest that a start may take: half a second on an idle
// machine, ten under fifteen times the load that its CPUs can take.
const startBound = 30 * time.Second

// The agent is built once for all tests of a run.
var agentBinary = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", fmt.Sprintf("fairlead-e2e-%d-", os.Getpid()))
	if err != nil {
		return "", err
	}
	binariesDir = dir
	path := filepath.Join(dir, "fairlead")
	cmd := exec.Command("go", "build", "-o", path, "./cmd/fairlead")
	cmd.Dir = "../.."
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build cmd/fairlead: %w\n%s", err, out)
	}
	return path, nil
})

var binariesDir string

// bed is a node of the conformance lab whose agent follows a real API server,
// as the DaemonSet of manifests/install.yaml would run it.
type bed struct {
	*cluster
	t    *testing.T
	lab  *conformance.Lab
	host *conformance.Node
	// wire leads from the node's loopback to the API server.
	wire       *controlplane.Proxy
	dir        string
	kubeconfig string
	set        *installed
}

func newBed(t *testing.T) *bed {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: the agent is run in a network namespace and a cgroup")
	}
	if _, err := agentBinary(); err != nil {
		t.Fatal(err)
	}
	b := &bed{t: t, cluster: newCluster(t), lab: conformance.NewLab(t), dir: t.TempDir()}
	b.host = b.lab.Node(1)
	b.set = b.install(t)
	b.describeNode()
	err := inNetns(b.host.NetNSPath, func() (err error) {
		b.wire, err = controlplane.NewProxy(b.Addr)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.wire.Close)
	b.kubeconfig = filepath.Join(b.dir, "kubeconfig")
	if err := b.WriteKubeconfig(b.kubeconfig, b.wire.Addr(), b.set.token); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(b.dir, "config.yaml"), []byte(b.set.config), 0o644); err != nil {
		t.Fatal(err)
	}
	return b
}

// describeNode makes the Node object what the kubelet would.
func (b *bed) describeNode() {
	b.t.Helper()
	b.changeNode(func(n *corev1.Node) {
		n.Spec.PodCIDR, n.Spec.PodCIDRs = "10.244.1.0/24", []string{"10.244.1.0/24", "fd00:10:244:1::/64"}
	})
	n, err := b.cluster.client.CoreV1().Nodes().Get(b.t.Context(), b.node, metav1.GetOptions{})
	if err == nil {
		n.Status.Addresses = []corev1.NodeAddress{
			{Type: corev1.NodeInternalIP, Address: b.host.PrimaryIPv4.String()},
			{Type: corev1.NodeInternalIP, Address: b.host.PrimaryIPv6.String()},
		}
		_, err = b.cluster.client.CoreV1().Nodes().UpdateStatus(b.t.Context(), n, metav1.UpdateOptions{})
	}
	if err != nil {
		b.t.Fatal(err)
	}
}

func (b *bed) changeNode(change func(*corev1.Node)) {
	b.t.Helper()
	n, err := b.cluster.client.CoreV1().Nodes().Get(b.t.Context(), b.node, metav1.GetOptions{})
	if err == nil {
		change(n)
		_, err = b.cluster.client.CoreV1().Nodes().Update(b.t.Context(), n, metav1.UpdateOptions{})
	}
	if err != nil {
		b.t.Fatal(err)
	}
}

// container is what a container runtime does to the agent: mounts and a process
// namespace of its own, network namespaces of pods under /run/netns, and no
// more capabilities than it is given. All of it ends with the agent.
const container = `set -e
mount -t tmpfs fairlead /run
mkdir /run/netns
for pid in $PODS; do touch /run/netns/$pid; mount --bind /proc/$pid/ns/net /run/netns/$pid; done
exec unshare $PID_NAMESPACE setpriv --bounding-set="-all$CAPABILITIES" --inh-caps=-all --no-new-privs "$@"`

// agent is a running `fairlead run`.
type agent struct {
	b      *bed
	cmd    *exec.Cmd
	log    output.Buffer
	exited chan struct{}
}

// place is what the agent gets of a container runtime.
type place struct {
	capabilities []string
	// hostPID: it sees all processes, and no namespaces of pods in /run/netns.
	hostPID bool
	// args are further flags; they win.
	args []string
}

// start runs the agent in the place that the manifest describes.
func (b *bed) start() *agent {
	b.t.Helper()
	return b.startIn(place{capabilities: b.set.capabilities})
}

func (b *bed) startIn(p place) *agent {
	b.t.Helper()
	path, err := agentBinary()
	if err != nil {
		b.t.Fatal(err)
	}
	a := &agent{b: b}
	a.cmd = exec.Command("unshare", "--mount", "sh", "-c", container, "container", path, "run",
		"--config", filepath.Join(b.dir, "config.yaml"), "--kubeconfig", b.kubeconfig, "--node-name", b.node,
		"--bpffs", b.host.BPFFS, "--cgroup-root", b.host.CgroupRoot)
	a.cmd.Args = append(a.cmd.Args, p.args...)
	var pods []string
	processes := ""
	if !p.hostPID {
		processes = "--pid --fork --kill-child --mount-proc"
		for _, name := range []string{"client", "bypass", "a", "b", "c"} {
			pods = append(pods, strconv.Itoa(b.member(name).PID))
		}
	}
	added := ""
	for _, c := range p.capabilities {
		added += ",+" + strings.ToLower(c)
	}
	a.cmd.Env = append(os.Environ(), "PODS="+strings.Join(pods, " "), "CAPABILITIES="+added, "PID_NAMESPACE="+processes)
	a.cmd.Stdout, a.cmd.Stderr = &a.log, &a.log
	if a.exited, err = startIn(b.host.NetNSPath, b.member("host1").CgroupDir, a.cmd); err != nil {
		b.t.Fatalf("start the agent: %v", err)
	}
	b.t.Cleanup(func() {
		a.kill()
		if b.t.Failed() {
			b.t.Logf("the agent said:\n%s", a.log.String())
		}
	})
	return a
}

// kill is kill -9, and waits until the process is gone.
func (a *agent) kill() {
	_ = syscall.Kill(-a.cmd.Process.Pid, syscall.SIGKILL)
	<-a.exited
}

// ready waits for /healthz.
func (a *agent) ready() *agent {
	a.b.t.Helper()
	eventually(a.b.t, startBound, func() string {
		select {
		case <-a.exited:
			a.b.t.Fatalf("the agent ended: %v; it said:\n%s", a.cmd.ProcessState, a.log.String())
		default:
		}
		if code, body := a.b.get(healthz); code != http.StatusOK {
			return fmt.Sprintf("/healthz answers %d %s", code, body)
		}
		return ""
	})
	return a
}

// Addresses of the agent's servers, as the DaemonSet's configuration has them.
const (
	healthz = "http://127.0.0.1:10256/healthz"
	livez   = "http://127.0.0.1:10256/livez"
	metrics = "http://127.0.0.1:10249/metrics"
)

// get asks a server from the node. The code is 0 where there is none.
func (b *bed) get(url string) (code int, body string) {
	r, body := b.fetch(url)
	if r == nil {
		return 0, body
	}
	return r.StatusCode, body
}

func (b *bed) fetch(url string) (*http.Response, string) {
	c := http.Client{Timeout: 3 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, DialContext: dialer(b.host.NetNSPath)}}
	r, err := c.Get(url)
	if err != nil {
		return nil, err.Error()
	}
	defer r.Body.Close()
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err.Error()
	}
	return r, string(body)
}

// metric gives the value of a metric's first series.
func (b *bed) metric(name string) float64 {
	b.t.Helper()
	_, body := b.get(metrics)
	line := regexp.MustCompile(`(?m)^` + name + `(?:{.*})? (\S+)$`).FindStringSubmatch(body)
	if line == nil {
		b.t.Fatalf("no metric %q in:\n%.2000s", name, body)
	}
	v, err := strconv.ParseFloat(line[1], 64)
	if err != nil {
		b.t.Fatalf("%s: %v", name, err)
	}
	return v
}

// dump is `fairlead dump services -o json`.
func (b *bed) dump() string {
	b.t.Helper()
	path, err := agentBinary()
	if err != nil {
		b.t.Fatal(err)
	}
	out, err := exec.Command(path, "dump", "services", "-o", "json", "--bpffs", b.host.BPFFS).Output()
	if err != nil {
		b.t.Fatalf("dump: %v", err)
	}
	return string(out)
}

// expose creates a Service of a type with port 80, and gives it as the API
// server filled it in.
func (b *bed) expose(name string, change func(*corev1.Service)) *corev1.Service {
	b.t.Helper()
	s := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       corev1.ServiceSpec{Type: corev1.ServiceTypeNodePort, Ports: []corev1.ServicePort{{Name: "main", Port: 80, Protocol: corev1.ProtocolTCP}}},
	}
	if change != nil {
		change(s)
	}
	s, err := b.cluster.client.CoreV1().Services(b.namespace).Create(b.t.Context(), s, metav1.CreateOptions{})
	if err != nil {
		b.t.Fatal(err)
	}
	return s
}

// endpoints makes the Service's EndpointSlice name these pods of the lab, as the
// EndpointSlice controller would, and gives the time just before it was written.
func (b *bed) endpoints(s *corev1.Service, pods ...string) (begun int64) {
	b.t.Helper()
	e := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Name: s.Name, Labels: map[string]string{discoveryv1.LabelServiceName: s.Name},
			Annotations: map[string]string{corev1.EndpointsLastChangeTriggerTime: time.Now().Format(time.RFC3339Nano)}},
		AddressType: discoveryv1.AddressTypeIPv4,
	}
	for _, label := range []string{"service.kubernetes.io/service-proxy-name", corev1.IsHeadlessService} {
		if v, ok := s.Labels[label]; ok {
			e.Labels[label] = v
		}
	}
	for _, p := range s.Spec.Ports {
		e.Ports = append(e.Ports, discoveryv1.EndpointPort{Name: &p.Name, Protocol: &p.Protocol, Port: new(int32(8080))})
	}
	for _, pod := range pods {
		node := b.node
		if slices.Contains([]string{"d", "e"}, pod) {
			node = "another"
		}
		e.Endpoints = append(e.Endpoints, discoveryv1.Endpoint{Addresses: []string{b.member(pod).IPv4.String()}, NodeName: &node})
	}
	api := b.cluster.client.DiscoveryV1().EndpointSlices(b.namespace)
	begun = monotonic()
	_, err := api.Update(context.Background(), e, metav1.UpdateOptions{})
	if err != nil {
		begun = monotonic()
		_, err = api.Create(context.Background(), e, metav1.CreateOptions{})
	}
	if err != nil {
		b.t.Fatal(err)
	}
	return begun
}

func clusterIP(s *corev1.Service) string { return s.Spec.ClusterIP + ":80" }

func (b *bed) nodePort(s *corev1.Service) string {
	return fmt.Sprintf("%s:%d", b.host.PrimaryIPv4, s.Spec.Ports[0].NodePort)
}
