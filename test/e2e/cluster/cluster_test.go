// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"fairlead.dev/test/e2e/controlplane"
)

// patience bounds what a cluster does in seconds on a quiet machine: the
// machines of tests are slow and shared.
const patience = 2 * time.Minute

// nodeCount is how many nodes the cluster has.
const nodeCount = 2

// cluster is the whole of it.
type cluster struct {
	*controlplane.ControlPlane
	client kubernetes.Interface
	nodes  []*node
	// agents are two builds of fairlead that differ in their version.
	agents [2]string
	token  string // of the agents' ServiceAccount
	// The clients: in a Pod of each node, on each node, and outside.
	pods, hosts []*client
	outside     *client

	mu        sync.Mutex
	processes []*process // that end with the cluster
}

var (
	shared      *cluster
	brokenWhy   error
	sharedTests atomic.Int64
)

// newCase gives a test its place in the cluster that all share: a namespace of
// its own. The first test starts the cluster.
func newCase(t *testing.T) *testCase {
	t.Helper()
	if os.Getuid() != 0 || os.Getenv("FAIRLEAD_CONTAINERDTEST") != "tests" {
		t.Skip("SKIPPED: needs root, containerd, runc and the CNI plugins, for nodes that run Pods")
	}
	if brokenWhy != nil {
		t.Fatalf("there is no cluster: %v", brokenWhy)
	}
	if shared == nil {
		c := &cluster{}
		begun := time.Now()
		if err := c.start(context.Background()); err != nil {
			brokenWhy = err
			c.keepLogs()
			t.Errorf("start the cluster: %v", err)
			c.tell(t)
			c.close()
			t.FailNow()
		}
		shared = c
		t.Logf("the cluster was ready after %v", time.Since(begun).Round(time.Millisecond))
	}
	k := &testCase{T: t, cluster: shared, namespace: fmt.Sprintf("case-%d", sharedTests.Add(1))}
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: k.namespace}}
	if _, err := k.client.CoreV1().Namespaces().Create(t.Context(), ns, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	k.eventually(func() error { // the controllers make it, and no Pod is admitted before
		_, err := k.client.CoreV1().ServiceAccounts(k.namespace).Get(t.Context(), "default", metav1.GetOptions{})
		return err
	})
	t.Cleanup(func() {
		if t.Failed() {
			k.explain()
		}
		now := metav1.DeleteOptions{GracePeriodSeconds: new(int64(0))}
		_ = k.client.CoreV1().Pods(k.namespace).DeleteCollection(context.Background(), now, metav1.ListOptions{})
		if err := k.client.CoreV1().Namespaces().Delete(context.Background(), k.namespace, metav1.DeleteOptions{}); err != nil {
			t.Errorf("clean up: %v", err)
		}
	})
	return k
}

func (c *cluster) start(ctx context.Context) (err error) {
	built := make(chan error, 1)
	go func() { built <- c.build() }()
	if err := makeUnderlay(); err != nil {
		return err
	}
	for i := range nodeCount {
		n, err := c.newNode(i + 1)
		if err != nil {
			return err
		}
		c.nodes = append(c.nodes, n)
		if err := n.startContainerd(); err != nil {
			return err
		}
	}
	c.ControlPlane, err = controlplane.New(ctx, controlplane.Options{Address: underlayIPv4.String(), Controllers: true})
	if err != nil {
		return err
	}
	if c.client, err = c.Client(); err != nil {
		return err
	}
	if err := c.grant(ctx); err != nil {
		return err
	}
	if err := <-built; err != nil {
		return err
	}
	for _, n := range c.nodes {
		if err := n.importImage(filepath.Join(scratch, "image.tar")); err != nil {
			return err
		}
		if err := n.writeCredentials(); err != nil {
			return err
		}
		if err := n.startAgent(0); err != nil {
			return err
		}
	}
	if err := c.waitForNodes(ctx); err != nil {
		return err
	}
	return c.startClients(ctx)
}

// build compiles what runs in the cluster.
func (c *cluster) build() error {
	for i, version := range []string{"cluster-a", "cluster-b"} {
		c.agents[i] = filepath.Join(scratch, "fairlead-"+version)
		if err := goBuild("../../..", c.agents[i], "./cmd/fairlead", "-X main.version="+version); err != nil {
			return err
		}
	}
	workload := filepath.Join(scratch, "workload")
	if err := goBuild("..", workload, "./cluster/workload", "-s -w"); err != nil {
		return err
	}
	return writeImage(filepath.Join(scratch, "image.tar"), workload)
}

func goBuild(dir, out, pkg, ldflags string) error {
	cmd := exec.Command("go", "build", "-ldflags", ldflags, "-o", out, pkg)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off")
	if b, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w\n%s", pkg, err, b)
	}
	return nil
}

