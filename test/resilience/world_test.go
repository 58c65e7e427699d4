// SPDX-License-Identifier: Apache-2.0

package resilience

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"

	"fairlead.dev/controller/compile"
	"fairlead.dev/dataplane"
	"fairlead.dev/test/conformance"
)

// world is what the manifests say, now and at every time before.
type world struct {
	dir string

	mu       sync.Mutex
	compiler *compile.Compiler
	slices   map[string][]netip.AddrPort // of each EndpointSlice, by name
	versions []version
}

// version is the world between two changes.
type version struct {
	// begun is before the file was put in place, done after it.
	begun, done int64
	rows        []dataplane.Row
	backends    map[netip.AddrPort]bool // of every slice
}

func newWorld(dir string, n *conformance.Node) *world {
	w := &world{dir: dir, compiler: compile.New(compile.Options{}), slices: map[string][]netip.AddrPort{}}
	w.compiler.SetNode(facts(n))
	return w
}

// facts are those of a node as `fairlead run` finds them.
func facts(n *conformance.Node) compile.NodeFacts {
	return compile.NodeFacts{
		Name: n.Name, Addresses: n.Addresses,
		NodePortAddresses: append([]netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()}, n.Addresses...),
		PrimaryIPv4:       n.PrimaryIPv4, PrimaryIPv6: n.PrimaryIPv6,
		InternalSources: conformance.ClusterCIDRs, ServiceCIDRs: conformance.ServiceCIDRs,
	}
}

// put writes a file in one step and makes the world know its object. A nil
// object removes the file.
func (w *world) put(name string, object any) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	path := filepath.Join(w.dir, name+".yaml")
	key := types.NamespacedName{Namespace: "default", Name: name}
	switch o := object.(type) {
	case nil:
		w.compiler.SetService(key, nil)
	case *corev1.Service:
		w.compiler.SetService(key, o)
	case *discoveryv1.EndpointSlice:
		w.compiler.SetEndpointSlice(key, o)
		w.slices[name] = backendsOf(o)
	}
	if r := w.compiler.Compile(); len(r.Problems) > 0 {
		return fmt.Errorf("the test's own manifests have problems: %v", r.Problems)
	}
	v := version{rows: w.compiler.Table().Rows(), backends: map[netip.AddrPort]bool{}}
	for _, list := range w.slices {
		for _, a := range list {
			v.backends[a] = true
		}
	}
	temporary := filepath.Join(w.dir, "."+name)
	if object != nil {
		text, err := yaml.Marshal(object)
		if err != nil {
			return err
		}
		if err := os.WriteFile(temporary, text, 0o644); err != nil {
			return err
		}
	}
	v.begun = monotonic()
	err := os.Remove(path)
	if object != nil {
		err = os.Rename(temporary, path)
	}
	v.done = monotonic()
	w.versions = append(w.versions, v)
	return err
}

func backendsOf(s *discoveryv1.EndpointSlice) (out []netip.AddrPort) {
	for _, e := range s.Endpoints {
		for _, p := range s.Ports {
			out = append(out, netip.AddrPortFrom(netip.MustParseAddr(e.Addresses[0]), uint16(*p.Port)))
		}
	}
	return out
}

// inForce finds the version that has these rows and was in force at some time
// between begin and end.
func (w *world) inForce(rows []dataplane.Row, begin, end int64) (int, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := len(w.versions) - 1; i >= 0; i-- {
		v := &w.versions[i]
		if i+1 < len(w.versions) && w.versions[i+1].done < begin {
			break
		}
		if v.begun <= end && cmp.Equal(v.rows, rows, sameAddr) {
			return i, true
		}
	}
	return 0, false
}

func (w *world) wanted() []dataplane.Row {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.versions[len(w.versions)-1].rows
}

// absent reports whether no version from first on, and up to the time end, has
// the Backend.
func (w *world) absent(backend netip.AddrPort, first int, end int64) bool {
	return !slices.ContainsFunc(w.versions[first:], func(v version) bool { return v.begun <= end && v.backends[backend] })
}

// port is one of a Service: the same number for TCP and UDP.
type port struct {
	name           string
	port, nodePort int32
}

// newService is a dual-stack NodePort Service with TCP and UDP on each port.
// number makes its addresses.
func newService(name string, number int, ports ...port) *corev1.Service {
	s := &corev1.Service{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Service"},
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
		Spec: corev1.ServiceSpec{
			Type:       corev1.ServiceTypeNodePort,
			ClusterIPs: []string{fmt.Sprintf("10.96.1.%d", number), fmt.Sprintf("fd00:10:96::1:%d", number)},
			IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol},

			IPFamilyPolicy: pointer(corev1.IPFamilyPolicyRequireDualStack),
		},
	}
	s.Spec.ClusterIP = s.Spec.ClusterIPs[0]
	for _, p := range ports {
		for _, protocol := range []corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolUDP} {
			s.Spec.Ports = append(s.Spec.Ports, corev1.ServicePort{
				Name: p.name + "-" + map[corev1.Protocol]string{corev1.ProtocolTCP: "tcp", corev1.ProtocolUDP: "udp"}[protocol],
				Port: p.port, NodePort: p.nodePort, Protocol: protocol,
			})
		}
	}
	return s
}

func pointer[T any](v T) *T { return &v }

// endpoint is a pod that serves.
type endpoint struct {
	node string
	conformance.Member
}

// newSlice has the endpoints of one family, at one port number for every port
// of the Service.
func newSlice(name string, s *corev1.Service, ipv6 bool, number int32, endpoints []endpoint) *discoveryv1.EndpointSlice {
	o := &discoveryv1.EndpointSlice{
		TypeMeta: metav1.TypeMeta{APIVersion: "discovery.k8s.io/v1", Kind: "EndpointSlice"},
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name,
			Labels: map[string]string{discoveryv1.LabelServiceName: s.Name}},
		AddressType: discoveryv1.AddressTypeIPv4, Endpoints: []discoveryv1.Endpoint{},
	}
	if ipv6 {
		o.AddressType = discoveryv1.AddressTypeIPv6
	}
	for _, p := range s.Spec.Ports {
		o.Ports = append(o.Ports, discoveryv1.EndpointPort{Name: &p.Name, Protocol: &p.Protocol, Port: &number})
	}
	for _, e := range endpoints {
		a := e.IPv4
		if ipv6 {
			a = e.IPv6
		}
		o.Endpoints = append(o.Endpoints, discoveryv1.Endpoint{Addresses: []string{a.String()}, NodeName: &e.node,
			Conditions: discoveryv1.EndpointConditions{Ready: pointer(true)}})
	}
	return o
}
