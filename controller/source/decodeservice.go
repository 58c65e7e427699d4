// SPDX-License-Identifier: Apache-2.0

package source

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// protocols are those of the ports of Services, EndpointSlices and Pods.
var protocols = []corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP}

// checkService gives a Service the API's defaults and validates it as a create
// through an API server would. What an allocator fills in is not its concern.
func checkService(s *corev1.Service) field.ErrorList {
	defaultService(s)
	spec := field.NewPath("spec")
	errs := checkServiceType(s, spec)
	errs = append(errs, checkServicePorts(s, spec.Child("ports"))...)
	errs = append(errs, checkClusterIPs(s, spec)...)
	errs = append(errs, checkAffinity(s, spec)...)
	errs = append(errs, checkTrafficPolicies(s, spec)...)
	errs = append(errs, metav1validation.ValidateLabels(s.Spec.Selector, spec.Child("selector"))...)
	for i, ip := range s.Spec.ExternalIPs {
		errs = append(errs, checkRoutableIP(ip, spec.Child("externalIPs").Index(i))...)
	}
	ingress := field.NewPath("status", "loadBalancer", "ingress")
	for i, in := range s.Status.LoadBalancer.Ingress {
		if in.IP != "" {
			errs = append(errs, validation.IsValidIP(ingress.Index(i).Child("ip"), in.IP)...)
		}
	}
	return append(errs, checkSourceRanges(s, spec.Child("loadBalancerSourceRanges"))...)
}

func defaultService(s *corev1.Service) {
	sp := &s.Spec
	sp.SessionAffinity = cmp.Or(sp.SessionAffinity, corev1.ServiceAffinityNone)
	sp.Type = cmp.Or(sp.Type, corev1.ServiceTypeClusterIP)
	if sp.SessionAffinity == corev1.ServiceAffinityNone {
		sp.SessionAffinityConfig = nil
	}
	if c := sp.SessionAffinityConfig; sp.SessionAffinity == corev1.ServiceAffinityClientIP &&
		(c == nil || c.ClientIP == nil || c.ClientIP.TimeoutSeconds == nil) {
		seconds := corev1.DefaultClientIPServiceAffinitySeconds
		sp.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: &seconds}}
	}
	for i := range sp.Ports {
		p := &sp.Ports[i]
		p.Protocol = cmp.Or(p.Protocol, corev1.ProtocolTCP)
		if p.TargetPort == intstr.FromInt32(0) || p.TargetPort == intstr.FromString("") {
			p.TargetPort = intstr.FromInt32(p.Port)
		}
	}
	if externallyAccessible(s) {
		sp.ExternalTrafficPolicy = cmp.Or(sp.ExternalTrafficPolicy, corev1.ServiceExternalTrafficPolicyCluster)
	}
	if cluster := corev1.ServiceInternalTrafficPolicyCluster; sp.InternalTrafficPolicy == nil && sp.Type != corev1.ServiceTypeExternalName {
		sp.InternalTrafficPolicy = &cluster
	}
	if allocate := true; sp.Type == corev1.ServiceTypeLoadBalancer && sp.AllocateLoadBalancerNodePorts == nil {
		sp.AllocateLoadBalancerNodePorts = &allocate
	}
	for i := range s.Status.LoadBalancer.Ingress {
		in, vip := &s.Status.LoadBalancer.Ingress[i], corev1.LoadBalancerIPModeVIP
		if in.IP != "" && in.IPMode == nil {
			in.IPMode = &vip
		}
	}
	if sp.ClusterIP != "" && len(sp.ClusterIPs) == 0 {
		sp.ClusterIPs = []string{sp.ClusterIP}
	}
}

// externallyAccessible is the API's notion: externalTrafficPolicy applies.
func externallyAccessible(s *corev1.Service) bool {
	return hasNodePorts(s) || s.Spec.Type == corev1.ServiceTypeClusterIP && len(s.Spec.ExternalIPs) > 0
}

func hasNodePorts(s *corev1.Service) bool {
	return s.Spec.Type == corev1.ServiceTypeNodePort || s.Spec.Type == corev1.ServiceTypeLoadBalancer
}

func isHeadless(s *corev1.Service) bool { return s.Spec.ClusterIP == corev1.ClusterIPNone }