// startAgent starts a build of fairlead on the node.
func (n *node) startAgent(build int) error {
	kubeconfig, cert := filepath.Join(n.dir, "kubeconfig"), filepath.Join(n.dir, "kubelet")
	dataplane := os.Getenv("FAIRLEAD_CLUSTER_DATAPLANE")
	if dataplane == "" {
		dataplane = "ebpf"
	}
	var err error
	n.agent, err = n.start("fairlead on "+n.name, n.logPath("fairlead"), n.c.agents[build], "run",
		"--kubeconfig", kubeconfig, "--node-name", n.name, "--dataplane", dataplane,
		"--pods", "cri", "--pod-network", "host-gw", "--cri-socket", criSocket,
		"--eviction-hard", "memory.available<1Mi", "--image-gc-high-threshold", "100", // however full this machine's disk is
		"--cgroup-root", n.cgroup, "--pod-cgroup-root", n.podRoot,
		"--client-ca-file", n.c.CAFile(), "--tls-cert-file", cert+".crt", "--tls-private-key-file", cert+".key",
		"--node-labels", corev1.LabelTopologyZone+"="+n.zone+",fairlead.dev/agent=host",
		"--cluster-dns", clusterDNS, "--cluster-domain", "cluster.local", "--service-cidr", controlplane.ServiceCIDRs, "--cluster-cidr", controlplane.PodCIDRs,
	)
	return err
}

// waitForNodes waits until the nodes are Ready, and learns the way to their Pods.
func (c *cluster) waitForNodes(ctx context.Context) error {
	for _, n := range c.nodes {
		err := within(patience, func() error {
			got, err := n.registered(ctx)
			if err != nil {
				return err
			}
			if !nodeReady(got) {
				return fmt.Errorf("%s is not Ready: %+v", n.name, got.Status.Conditions)
			}
			for _, cidr := range got.Spec.PodCIDRs {
				if err := route(cidr, n); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return errors.Join(route(externalIPv4, c.nodes[0]), route(externalIPv6, c.nodes[0]))
}

// registered is the Node, once it has ranges for its Pods.
func (n *node) registered(ctx context.Context) (*corev1.Node, error) {
	if err := errors.Join(n.agent.alive(), n.containerd.alive()); err != nil {
		return nil, giveUp{err}
	}
	got, err := n.c.client.CoreV1().Nodes().Get(ctx, n.name, metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	if len(got.Spec.PodCIDRs) != 2 {
		return nil, fmt.Errorf("%s has the ranges of Pods %v, want two", n.name, got.Spec.PodCIDRs)
	}
	return got, nil
}

func nodeReady(n *corev1.Node) bool {
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// giveUp is an error that will not go away.
type giveUp struct{ error }

// within tries until f has no error.
func within(limit time.Duration, f func() error) error {
	deadline := time.Now().Add(limit)
	for {
		err := f()
		var stop giveUp
		switch {
		case err == nil:
			return nil
		case errors.As(err, &stop):
			return err
		case time.Now().After(deadline):
			return fmt.Errorf("after %v: %w", limit, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func (c *cluster) close() {
	c.mu.Lock()
	for _, p := range c.processes {
		_ = p.cmd.Process.Kill()
		<-p.done
	}
	c.mu.Unlock()
	for _, n := range c.nodes {
		n.close()
	}
	if c.ControlPlane != nil {
		c.ControlPlane.Close()
	}
}

// keepLogs copies the logs to where FAIRLEAD_LOG says.
func (c *cluster) keepLogs() {
	to := os.Getenv("FAIRLEAD_LOG")
	if to == "" {
		return
	}
	_ = os.MkdirAll(to, 0o755)
	for _, n := range c.nodes {
		for _, name := range []string{"fairlead", "containerd"} {
			_ = os.WriteFile(filepath.Join(to, n.name+"-"+name+".log"), []byte(tail(n.logPath(name), 64<<20)), 0o644)
		}
	}
	if c.ControlPlane != nil {
		for name, text := range c.Logs(64 << 20) {
			_ = os.WriteFile(filepath.Join(to, name+".log"), []byte(text), 0o644)
		}
	}
}

// tell says what the programs said last.
func (c *cluster) tell(t testing.TB) {
	for _, n := range c.nodes {
		t.Logf("%s: fairlead said:\n%s\ncontainerd said:\n%s", n.name, tail(n.logPath("fairlead"), 6000), tail(n.logPath("containerd"), 2000))
	}
	if c.ControlPlane != nil {
		for name, text := range c.Logs(1500) {
			t.Logf("%s said:\n%s", name, text)
		}
	}
}

// hostPort joins an address and a port.
func hostPort(ip string, port int32) string { return net.JoinHostPort(ip, fmt.Sprint(port)) }
