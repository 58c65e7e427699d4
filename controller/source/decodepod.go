// SPDX-License-Identifier: Apache-2.0

package source

import (
	"cmp"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// checkPod validates what the proxying of a Pod reads, and that there is
// something to run; a runner of Pods checks the rest of its spec.
func checkPod(p *corev1.Pod) (errs field.ErrorList) {
	spec := field.NewPath("spec")
	p.Spec.RestartPolicy = cmp.Or(p.Spec.RestartPolicy, corev1.RestartPolicyAlways)
	if len(p.Spec.Containers) == 0 {
		errs = append(errs, field.Required(spec.Child("containers"), ""))
	}
	names := map[string]bool{}
	errs = append(errs, checkContainers(p, p.Spec.Containers, names, spec.Child("containers"))...)
	errs = append(errs, checkContainers(p, p.Spec.InitContainers, names, spec.Child("initContainers"))...)
	status := field.NewPath("status")
	if p.Status.PodIP != "" {
		errs = append(errs, checkRoutableIP(p.Status.PodIP, status.Child("podIP"))...)
	}
	for i, ip := range p.Status.PodIPs {
		errs = append(errs, checkRoutableIP(ip.IP, status.Child("podIPs").Index(i).Child("ip"))...)
	}
	return errs
}

func checkContainers(p *corev1.Pod, containers []corev1.Container, names map[string]bool, path *field.Path) (errs field.ErrorList) {
	for i := range containers {
		c, at := &containers[i], path.Index(i)
		errs = append(errs, checkPortName(c.Name, names, at.Child("name"))...)
		if c.Image == "" {
			errs = append(errs, field.Required(at.Child("image"), ""))
		}
		for j := range c.Ports {
			port, at := &c.Ports[j], at.Child("ports").Index(j)
			port.Protocol = cmp.Or(port.Protocol, corev1.ProtocolTCP)
			if p.Spec.HostNetwork {
				port.HostPort = cmp.Or(port.HostPort, port.ContainerPort)
			}
			errs = append(errs, checkPortNumber(port.ContainerPort, at.Child("containerPort"))...)
			if port.HostPort != 0 {
				errs = append(errs, checkPortNumber(port.HostPort, at.Child("hostPort"))...)
			}
			if port.HostIP != "" {
				errs = append(errs, validation.IsValidIP(at.Child("hostIP"), port.HostIP)...)
			}
			errs = append(errs, checkProtocol(port.Protocol, at.Child("protocol"))...)
		}
	}
	return errs
}

// checkNode has nothing to add to the metadata.
func checkNode(*corev1.Node) field.ErrorList { return nil }

func checkConfigMap(c *corev1.ConfigMap) (errs field.ErrorList) {
	for k := range c.Data {
		errs = append(errs, checkDataKey(k, "data")...)
		if _, both := c.BinaryData[k]; both {
			errs = append(errs, field.Duplicate(field.NewPath("binaryData").Key(k), k))
		}
	}
	for k := range c.BinaryData {
		errs = append(errs, checkDataKey(k, "binaryData")...)
	}
	return errs
}

func checkSecret(s *corev1.Secret) (errs field.ErrorList) {
	s.Type = cmp.Or(s.Type, corev1.SecretTypeOpaque)
	for k := range s.Data {
		errs = append(errs, checkDataKey(k, "data")...)
	}
	for k, v := range s.StringData {
		errs = append(errs, checkDataKey(k, "stringData")...)
		if s.Data == nil {
			s.Data = map[string][]byte{}
		}
		s.Data[k] = []byte(v) // as the API server does
	}
	s.StringData = nil
	return errs
}

func checkDataKey(k, in string) (errs field.ErrorList) {
	for _, msg := range validation.IsConfigMapKey(k) {
		errs = append(errs, field.Invalid(field.NewPath(in).Key(k), k, msg))
	}
	return errs
}