// wantsHealthCheck: the API gives such a Service a healthCheckNodePort.
func wantsHealthCheck(s *corev1.Service) bool {
	return s.Spec.Type == corev1.ServiceTypeLoadBalancer && s.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal
}

func checkServiceType(s *corev1.Service, spec *field.Path) (errs field.ErrorList) {
	sp := &s.Spec
	if len(sp.Ports) == 0 && !isHeadless(s) && sp.Type != corev1.ServiceTypeExternalName {
		errs = append(errs, field.Required(spec.Child("ports"), ""))
	}
	switch sp.Type {
	case corev1.ServiceTypeClusterIP:
		for i := range sp.Ports {
			if sp.Ports[i].NodePort != 0 {
				errs = append(errs, field.Forbidden(spec.Child("ports").Index(i).Child("nodePort"), "may not be used when `type` is 'ClusterIP'"))
			}
		}
	case corev1.ServiceTypeNodePort, corev1.ServiceTypeLoadBalancer:
		if isHeadless(s) {
			errs = append(errs, field.Invalid(spec.Child("clusterIP"), sp.ClusterIP, "may not be 'None' for "+string(sp.Type)+" services"))
		}
	case corev1.ServiceTypeExternalName:
		if len(sp.ClusterIPs) > 0 || len(sp.IPFamilies) > 0 || sp.IPFamilyPolicy != nil {
			errs = append(errs, field.Forbidden(spec, "clusterIPs, ipFamilies and ipFamilyPolicy may not be set for ExternalName services"))
		}
		for _, msg := range validation.IsDNS1123Subdomain(strings.TrimSuffix(sp.ExternalName, ".")) {
			errs = append(errs, field.Invalid(spec.Child("externalName"), sp.ExternalName, msg))
		}
	default:
		errs = append(errs, field.NotSupported(spec.Child("type"), sp.Type, []corev1.ServiceType{corev1.ServiceTypeClusterIP,
			corev1.ServiceTypeExternalName, corev1.ServiceTypeLoadBalancer, corev1.ServiceTypeNodePort}))
	}
	if sp.AllocateLoadBalancerNodePorts != nil && sp.Type != corev1.ServiceTypeLoadBalancer {
		errs = append(errs, field.Forbidden(spec.Child("allocateLoadBalancerNodePorts"), "may only be used when `type` is 'LoadBalancer'"))
	}
	return errs
}

func checkServicePorts(s *corev1.Service, path *field.Path) (errs field.ErrorList) {
	type number struct {
		protocol corev1.Protocol
		port     int32
	}
	names, ports, nodePorts := map[string]bool{}, map[number]bool{}, map[number]bool{}
	for i := range s.Spec.Ports {
		p, at := &s.Spec.Ports[i], path.Index(i)
		switch {
		case p.Name == "" && len(s.Spec.Ports) > 1:
			errs = append(errs, field.Required(at.Child("name"), "must be set where there are several ports"))
		case p.Name != "":
			errs = append(errs, checkPortName(p.Name, names, at.Child("name"))...)
		}
		errs = append(errs, checkPortNumber(p.Port, at.Child("port"))...)
		if p.NodePort != 0 {
			errs = append(errs, checkPortNumber(p.NodePort, at.Child("nodePort"))...)
		}
		errs = append(errs, checkProtocol(p.Protocol, at.Child("protocol"))...)
		errs = append(errs, checkTargetPort(p.TargetPort, at.Child("targetPort"))...)
		key := number{p.Protocol, p.Port}
		if ports[key] {
			errs = append(errs, field.Duplicate(at, string(p.Protocol)+" "+p.TargetPort.String()))
		}
		ports[key] = true
		if key.port = p.NodePort; p.NodePort != 0 && nodePorts[key] {
			errs = append(errs, field.Duplicate(at.Child("nodePort"), p.NodePort))
		}
		nodePorts[key] = true
	}
	return errs
}

func checkPortName(name string, seen map[string]bool, at *field.Path) (errs field.ErrorList) {
	for _, msg := range validation.IsDNS1123Label(name) {
		errs = append(errs, field.Invalid(at, name, msg))
	}
	if seen[name] {
		errs = append(errs, field.Duplicate(at, name))
	}
	seen[name] = true
	return errs
}

