// SPDX-License-Identifier: Apache-2.0

package podspec

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
)

// Hostname returns a Pod's host name and the domain it is in, "" for none.
func Hostname(pod *corev1.Pod, f *Facts) (name, domain string, err error) {
	if o := pod.Spec.HostnameOverride; o != nil {
		if msgs := validation.IsDNS1123Subdomain(*o); len(msgs) != 0 {
			return "", "", fmt.Errorf("pod HostnameOverride %q is not a valid DNS subdomain: %s", *o, strings.Join(msgs, ";"))
		}
		return shortHostname(*o), "", nil
	}
	name = pod.Name
	if h := pod.Spec.Hostname; h != "" {
		if msgs := validation.IsDNS1123Label(h); len(msgs) != 0 {
			return "", "", fmt.Errorf("pod Hostname %q is not a valid DNS label: %s", h, strings.Join(msgs, ";"))
		}
		name = h
	}
	if s := pod.Spec.Subdomain; s != "" {
		if msgs := validation.IsDNS1123Label(s); len(msgs) != 0 {
			return "", "", fmt.Errorf("pod Subdomain %q is not a valid DNS label: %s", s, strings.Join(msgs, ";"))
		}
		domain = s + "." + pod.Namespace + ".svc." + f.ClusterDomain
	}
	return shortHostname(name), domain, nil
}

// shortHostname cuts a name to what the kernel takes (63 bytes and a zero).
func shortHostname(s string) string {
	if len(s) <= validation.DNS1123LabelMaxLength {
		return s
	}
	return strings.TrimRight(s[:validation.DNS1123LabelMaxLength], "-.")
}

// kernelHostname is what uname(2) says in a Pod: with setHostnameAsFQDN the
// whole name.
func kernelHostname(pod *corev1.Pod, f *Facts) (string, error) {
	const longest = 64
	name, domain, err := Hostname(pod, f)
	if err != nil || domain == "" || pod.Spec.SetHostnameAsFQDN == nil || !*pod.Spec.SetHostnameAsFQDN {
		return name, err
	}
	fqdn := name + "." + domain
	if len(fqdn) > longest {
		return "", fmt.Errorf("failed to construct FQDN from pod hostname and cluster domain, FQDN %s is too long (%d characters is the max, %d characters requested)",
			fqdn, longest, len(fqdn))
	}
	return fqdn, nil
}

// Hosts returns the content of a container's /etc/hosts: the Pod's addresses
// and hostAliases, or for a Pod of the host's network the node's file with
// hostAliases. It is nil where the image's own is to be left: the Pod has no
// address.
func Hosts(pod *corev1.Pod, f *Facts) ([]byte, error) {
	var b strings.Builder
	name, domain, err := Hostname(pod, f)
	switch {
	case err != nil:
		return nil, refuse(ReasonContainerConfig, err)
	case pod.Spec.HostNetwork:
		b.WriteString("# Kubernetes-managed hosts file (host network).\n")
		b.WriteString(f.HostsFile)
	case len(f.PodIPs) == 0:
		return nil, nil
	default:
		b.WriteString("# Kubernetes-managed hosts file.\n" +
			"127.0.0.1\tlocalhost\n" +
			"::1\tlocalhost ip6-localhost ip6-loopback\n" +
			"fe00::0\tip6-localnet\n" +
			"fe00::0\tip6-mcastprefix\n" +
			"fe00::1\tip6-allnodes\n" +
			"fe00::2\tip6-allrouters\n")
		for _, a := range f.PodIPs {
			b.WriteString(a.String() + "\t")
			if domain != "" {
				b.WriteString(name + "." + domain + "\t")
			}
			b.WriteString(name + "\n")
		}
	}
	if len(pod.Spec.HostAliases) > 0 {
		b.WriteString("\n# Entries added by HostAliases.\n")
	}
	for _, a := range pod.Spec.HostAliases {
		b.WriteString(a.IP + "\t" + strings.Join(a.Hostnames, "\t") + "\n")
	}
	return []byte(b.String()), nil
}
