// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"

	"fairlead.dev/controller/source"
	"fairlead.dev/test/e2e/controlplane"
)

// reader is what a child process of this test measures: one way to read all
// Services and EndpointSlices, with its peak memory.
type reader struct {
	Way    string
	Config struct{ Host, Token, CA, Node string }
}

// reading is what it found.
type reading struct {
	Objects int
	Synced  time.Duration
	PeakKB  int // VmHWM: the most resident memory so far
}

const readerVariable = "FAIRLEAD_E2E_READER"

// TestMemoryAndTimeAtScale compares the Source with informers, which cache.
// FAIRLEAD_E2E_SCALE is the number of Services, of 10 endpoints each.
func TestMemoryAndTimeAtScale(t *testing.T) {
	if spec := os.Getenv(readerVariable); spec != "" {
		readAtScale(t, spec)
		return
	}
	n, err := strconv.Atoi(os.Getenv("FAIRLEAD_E2E_SCALE"))
	if err != nil {
		t.Skip("set FAIRLEAD_E2E_SCALE to a number of Services; 10000 take five minutes to create")
	}
	c := newClusterIn(t, controlplane.Start(t))
	c.fill(t, n)
	config := c.RESTConfig(controlplane.AdminToken)
	for round := range 3 {
		for _, way := range []string{"nothing", "source", "informers"} {
			r := reader{Way: way}
			r.Config.Host, r.Config.Token, r.Config.CA, r.Config.Node = config.Host, config.BearerToken, string(config.CAData), c.node
			spec, err := json.Marshal(r)
			if err != nil {
				t.Fatal(err)
			}
			cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestMemoryAndTimeAtScale$")
			cmd.Env = append(os.Environ(), readerVariable+"="+string(spec))
			out, err := cmd.Output()
			if err != nil {
				t.Fatalf("%s: %v\n%s", way, err, out)
			}
			var got reading
			line, _, _ := strings.Cut(string(out), "\n")
			if err := json.Unmarshal([]byte(line), &got); err != nil {
				t.Fatalf("%s: %v\n%s", way, err, out)
			}
			if way != "nothing" && got.Objects < 2*n {
				t.Errorf("%s read %d objects of %d", way, got.Objects, 2*n)
			}
			t.Logf("round %d, %-9s: %d objects after %v, peak RSS %d MB", round, way, got.Objects, got.Synced.Round(time.Millisecond), got.PeakKB/1024)
		}
	}
}

// fill creates Services with an EndpointSlice of ten endpoints each.
func (c *cluster) fill(t *testing.T, n int) {
	t.Helper()
	started := time.Now()
	numbers := make(chan int)
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for i := range numbers {
				name := fmt.Sprintf("s%d", i)
				s := c.service(name, "1", nil)
				e := &discoveryv1.EndpointSlice{
					ObjectMeta:  metav1.ObjectMeta{Name: name + "-abcde", Labels: map[string]string{discoveryv1.LabelServiceName: name}},
					AddressType: discoveryv1.AddressTypeIPv4,
				}
				yes, node := true, c.node
				for k := range 10 {
					e.Endpoints = append(e.Endpoints, discoveryv1.Endpoint{
						Addresses:  []string{fmt.Sprintf("10.%d.%d.%d", i>>8, i&255, k+1)},
						Conditions: discoveryv1.EndpointConditions{Ready: &yes, Serving: &yes},
						NodeName:   &node,
					})
				}
				if _, err := c.client.CoreV1().Services(c.namespace).Create(t.Context(), s, metav1.CreateOptions{}); err != nil {
					t.Errorf("create %s: %v", name, err)
				}
				if _, err := c.client.DiscoveryV1().EndpointSlices(c.namespace).Create(t.Context(), e, metav1.CreateOptions{}); err != nil {
					t.Errorf("create %s: %v", name, err)
				}
			}
		})
	}
	for i := range n {
		numbers <- i
	}
	close(numbers)
	wg.Wait()
	t.Logf("%d Services and EndpointSlices created in %v", n, time.Since(started).Round(time.Second))
}

// readAtScale is the child process.
func readAtScale(t *testing.T, spec string) {
	var r reader
	if err := json.Unmarshal([]byte(spec), &r); err != nil {
		t.Fatal(err)
	}
	debug.SetGCPercent(50)
	config := &rest.Config{Host: r.Config.Host, BearerToken: r.Config.Token, TLSClientConfig: rest.TLSClientConfig{CAData: []byte(r.Config.CA)}}
	var got reading
	started := time.Now()
	switch r.Way {
	case "source":
		got.Objects = readWithSource(t, config, r.Config.Node)
	case "informers":
		got.Objects = readWithInformers(t, config)
	}
	got.Synced = time.Since(started)
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(status), "VmHWM:")
	if _, err := fmt.Sscan(after, &got.PeakKB); err != nil {
		t.Fatal(err)
	}
	line, err := json.Marshal(got)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Println(string(line))
}

// countingHandler counts what is there, and keeps nothing.
type countingHandler struct {
	objects int
	synced  chan struct{}
}

func (h *countingHandler) OnService(types.NamespacedName, *corev1.Service) { h.objects++ }
func (h *countingHandler) OnEndpointSlice(types.NamespacedName, *discoveryv1.EndpointSlice) {
	h.objects++
}
func (h *countingHandler) OnNode(string, *corev1.Node)             {}
func (h *countingHandler) OnPod(types.NamespacedName, *corev1.Pod) {}
func (h *countingHandler) OnSynced()                               { close(h.synced) }

func readWithSource(t *testing.T, config *rest.Config, node string) int {
	s, err := source.NewAPIServer(source.APIServerOptions{Config: config, NodeName: node})
	if err != nil {
		t.Fatal(err)
	}
	h := &countingHandler{synced: make(chan struct{})}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- s.Run(ctx, h) }()
	<-h.synced
	cancel()
	<-done
	return h.objects
}

func readWithInformers(t *testing.T, config *rest.Config) int {
	config.ContentType = "application/vnd.kubernetes.protobuf"
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	factory := informers.NewSharedInformerFactory(client, 0)
	// As kube-proxy does.
	trim := func(o any) (any, error) {
		if m, ok := o.(metav1.Object); ok {
			m.SetManagedFields(nil)
		}
		return o, nil
	}
	stores := []cache.SharedIndexInformer{
		factory.Core().V1().Services().Informer(),
		factory.Discovery().V1().EndpointSlices().Informer(),
	}
	for _, s := range stores {
		if err := s.SetTransform(trim); err != nil {
			t.Fatal(err)
		}
	}
	factory.Start(t.Context().Done())
	factory.WaitForCacheSync(t.Context().Done())
	n := 0
	for _, s := range stores {
		n += len(s.GetStore().ListKeys())
	}
	return n
}