func checkPortNumber(port int32, at *field.Path) (errs field.ErrorList) {
	for _, msg := range validation.IsValidPortNum(int(port)) {
		errs = append(errs, field.Invalid(at, port, msg))
	}
	return errs
}

func checkTargetPort(p intstr.IntOrString, at *field.Path) (errs field.ErrorList) {
	if p.Type == intstr.Int {
		return checkPortNumber(p.IntVal, at)
	}
	for _, msg := range validation.IsValidPortName(p.StrVal) {
		errs = append(errs, field.Invalid(at, p.StrVal, msg))
	}
	return errs
}

func checkProtocol(p corev1.Protocol, at *field.Path) field.ErrorList {
	if slices.Contains(protocols, p) {
		return nil
	}
	return field.ErrorList{field.NotSupported(at, p, protocols)}
}

// checkClusterIPs validates clusterIP(s), ipFamilies and ipFamilyPolicy against
// each other.
func checkClusterIPs(s *corev1.Service, spec *field.Path) (errs field.ErrorList) {
	sp, path := &s.Spec, spec.Child("clusterIPs")
	if sp.Type == corev1.ServiceTypeExternalName {
		return nil
	}
	errs = checkIPFamilies(s, spec)
	if len(sp.ClusterIPs) > 0 && sp.ClusterIPs[0] != sp.ClusterIP {
		errs = append(errs, field.Invalid(path, sp.ClusterIPs, "first value must match `clusterIP`"))
	}
	if len(sp.ClusterIPs) > 2 || isHeadless(s) && len(sp.ClusterIPs) > 1 {
		return append(errs, field.Invalid(path, sp.ClusterIPs, "may hold one address for each family, or only 'None'"))
	}
	if isHeadless(s) {
		return errs
	}
	seen := map[corev1.IPFamily]bool{}
	for i, ip := range sp.ClusterIPs {
		if bad := validation.IsValidIP(path.Index(i), ip); len(bad) > 0 {
			errs = append(errs, bad...)
			continue
		}
		family := familyOf(netip.MustParseAddr(ip))
		if seen[family] {
			errs = append(errs, field.Invalid(path, sp.ClusterIPs, "may hold no more than one address for each family"))
		}
		seen[family] = true
		if i < len(sp.IPFamilies) && sp.IPFamilies[i] != family {
			errs = append(errs, field.Invalid(path.Index(i), ip, "expected an "+string(sp.IPFamilies[i])+" address, as ipFamilies says"))
		}
	}
	return errs
}

func checkIPFamilies(s *corev1.Service, spec *field.Path) (errs field.ErrorList) {
	sp, path := &s.Spec, spec.Child("ipFamilies")
	for i, f := range sp.IPFamilies {
		if f != corev1.IPv4Protocol && f != corev1.IPv6Protocol {
			errs = append(errs, field.NotSupported(path.Index(i), f, []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol}))
		}
		if slices.Contains(sp.IPFamilies[:i], f) {
			errs = append(errs, field.Duplicate(path.Index(i), f))
		}
	}
	policy := corev1.IPFamilyPolicySingleStack
	if sp.IPFamilyPolicy != nil {
		policy = *sp.IPFamilyPolicy
	}
	switch policy {
	case corev1.IPFamilyPolicyPreferDualStack, corev1.IPFamilyPolicyRequireDualStack:
	case corev1.IPFamilyPolicySingleStack:
		anyFamily := isHeadless(s) && len(sp.Selector) == 0 && sp.IPFamilyPolicy == nil
		if !anyFamily && (len(sp.ClusterIPs) > 1 || len(sp.IPFamilies) > 1) {
			errs = append(errs, field.Invalid(spec.Child("ipFamilyPolicy"), sp.IPFamilyPolicy,
				"must be 'RequireDualStack' or 'PreferDualStack' when there are several clusterIPs or ipFamilies"))
		}
	default:
		errs = append(errs, field.NotSupported(spec.Child("ipFamilyPolicy"), policy, []corev1.IPFamilyPolicy{
			corev1.IPFamilyPolicyPreferDualStack, corev1.IPFamilyPolicyRequireDualStack, corev1.IPFamilyPolicySingleStack}))
	}
	return errs
}

