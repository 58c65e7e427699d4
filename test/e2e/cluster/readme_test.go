// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"fairlead.dev/test/e2e/cluster/traffic"
	"fairlead.dev/test/e2e/controlplane"
)

// TestReadmeOnACluster follows the section of the README word for word, in a
// cluster of its own whose node has a real kubelet and no proxy at all.
func TestReadmeOnACluster(t *testing.T) {
	k := newCase(t) // the underlay, the image and the client outside are shared
	c := &cluster{outside: k.outside}
	defer c.close()
	n, err := c.newKubeletNode(t.Context(), 9)
	if err != nil {
		c.tell(t)
		t.Fatal(err)
	}
	defer func() {
		if t.Failed() {
			t.Logf("the kubelet said:\n%s", tail(n.logPath("kubelet"), 3000))
			out, _ := n.run("/bin/sh", "-c", "tail -n 30 /var/log/pods/*/*/*.log")
			t.Logf("containers said:\n%s", out)
			c.tell(t)
		}
	}()
	own := &testCase{T: t, cluster: c, namespace: "default"}
	own.runReadme(n)
	own.askServices(n)
}

// newKubeletNode starts a control plane and one node with a real kubelet.
func (c *cluster) newKubeletNode(ctx context.Context, number int) (*node, error) {
	n, err := c.newNode(number)
	if err != nil {
		return nil, err
	}
	c.nodes = append(c.nodes, n)
	if err := n.keepCgroup(); err != nil {
		return n, err
	}
	if err := n.startContainerd(); err != nil {
		return n, err
	}
	if c.ControlPlane, err = controlplane.New(ctx, controlplane.Options{Address: underlayIPv4.String(), Controllers: true}); err != nil {
		return n, err
	}
	if c.client, err = c.Client(); err != nil {
		return n, err
	}
	if err := c.letServerAskKubelets(ctx); err != nil {
		return n, err
	}
	if err := n.importImage(filepath.Join(scratch, "image.tar")); err != nil {
		return n, err
	}
	if err := n.startKubelet(); err != nil {
		return n, err
	}
	return n, within(patience, func() error {
		got, err := n.registered(ctx)
		if err != nil {
			return err
		}
		if err := n.writeNetwork(got.Spec.PodCIDRs); err != nil {
			return giveUp{err}
		}
		if !nodeReady(got) {
			return fmt.Errorf("%s is not Ready: %+v", n.name, got.Status.Conditions)
		}
		return nil
	})
}

// keepCgroup makes the node's part of cgroup2 what is mounted at the root of it:
// the socket hooks of the DaemonSet are for its whole machine.
func (n *node) keepCgroup() error {
	top, err := cgroup2()
	if err != nil {
		return err
	}
	return n.do(func() error { return unix.Mount(n.cgroup, top, "", unix.MS_BIND, "") })
}

// writeNetwork is what a CNI plugin's installation does.
func (n *node) writeNetwork(cidrs []string) error {
	ranges := make([]string, len(cidrs))
	for i, cidr := range cidrs {
		ranges[i] = fmt.Sprintf(`[{"subnet": %q}]`, cidr)
	}
	text := fmt.Sprintf(`{"cniVersion": "0.4.0", "name": "pods", "plugins": [{"type": "ptp",
  "ipam": {"type": "host-local", "ranges": [%s], "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}}]}`, strings.Join(ranges, ", "))
	return n.do(func() error {
		for _, key := range []string{"ipv4/ip_forward", "ipv6/conf/all/forwarding"} {
			if err := os.WriteFile("/proc/sys/net/"+key, []byte("1"), 0o644); err != nil {
				return err
			}
		}
		return os.WriteFile("/etc/cni/net.d/10-pods.conflist", []byte(text), 0o644)
	})
}

// kubeletConfiguration turns off what a kubelet thinks of a whole machine: this
// node is a part of one.
const kubeletConfiguration = `apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
cgroupDriver: cgroupfs
cgroupRoot: %q
failCgroupV1: false
failSwapOn: false
enforceNodeAllocatable: []
localStorageCapacityIsolation: false
containerRuntimeEndpoint: unix://%s
resolvConf: /etc/resolv.conf
imageGCHighThresholdPercent: 100
evictionHard: {memory.available: 1Mi}
authentication:
  anonymous: {enabled: false}
  webhook: {enabled: true}
  x509: {clientCAFile: %q}
authorization: {mode: Webhook}
tlsCertFile: %q
tlsPrivateKeyFile: %q
registerNode: true
`

