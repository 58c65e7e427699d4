// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"fmt"
	"runtime"
	"syscall"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func benchService(i int) *corev1.Service {
	return svc(clusterIPs(fmt.Sprintf("10.%d.%d.%d", 96+i>>16, i>>8&255, i&255)), born(int64(i)))
}

// benchSlice is a slice of Service i with n endpoints, spread over 100 nodes
// and 3 zones; step makes it differ.
func benchSlice(i, n, step int) *discoveryv1.EndpointSlice {
	s := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Labels: map[string]string{discoveryv1.LabelServiceName: fmt.Sprintf("svc-%d", i)}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: ptr("http"), Port: ptr[int32](8080), Protocol: ptr(corev1.ProtocolTCP)}},
	}
	for j := range n {
		x := i*n + j
		e := ep(fmt.Sprintf("10.%d.%d.%d", 128+x>>16+step&1<<4, x>>8&255, x&255))
		e.NodeName, e.Zone = ptr(fmt.Sprintf("node-%d", x%100)), ptr(fmt.Sprintf("zone-%d", x%100%3))
		s.Endpoints = append(s.Endpoints, e)
	}
	return s
}

func fill(c *Compiler, services, endpoints int) {
	for i := range services {
		c.SetService(key(fmt.Sprintf("svc-%d", i)), benchService(i))
		c.SetEndpointSlice(key(fmt.Sprintf("svc-%d-0", i)), benchSlice(i, endpoints, 0))
	}
}

// BenchmarkOneEndpointChange must not depend on the number of Services.
func BenchmarkOneEndpointChange(b *testing.B) {
	for _, services := range []int{100, 1_000, 10_000, 50_000} {
		b.Run(fmt.Sprint(services, "x10"), func(b *testing.B) {
			c := newCompiler()
			fill(c, services, 10)
			c.Compile()
			k := key("svc-50-0")
			versions := []*discoveryv1.EndpointSlice{benchSlice(50, 10, 1), benchSlice(50, 10, 0)}
			b.ReportAllocs()
			i := 0
			runtime.GC()
			defer reportCPU(b)()
			for b.Loop() {
				c.SetEndpointSlice(k, versions[i&1])
				if len(c.Compile().Change.Services) != 1 {
					b.Fatal("the change did not arrive")
				}
				i++
			}
		})
	}
}

// reportCPU measures the CPU time of this thread, which other work on the
// machine and the garbage collector's own threads do not touch.
func reportCPU(b *testing.B) func() {
	runtime.LockOSThread()
	now := func() int64 {
		var u syscall.Rusage
		const thread = 1 // RUSAGE_THREAD, getrusage(2)
		if err := syscall.Getrusage(thread, &u); err != nil {
			b.Fatal(err)
		}
		return u.Utime.Nano() + u.Stime.Nano()
	}
	start := now()
	return func() {
		b.ReportMetric(float64(now()-start)/float64(b.N), "cpu-ns/op")
		runtime.UnlockOSThread()
	}
}

// BenchmarkFullCompile is the first Compile of 10,000 Services x 10 endpoints;
// parsing the objects is timed apart from compiling them.
func BenchmarkFullCompile(b *testing.B) {
	const services, endpoints = 10_000, 10
	var objects []*corev1.Service
	var slices []*discoveryv1.EndpointSlice
	for i := range services {
		objects = append(objects, benchService(i))
		slices = append(slices, benchSlice(i, endpoints, 0))
	}
	heap := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	names := make([]string, services)
	sliceNames := make([]string, services)
	for i := range names {
		names[i], sliceNames[i] = fmt.Sprintf("svc-%d", i), fmt.Sprintf("svc-%d-0", i)
	}
	load := func() *Compiler {
		c := newCompiler()
		for i := range objects {
			c.SetService(key(names[i]), objects[i])
			c.SetEndpointSlice(key(sliceNames[i]), slices[i])
		}
		return c
	}
	b.Run("set", func(b *testing.B) {
		b.ReportAllocs()
		defer reportCPU(b)()
		for b.Loop() {
			load()
		}
	})
	b.Run("compile", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			b.StopTimer()
			c := load()
			b.StartTimer()
			if n := len(c.Compile().Change.Services); n != services {
				b.Fatalf("%d Services compiled", n)
			}
		}
	})
	b.Run("heap", func(b *testing.B) {
		var parsed, all uint64
		for b.Loop() {
			before := heap()
			c := load()
			parsed = heap() - before
			c.Compile()
			all = heap() - before
			runtime.KeepAlive(c)
		}
		b.ReportMetric(float64(parsed), "parsed-B")
		b.ReportMetric(float64(all), "live-B")
		b.ReportMetric(0, "ns/op")
	})
}