func familyOf(a netip.Addr) corev1.IPFamily {
	if a.Is4() {
		return corev1.IPv4Protocol
	}
	return corev1.IPv6Protocol
}

func checkAffinity(s *corev1.Service, spec *field.Path) (errs field.ErrorList) {
	switch s.Spec.SessionAffinity {
	case corev1.ServiceAffinityNone:
	case corev1.ServiceAffinityClientIP:
		seconds := *s.Spec.SessionAffinityConfig.ClientIP.TimeoutSeconds
		if seconds <= 0 || seconds > 86400 {
			errs = append(errs, field.Invalid(spec.Child("sessionAffinityConfig", "clientIP", "timeoutSeconds"), seconds, "must be between 1 and 86400"))
		}
	default:
		errs = append(errs, field.NotSupported(spec.Child("sessionAffinity"), s.Spec.SessionAffinity,
			[]corev1.ServiceAffinity{corev1.ServiceAffinityClientIP, corev1.ServiceAffinityNone}))
	}
	return errs
}

func checkTrafficPolicies(s *corev1.Service, spec *field.Path) (errs field.ErrorList) {
	sp := &s.Spec
	external := []corev1.ServiceExternalTrafficPolicy{corev1.ServiceExternalTrafficPolicyCluster, corev1.ServiceExternalTrafficPolicyLocal}
	switch path := spec.Child("externalTrafficPolicy"); {
	case !externallyAccessible(s) && sp.ExternalTrafficPolicy != "":
		errs = append(errs, field.Invalid(path, sp.ExternalTrafficPolicy, "may only be set for externally-accessible services"))
	case externallyAccessible(s) && !slices.Contains(external, sp.ExternalTrafficPolicy):
		errs = append(errs, field.NotSupported(path, sp.ExternalTrafficPolicy, external))
	}
	internal := []corev1.ServiceInternalTrafficPolicy{corev1.ServiceInternalTrafficPolicyCluster, corev1.ServiceInternalTrafficPolicyLocal}
	if p := sp.InternalTrafficPolicy; p != nil && !slices.Contains(internal, *p) {
		errs = append(errs, field.NotSupported(spec.Child("internalTrafficPolicy"), *p, internal))
	}
	distribution := []string{corev1.ServiceTrafficDistributionPreferClose, corev1.ServiceTrafficDistributionPreferSameZone, corev1.ServiceTrafficDistributionPreferSameNode}
	if d := sp.TrafficDistribution; d != nil && !slices.Contains(distribution, *d) {
		errs = append(errs, field.NotSupported(spec.Child("trafficDistribution"), *d, distribution))
	}
	if p := sp.HealthCheckNodePort; p != 0 {
		if !wantsHealthCheck(s) {
			errs = append(errs, field.Invalid(spec.Child("healthCheckNodePort"), p, "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'"))
		}
		errs = append(errs, checkPortNumber(p, spec.Child("healthCheckNodePort"))...)
	}
	return errs
}

func checkSourceRanges(s *corev1.Service, path *field.Path) (errs field.ErrorList) {
	if len(s.Spec.LoadBalancerSourceRanges) > 0 && s.Spec.Type != corev1.ServiceTypeLoadBalancer {
		errs = append(errs, field.Forbidden(path, "may only be used when `type` is 'LoadBalancer'"))
	}
	for i, r := range s.Spec.LoadBalancerSourceRanges {
		errs = append(errs, validation.IsValidCIDR(path.Index(i), strings.TrimSpace(r))...)
	}
	return errs
}

// checkRoutableIP refuses the addresses that the API refuses for endpoints and
// externalIPs.
func checkRoutableIP(ip string, at *field.Path) field.ErrorList {
	if errs := validation.IsValidIP(at, ip); len(errs) > 0 {
		return errs
	}
	a := netip.MustParseAddr(ip)
	if a.IsUnspecified() || a.IsLoopback() || a.IsLinkLocalUnicast() || a.IsLinkLocalMulticast() {
		return field.ErrorList{field.Invalid(at, ip, "may not be unspecified, loopback or link-local")}
	}
	return nil
}