func (n *node) startKubelet() error {
	kubeconfig, cert, config := filepath.Join(n.dir, "kubeconfig"), filepath.Join(n.dir, "kubelet"), filepath.Join(n.dir, "kubelet.yaml")
	if err := n.c.WriteNodeKubeconfig(kubeconfig, n.c.Addr, n.name); err != nil {
		return err
	}
	if err := n.c.IssueServing(cert, n.name, n.ipv4, n.ipv6); err != nil {
		return err
	}
	text := fmt.Sprintf(kubeletConfiguration, strings.TrimSuffix(n.podRoot, "/kubepods"), criSocket, n.c.CAFile(), cert+".crt", cert+".key")
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return err
	}
	path, err := controlplane.Kubelet.Path()
	if err != nil {
		return err
	}
	n.agent, err = n.start("kubelet on "+n.name, n.logPath("kubelet"), path, "--config", config, "--kubeconfig", kubeconfig,
		"--hostname-override", n.name, "--node-ip", n.ipv4.String()+","+n.ipv6.String())
	return err
}

// readmeCommands are the lines of the section's block.
func readmeCommands(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("../../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, ok := strings.Cut(string(text), "\n## On a cluster\n")
	_, block, ok2 := strings.Cut(section, "\n```\n")
	block, _, ok3 := strings.Cut(block, "\n```\n")
	if !ok || !ok2 || !ok3 {
		t.Fatal("README.md has no section \"On a cluster\" with a block of commands")
	}
	return block
}

// runReadme gives the commands to a shell in a copy of the tree, on a machine
// where kubectl is an administrator's and ctr speaks to the node's containerd.
// What a reader has to put in is put in.
func (k *testCase) runReadme(n *node) {
	k.Helper()
	dir := filepath.Join(os.TempDir(), "readme")
	bin := filepath.Join(dir, "path")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		k.Fatal(err)
	}
	kubectl, err := controlplane.Kubectl.Path()
	if err != nil {
		k.Fatal(err)
	}
	host, port, _ := strings.Cut(k.Addr, ":")
	for name, line := range map[string]string{
		"kubectl": fmt.Sprintf("exec %s --kubeconfig %s \"$@\"", kubectl, k.Kubeconfig),
		"ctr":     fmt.Sprintf("exec nsenter --target %d --net --mount --pid --wd=\"$PWD\" -- /usr/bin/ctr --address %s \"$@\"", n.pid, criSocket),
	} {
		if err := os.WriteFile(filepath.Join(bin, name), []byte("#!/bin/sh\n"+line+"\n"), 0o755); err != nil {
			k.Fatal(err)
		}
	}
	tree := filepath.Join(dir, "tree")
	if out, err := exec.Command("sh", "-c", `mkdir -p "$0" && cd ../../.. && git ls-files -z --cached --others --exclude-standard | tar --null -T - --ignore-failed-read -cf - | tar -C "$0" -xf -`, tree).CombinedOutput(); err != nil {
		k.Fatalf("copy the tree: %v\n%s", err, out)
	}
	commands := strings.NewReplacer("API-SERVER-PORT", port, "API-SERVER", host).Replace(readmeCommands(k.T))
	ctx, cancel := context.WithTimeout(k.Context(), 8*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "-euxo", "pipefail", "-c", commands)
	cmd.Dir, cmd.Env = tree, append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"), "HOME="+os.Getenv("HOME"))
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	out, err := cmd.CombinedOutput()
	k.Logf("the README's commands:\n%s", out)
	if err != nil {
		k.Fatalf("the README's commands: %v", err)
	}
}

// askServices has a Deployment answer through a ClusterIP and a NodePort, which
// on this node nobody but the DaemonSet can have made work.
func (k *testCase) askServices(n *node) {
	k.Helper()
	k.spread("web", 2, nil)
	var names []string
	for _, p := range k.rolledOut("web") {
		names = append(names, p.Name)
	}
	s := k.expose("web", "web", func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeNodePort })
	for _, ip := range []string{n.ipv4.String(), n.ipv6.String()} {
		k.reaches(k.outside, traffic.TCP, hostPort(ip, s.Spec.Ports[0].NodePort), names...)
	}
	for _, ip := range s.Spec.ClusterIPs {
		if out, err := n.run("/usr/bin/curl", "-sS", "-m", "20", "http://"+hostPort(ip, s.Spec.Ports[0].Port)); err != nil || !strings.Contains(string(out), "web-") {
			k.Errorf("from the node to the ClusterIP %s: %q, %v", ip, out, err)
		}
	}
}
