// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"fairlead.dev/test/e2e/cluster/traffic"
)

const manyServices = 1000

// row is what a node must have of one of the many.
type row struct {
	Service, Address string
	Port             int
	Backends         []string
}

func TestAThousandServicesComeAndGo(t *testing.T) {
	k := newCase(t)
	k.spread("web", 2, nil)
	pods := k.rolledOut("web")
	k.alone()
	k.settledFill("web", 2)
	baseline := k.settledFill("web", 2)
	var backends []string
	for _, p := range pods {
		backends = append(backends, p.Status.PodIPs[0].IP)
	}
	slices.Sort(backends)

	begun := time.Now()
	want := k.createMany(backends)
	created := time.Since(begun)
	for _, n := range k.nodes {
		var got []row
		err := within(3*time.Minute, func() error {
			if got = k.rows(n); gocmp.Equal(got, want) {
				return nil
			}
			return fmt.Errorf("%s has %d Frontends of %d", n.name, len(got), len(want))
		})
		if err != nil {
			t.Fatalf("%v; difference (-want +got):\n%.3000s", err, gocmp.Diff(want, got))
		}
	}
	t.Logf("%d Services were created in %v and in force on %d nodes, with the EndpointSlices of the controllers, %v after the first",
		manyServices, created.Round(time.Millisecond), len(k.nodes), time.Since(begun).Round(time.Millisecond))
	for _, n := range k.nodes {
		t.Logf("%s: from a change at the API server to the kernel: %s", n.name, k.programming(n))
	}
	for _, i := range []int{0, manyServices / 2, manyServices - 1} {
		k.reaches(k.pods[i%2], traffic.TCP, hostPort(want[i].Address, 80), names(pods)...)
	}

	begun = time.Now()
	if err := k.client.CoreV1().RESTClient().Delete().Namespace(k.namespace).Resource("services").Do(t.Context()).Error(); err != nil {
		t.Fatal(err)
	}
	for _, n := range k.nodes {
		err := within(3*time.Minute, func() error {
			if left := k.rows(n); len(left) > 0 {
				return fmt.Errorf("%s still has %d Frontends", n.name, len(left))
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}
	t.Logf("deleted and gone from %d nodes after %v", len(k.nodes), time.Since(begun).Round(time.Millisecond))
	k.eventually(func() error { return more(k.settledFill("web", 2), baseline) })
}

// createMany creates the Services and gives what each node must have then.
func (k *testCase) createMany(backends []string) []row {
	k.Helper()
	rows := make([]row, manyServices)
	var wg sync.WaitGroup
	work := make(chan int)
	for range 8 {
		wg.Go(func() {
			for i := range work {
				s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("s%04d", i)}, Spec: corev1.ServiceSpec{
					Selector: map[string]string{"app": "web"}, Ports: []corev1.ServicePort{{Port: 80, TargetPort: intstr.FromInt32(8080)}}}}
				s, err := k.client.CoreV1().Services(k.namespace).Create(k.Context(), s, metav1.CreateOptions{})
				if err != nil {
					k.Error(err)
					continue
				}
				rows[i] = row{k.namespace + "/" + s.Name, s.Spec.ClusterIP, 80, backends}
			}
		})
	}
	for i := range manyServices {
		work <- i
	}
	close(work)
	wg.Wait()
	return rows
}

// rows is what the node has of the namespace.
func (k *testCase) rows(n *node) (out []row) {
	for _, f := range k.dump(n) {
		r := row{Service: f.Service, Address: f.Address, Port: f.Port}
		for _, b := range f.Backends {
			r.Backends = append(r.Backends, b.Address)
		}
		slices.Sort(r.Backends)
		out = append(out, r)
	}
	slices.SortFunc(out, func(a, b row) int { return cmp.Compare(a.Service, b.Service) })
	return out
}

// settledFill is mapFill of all nodes, after one more Service of the app came
// and went: slots that were freed are given back when some are taken.
func (k *testCase) settledFill(app string, backends int) map[string]int {
	k.Helper()
	s := k.expose("nudge", app, func(s *corev1.Service) { s.Spec.IPFamilyPolicy, s.Spec.Ports = nil, s.Spec.Ports[:1] })
	for _, gone := range []bool{false, true} {
		if gone {
			time.Sleep(time.Second) // the Dataplane's quarantine of freed slots is half of it
			if err := k.client.CoreV1().Services(k.namespace).Delete(k.Context(), s.Name, metav1.DeleteOptions{}); err != nil {
				k.Fatal(err)
			}
		}
		for _, n := range k.nodes {
			k.eventually(func() error {
				i := slices.IndexFunc(k.rows(n), func(r row) bool { return r.Service == k.namespace+"/nudge" && (gone || len(r.Backends) == backends) })
				if (i < 0) != gone {
					return fmt.Errorf("%s: the Service that came and went: gone %v, want %v", n.name, i < 0, gone)
				}
				return nil
			})
		}
	}
	fill := map[string]int{}
	for _, n := range k.nodes {
		maps.Copy(fill, n.mapFill())
	}
	return fill
}

// mapFill is how many entries the kernel has of what belongs to Services.
func (n *node) mapFill() map[string]int {
	fill := map[string]int{}
	for name, entries := range n.mapEntries("frontends", "services", "slots") {
		fill[n.name+" entries of the map "+name] = entries
	}
	return fill
}

// mapEntries is how many entries the kernel has of some maps.
func (n *node) mapEntries(names ...string) map[string]int {
	entries := map[string]int{}
	of := regexp.MustCompile(`(?m)^fairlead_map_entries\{map="(` + strings.Join(names, "|") + `)"\} (\d+)$`)
	for _, m := range of.FindAllStringSubmatch(n.metrics(), -1) {
		entries[m[1]], _ = strconv.Atoi(m[2])
	}
	return entries
}

// metrics is what the node's agent serves.
func (n *node) metrics() string {
	_, body, err := n.get("http://127.0.0.1:10249/metrics")
	if err != nil {
		return err.Error()
	}
	return body
}

// get asks a server on the node.
func (n *node) get(url string) (code int, body string, err error) {
	dial := func(_ context.Context, network, address string) (c net.Conn, err error) {
		err = n.do(func() error { // on a thread in the node
			c, err = net.DialTimeout(network, address, 10*time.Second)
			return err
		})
		return c, err
	}
	c := http.Client{Timeout: time.Minute, Transport: &http.Transport{DisableKeepAlives: true, DialContext: dial}}
	r, err := c.Get(url)
	if err != nil {
		return 0, "", err
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	return r.StatusCode, string(b), err
}

// alone waits until nothing is left of other cases.
func (k *testCase) alone() {
	k.Helper()
	k.eventually(func() error {
		list, err := k.client.CoreV1().Namespaces().List(k.Context(), metav1.ListOptions{})
		if err != nil {
			return err
		}
		for _, ns := range list.Items {
			if strings.HasPrefix(ns.Name, "case-") && ns.Name != k.namespace {
				return fmt.Errorf("namespace %s is still there: %+v", ns.Name, ns.Status)
			}
		}
		return nil
	})
}

// programming reads kube-proxy's histogram of the time from a change to its
// being in force.
func (k *testCase) programming(n *node) string {
	k.Helper()
	type bucket struct {
		at    float64
		count int
	}
	var buckets []bucket
	for _, m := range regexp.MustCompile(`(?m)^kubeproxy_network_programming_duration_seconds_bucket\{le="([^"]+)"\} (\d+)$`).FindAllStringSubmatch(n.metrics(), -1) {
		at, err := strconv.ParseFloat(m[1], 64)
		count, _ := strconv.Atoi(m[2])
		if err == nil {
			buckets = append(buckets, bucket{at, count})
		}
	}
	if len(buckets) == 0 || buckets[len(buckets)-1].count == 0 {
		return "no measurement"
	}
	total := buckets[len(buckets)-1].count
	quantile := func(q float64) string {
		for _, b := range buckets {
			if float64(b.count) >= q*float64(total) {
				return fmt.Sprintf("<= %gs", b.at)
			}
		}
		return "?"
	}
	return fmt.Sprintf("p50 %s, p99 %s of %d", quantile(0.5), quantile(0.99), total)
}
