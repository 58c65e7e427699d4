// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
)

func TestAControlPlaneAnswersItsKubeconfigAndLeavesNothing(t *testing.T) {
	c, err := New(t.Context(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	config, err := clientcmd.BuildConfigFromFlags("", c.Kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	version, err := client.Discovery().ServerVersion()
	if err != nil {
		t.Fatal(err)
	}
	if version.GitVersion != KubernetesVersion {
		t.Errorf("the API server is %s, want %s", version.GitVersion, KubernetesVersion)
	}
	// The API server makes its own Service some time after it is ready.
	s, err := client.CoreV1().Services("default").Get(t.Context(), "kubernetes", metav1.GetOptions{})
	for deadline := time.Now().Add(30 * time.Second); apierrors.IsNotFound(err) && time.Now().Before(deadline); {
		time.Sleep(100 * time.Millisecond)
		s, err = client.CoreV1().Services("default").Get(t.Context(), "kubernetes", metav1.GetOptions{})
	}
	if err != nil {
		t.Fatal(err)
	}
	if s.Spec.ClusterIP != "10.96.0.1" {
		t.Errorf("Service kubernetes has address %s, want 10.96.0.1", s.Spec.ClusterIP)
	}

	pids := []int{c.etcd.cmd.Process.Pid, c.apiserver.cmd.Process.Pid}
	c.Close()
	for _, pid := range pids {
		if alive(pid) {
			t.Errorf("process %d is alive after Close", pid)
		}
	}
	if _, err := os.Stat(c.Dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is there after Close: %v", c.Dir, err)
	}
}

func TestTheModulesPinTheVersionsThatAreBuilt(t *testing.T) {
	for file, want := range map[string]string{
		"kubernetes/go.mod":     "k8s.io/kubernetes " + KubernetesVersion,
		"etcd/go.mod":           "go.etcd.io/etcd/server/v3 " + EtcdVersion,
		"coredns/go.mod":        "github.com/coredns/coredns " + CoreDNSVersion,
		"metrics-server/go.mod": metricsServerModule + " " + MetricsServerVersion,
	} {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(b), want) {
			t.Errorf("%s does not say %q", file, want)
		}
	}
}

func TestMissingBinariesAreNamedWithTheRemedy(t *testing.T) {
	t.Setenv("FAIRLEAD_CACHE", t.TempDir())
	_, err := New(t.Context(), Options{})
	if err == nil || !strings.Contains(err.Error(), "go run ./cmd/build-controlplane") {
		t.Errorf("error %v, want the remedy", err)
	}
	if err := Build(t.Context(), io.Discard, "kubeadm"); err == nil || !strings.Contains(err.Error(), `"kubeadm"`) {
		t.Errorf("error %v, want one that names the program", err)
	}
}

func TestACutProxyPassesNothingUntilRestored(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() { // an echo server
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { _, _ = io.Copy(c, c); c.Close() }()
		}
	}()
	p, err := NewProxy(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	echo := func(c net.Conn) error {
		_ = c.SetDeadline(time.Now().Add(2 * time.Second))
		if _, err := c.Write([]byte("x")); err != nil {
			return err
		}
		_, err := io.ReadFull(c, make([]byte, 1))
		return err
	}
	dial := func() net.Conn {
		c, err := net.Dial("tcp4", p.Addr())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	c := dial()
	if err := echo(c); err != nil {
		t.Fatalf("before the cut: %v", err)
	}
	p.Cut()
	for name, c := range map[string]net.Conn{"open": c, "new": dial()} {
		if err := echo(c); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s connection after the cut: %v, want it to be closed", name, err)
		}
	}
	p.Restore()
	if err := echo(dial()); err != nil {
		t.Errorf("after the restoration: %v", err)
	}
}
