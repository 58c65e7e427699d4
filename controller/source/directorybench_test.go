// SPDX-License-Identifier: Apache-2.0

package source

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"
)

// BenchmarkLoad reads 10,000 Services with 10 endpoints each from 100 files, as
// a Handler that keeps nothing sees it.
func BenchmarkLoad(b *testing.B) {
	for _, ext := range []string{"yaml", "json"} {
		b.Run(ext, func(b *testing.B) {
			g := newRig(b)
			bytes := writeMany(b, g.dir, ext, 100, 100, 10)
			b.SetBytes(bytes)
			for b.Loop() {
				os.Remove(g.o.StatePath)
				start := cpuTime(b)
				d, err := NewDirectory(g.o)
				if err != nil {
					b.Fatal(err)
				}
				ctx, cancel := context.WithCancel(context.Background())
				h := &counter{cancel: cancel}
				if err := d.Run(ctx, h); err != nil {
					b.Fatal(err)
				}
				b.ReportMetric((cpuTime(b) - start).Seconds(), "cpu-s/load")
				if h.services != 10_000 || h.slices != 10_000 || len(d.State().Problems) > 0 {
					b.Fatalf("loaded %d Services, %d slices, problems %q", h.services, h.slices, d.State().Problems)
				}
				var m runtime.MemStats
				runtime.GC()
				runtime.ReadMemStats(&m)
				b.ReportMetric(float64(m.HeapAlloc)/(1<<20), "heap-MB-after")
				runtime.KeepAlive(d)
			}
			b.ReportMetric(peakRSS(b), "peak-RSS-MB")
		})
	}
}

// BenchmarkEdit is the time from a rename of a file of 100 Services to the
// delivery of the one EndpointSlice that changed, among 10,000.
func BenchmarkEdit(b *testing.B) {
	for _, perFile := range []int{1, 100} {
		b.Run(fmt.Sprintf("objects-in-file=%d", perFile), func(b *testing.B) {
			g := newRig(b)
			writeMany(b, g.dir, "yaml", 100, 100, 10)
			texts := [2]string{}
			for i := range texts {
				var sb strings.Builder
				for j := range perFile {
					sb.WriteString(slice("edited", fmt.Sprintf("edited-%d", j), "10.244.1.1"))
				}
				sb.WriteString(slice("edited", "edited", fmt.Sprintf("10.244.1.%d", 10+i)))
				texts[i] = sb.String()
			}
			g.write("edited.yaml", texts[1])
			g.start()
			i := 0
			for b.Loop() {
				want := fmt.Sprintf("10.244.1.%d", 10+i%2)
				g.write("edited.yaml", texts[i%2])
				for {
					g.mu.Lock()
					have := g.slices["default/edited"].Endpoints[0].Addresses[0]
					g.mu.Unlock()
					if have == want {
						break
					}
					time.Sleep(20 * time.Microsecond)
				}
				i++
			}
		})
	}
}

func writeMany(tb testing.TB, dir, ext string, files, perFile, endpoints int) (size int64) {
	tb.Helper()
	for f := range files {
		var sb strings.Builder
		for i := range perFile {
			n := f*perFile + i
			name := fmt.Sprintf("service-%05d", n)
			addresses := make([]string, endpoints)
			for e := range addresses {
				addresses[e] = fmt.Sprintf("10.244.%d.%d", n%250, e+1)
			}
			if ext == "json" {
				sb.WriteString(jsonPair(name, addresses))
			} else {
				sb.WriteString(svc(name, 80, "selector: {app: "+name+"}") + slice(name, name, addresses...))
			}
		}
		path := filepath.Join(dir, fmt.Sprintf("file-%03d.%s", f, ext))
		if err := os.WriteFile(path, []byte(sb.String()), 0o644); err != nil {
			tb.Fatal(err)
		}
		size += int64(sb.Len())
	}
	return size
}

func jsonPair(name string, addresses []string) string {
	var endpoints []string
	for _, a := range addresses {
		endpoints = append(endpoints, fmt.Sprintf(`{"addresses":[%q],"nodeName":"node1"}`, a))
	}
	return fmt.Sprintf(`{"apiVersion":"v1","kind":"Service","metadata":{"name":%q},"spec":{"selector":{"app":%q},"ports":[{"port":80}]}}
{"apiVersion":"discovery.k8s.io/v1","kind":"EndpointSlice","metadata":{"name":%q,"labels":{"kubernetes.io/service-name":%q}},"addressType":"IPv4","ports":[{"port":8080}],"endpoints":[%s]}
`, name, name, name, name, strings.Join(endpoints, ","))
}

// counter is a Handler that ends the run when all is there.
type counter struct {
	services, slices int
	cancel           func()
}

func (c *counter) OnService(types.NamespacedName, *corev1.Service)                  { c.services++ }
func (c *counter) OnEndpointSlice(types.NamespacedName, *discoveryv1.EndpointSlice) { c.slices++ }
func (c *counter) OnNode(string, *corev1.Node)                                      {}
func (c *counter) OnPod(types.NamespacedName, *corev1.Pod)                          {}
func (c *counter) OnSynced()                                                        { c.cancel() }

func cpuTime(tb testing.TB) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		tb.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func peakRSS(tb testing.TB) float64 {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		tb.Fatal(err)
	}
	return float64(u.Maxrss) / 1024
}
