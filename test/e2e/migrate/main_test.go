// SPDX-License-Identifier: Apache-2.0

// Package migrate replaces a real kube-proxy, which follows a real API server,
// by fairlead and fairlead by kube-proxy, under load through every path of the
// conformance lab.
package migrate

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"fairlead.dev/test/e2e/controlplane"
)

// The control plane and the programs, the same for all tests.
var (
	cluster   *controlplane.ControlPlane
	client    kubernetes.Interface
	fairlead  string
	kubeProxy string
)

func TestMain(m *testing.M) { os.Exit(runTests(m)) }

func runTests(m *testing.M) int {
	if os.Getuid() != 0 {
		fmt.Println("SKIPPED: needs root, for network namespaces")
		return 0
	}
	dir, err := os.MkdirTemp("", "fairlead-migrate-")
	if err != nil {
		fmt.Println(err)
		return 1
	}
	defer os.RemoveAll(dir)
	// test/vm brings one to its machines, which cannot build any.
	if fairlead = os.Getenv("FAIRLEAD_PROGRAM"); fairlead == "" {
		fairlead = filepath.Join(dir, "fairlead")
		build := exec.Command("go", "build", "-o", fairlead, "./cmd/fairlead")
		build.Dir = "../../.."
		build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off")
		if out, err := build.CombinedOutput(); err != nil {
			fmt.Printf("build cmd/fairlead: %v\n%s", err, out)
			return 1
		}
	}
	if err := start(context.Background()); err != nil {
		fmt.Println(err)
		return 1
	}
	defer cluster.Close()
	return m.Run()
}

func start(ctx context.Context) (err error) {
	if err := controlplane.Build(ctx, os.Stdout, controlplane.KubeProxy); err != nil {
		return err
	}
	if kubeProxy, err = controlplane.KubeProxy.Path(); err != nil {
		return err
	}
	// The ranges of the lab: the last of two flags counts.
	cluster, err = controlplane.New(ctx, controlplane.Options{APIServerArgs: []string{"--service-cluster-ip-range", "10.96.0.0/16,fd00:10:96::/112"}})
	if err != nil {
		return err
	}
	client, err = cluster.Client()
	return err
}

// describeNode makes the Node object what the kubelet would.
func describeNode(ctx context.Context, name string, podCIDRs []string, addresses ...string) error {
	nodes := client.CoreV1().Nodes()
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.NodeSpec{PodCIDR: podCIDRs[0], PodCIDRs: podCIDRs}}
	n, err := nodes.Create(ctx, n, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	for _, a := range addresses {
		n.Status.Addresses = append(n.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: a})
	}
	_, err = nodes.UpdateStatus(ctx, n, metav1.UpdateOptions{})
	return err
}
