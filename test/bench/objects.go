// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// The Service that is asked, number 0. Its Backends are real; the others are
// there for their number.
const (
	nodeName    = "fairlead-bench"
	namespaced  = "bench"
	probeName   = "service-00000"
	servicePort = 80

	clusterCIDRs = "10.244.0.0/16,fd00:10:244::/48"
)

var probeIPv4, probeIPv6 = netip.MustParseAddr("10.96.0.10"), netip.MustParseAddr("fd00:10:96::a")

// nth gives the address n after a.
func nth(a string, n int) string {
	b := netip.MustParseAddr(a).As4()
	return netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, binary.BigEndian.Uint32(b[:])+uint32(n)))).String()
}

func serviceName(i int) string { return fmt.Sprintf("service-%05d", i) }

func keyOf(o metav1.Object) types.NamespacedName {
	return types.NamespacedName{Namespace: o.GetNamespace(), Name: o.GetName()}
}

func newService(i int) *corev1.Service {
	s := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespaced, Name: serviceName(i)},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeClusterIP, ClusterIP: nth("10.97.0.0", i), ClusterIPs: []string{nth("10.97.0.0", i)},
			IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol}, Selector: map[string]string{"app": serviceName(i)},
			Ports: []corev1.ServicePort{{Name: "tcp", Port: servicePort, Protocol: corev1.ProtocolTCP, TargetPort: intstr.FromInt32(serverPort)}},
		},
	}
	if i == 0 {
		s.Spec.ClusterIP, s.Spec.ClusterIPs = probeIPv4.String(), []string{probeIPv4.String(), probeIPv6.String()}
		s.Spec.IPFamilies = append(s.Spec.IPFamilies, corev1.IPv6Protocol)
		s.Spec.Ports = append(s.Spec.Ports, corev1.ServicePort{
			Name: "udp", Port: servicePort, Protocol: corev1.ProtocolUDP, TargetPort: intstr.FromInt32(serverPort)})
	}
	return s
}

// newSlices gives the EndpointSlices of Service i. Those of the probed one have
// the server pod's addresses from first on.
func newSlices(i, first int) []*discoveryv1.EndpointSlice {
	if i != 0 {
		return []*discoveryv1.EndpointSlice{newSlice(i, discoveryv1.AddressTypeIPv4, func(k int) string { return nth("10.128.0.0", i*backends+k) })}
	}
	return []*discoveryv1.EndpointSlice{
		newSlice(0, discoveryv1.AddressTypeIPv4, func(k int) string { return podIPv4(first + k).String() }),
		newSlice(0, discoveryv1.AddressTypeIPv6, func(k int) string { return podIPv6(first + k).String() }),
	}
}

func newSlice(i int, family discoveryv1.AddressType, address func(int) string) *discoveryv1.EndpointSlice {
	s := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: namespaced, Name: serviceName(i) + "-" + strings.ToLower(string(family)),
			Labels: map[string]string{discoveryv1.LabelServiceName: serviceName(i)},
		},
		AddressType: family,
	}
	for _, p := range newService(i).Spec.Ports {
		port := int32(serverPort)
		s.Ports = append(s.Ports, discoveryv1.EndpointPort{Name: &p.Name, Protocol: &p.Protocol, Port: &port})
	}
	yes := true
	for k := range backends {
		node := fmt.Sprintf("node-%d", (i+k)%100)
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{
			Addresses: []string{address(k)}, NodeName: &node,
			Conditions: discoveryv1.EndpointConditions{Ready: &yes, Serving: &yes},
		})
	}
	return s
}

// servicesPerFile is how the directory's objects are spread. The EndpointSlices
// of the probed Service have a file of their own.
const servicesPerFile = 100

const probeFile = "service-00000-endpoints.yaml"

// writeManifests fills a directory with n Services.
func writeManifests(dir string, n int) error {
	for from := 0; from < n; from += servicesPerFile {
		var text strings.Builder
		for i := from; i < min(from+servicesPerFile, n); i++ {
			writeService(&text, newService(i))
			if i > 0 {
				writeSlices(&text, i, firstBefore)
			}
		}
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("services-%05d.yaml", from)), []byte(text.String()), 0o644); err != nil {
			return err
		}
	}
	return os.WriteFile(filepath.Join(dir, probeFile), probeManifest(firstBefore), 0o644)
}

// probeManifest is the content of probeFile.
func probeManifest(first int) []byte {
	var text strings.Builder
	writeSlices(&text, 0, first)
	return []byte(text.String())
}

func writeService(w *strings.Builder, s *corev1.Service) {
	fmt.Fprintf(w, "---\napiVersion: v1\nkind: Service\nmetadata: {namespace: %s, name: %s}\nspec:\n", s.Namespace, s.Name)
	fmt.Fprintf(w, "  clusterIP: %q\n  clusterIPs: [%s]\n  ipFamilies: [", s.Spec.ClusterIP, `"`+strings.Join(s.Spec.ClusterIPs, `", "`)+`"`)
	for i, f := range s.Spec.IPFamilies {
		w.WriteString(strings.Repeat(", ", min(i, 1)) + string(f))
	}
	fmt.Fprintf(w, "]\n  ipFamilyPolicy: %s\n  selector: {app: %s}\n  ports:\n",
		[]corev1.IPFamilyPolicy{corev1.IPFamilyPolicySingleStack, corev1.IPFamilyPolicyRequireDualStack}[len(s.Spec.IPFamilies)-1], s.Name)
	for _, p := range s.Spec.Ports {
		fmt.Fprintf(w, "  - {name: %s, port: %d, protocol: %s, targetPort: %d}\n", p.Name, p.Port, p.Protocol, p.TargetPort.IntVal)
	}
}

func writeSlices(w *strings.Builder, i, first int) {
	for _, s := range newSlices(i, first) {
		fmt.Fprintf(w, "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  namespace: %s\n  name: %s\n", s.Namespace, s.Name)
		fmt.Fprintf(w, "  labels: {%s: %s}\naddressType: %s\nports:\n", discoveryv1.LabelServiceName, serviceName(i), s.AddressType)
		for _, p := range s.Ports {
			fmt.Fprintf(w, "- {name: %s, port: %d, protocol: %s}\n", *p.Name, *p.Port, *p.Protocol)
		}
		w.WriteString("endpoints:\n")
		for _, e := range s.Endpoints {
			fmt.Fprintf(w, "- addresses: [%q]\n  nodeName: %s\n  conditions: {ready: true, serving: true}\n", e.Addresses[0], *e.NodeName)
		}
	}
}
