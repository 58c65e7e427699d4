// SPDX-License-Identifier: Apache-2.0

package podspec

import (
	"fmt"
	"net/netip"
	"path"
	"regexp"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Validate holds a Pod against the rules of the API that this runner relies
// on: names that become paths, references within the Pod, values it switches
// on. An API server has checked them, and more; manifests nobody has.
func Validate(pod *corev1.Pod) field.ErrorList {
	v := validator{pod: pod, volumes: map[string]bool{}}
	v.metadata(field.NewPath("metadata"))
	spec := field.NewPath("spec")
	v.spec(spec)
	for i := range pod.Spec.Volumes {
		v.volume(&pod.Spec.Volumes[i], spec.Child("volumes").Index(i))
	}
	if len(pod.Spec.Containers) == 0 {
		v.add(field.Required(spec.Child("containers"), ""))
	}
	names := map[string]bool{}
	index := map[string]int{}
	eachContainer(pod, func(c *corev1.Container, list string) {
		at := spec.Child(list).Index(index[list])
		index[list]++
		if names[c.Name] {
			v.add(field.Duplicate(at.Child("name"), c.Name))
		}
		names[c.Name] = true
		v.container(c, at)
	})
	return v.errs
}

type validator struct {
	pod     *corev1.Pod
	volumes map[string]bool
	errs    field.ErrorList
}

func (v *validator) add(e *field.Error) { v.errs = append(v.errs, e) }

// holds adds an Invalid error for each message.
func (v *validator) holds(at *field.Path, value string, messages []string) {
	for _, m := range messages {
		v.add(field.Invalid(at, value, m))
	}
}

// label requires a DNS label.
func (v *validator) label(at *field.Path, s string) {
	if s == "" {
		v.add(field.Required(at, ""))
		return
	}
	v.holds(at, s, validation.IsDNS1123Label(s))
}

// oneOf requires one of the values; empty is one where it is in the list.
func oneOf[T ~string](v *validator, at *field.Path, s T, list ...T) {
	if !slices.Contains(list, s) {
		v.add(field.NotSupported(at, s, list))
	}
}

var uidForm = regexp.MustCompile(`^[A-Za-z0-9][-A-Za-z0-9.]{0,127}$`)

func (v *validator) metadata(at *field.Path) {
	if v.pod.Name == "" {
		v.add(field.Required(at.Child("name"), ""))
	} else {
		v.holds(at.Child("name"), v.pod.Name, validation.IsDNS1123Subdomain(v.pod.Name))
	}
	v.label(at.Child("namespace"), v.pod.Namespace)
	if uid := string(v.pod.UID); !uidForm.MatchString(uid) {
		v.add(field.Invalid(at.Child("uid"), uid, "must be letters, digits, '-' and '.'"))
	}
}

func (v *validator) spec(at *field.Path) {
	s := &v.pod.Spec
	oneOf(v, at.Child("restartPolicy"), s.RestartPolicy, "", corev1.RestartPolicyAlways, corev1.RestartPolicyOnFailure, corev1.RestartPolicyNever)
	oneOf(v, at.Child("dnsPolicy"), s.DNSPolicy, "", corev1.DNSClusterFirst, corev1.DNSClusterFirstWithHostNet, corev1.DNSDefault, corev1.DNSNone)
	if s.DNSPolicy == corev1.DNSNone && (s.DNSConfig == nil || len(s.DNSConfig.Nameservers) == 0) {
		v.add(field.Required(at.Child("dnsConfig", "nameservers"), "must provide at least one DNS nameserver when `dnsPolicy` is None"))
	}
	if s.ActiveDeadlineSeconds != nil && *s.ActiveDeadlineSeconds < 1 {
		v.add(field.Invalid(at.Child("activeDeadlineSeconds"), *s.ActiveDeadlineSeconds, "must be at least 1"))
	}
	if s.HostPID && is(s.ShareProcessNamespace) {
		v.add(field.Invalid(at.Child("shareProcessNamespace"), true, "ShareProcessNamespace and HostPID cannot both be enabled"))
	}
	for i, a := range s.HostAliases {
		if _, err := netip.ParseAddr(a.IP); err != nil {
			v.add(field.Invalid(at.Child("hostAliases").Index(i).Child("ip"), a.IP, "must be a valid IP address"))
		}
		for j, h := range a.Hostnames {
			v.holds(at.Child("hostAliases").Index(i).Child("hostnames").Index(j), h, validation.IsDNS1123Subdomain(h))
		}
	}
}

func (v *validator) volume(vol *corev1.Volume, at *field.Path) {
	v.label(at.Child("name"), vol.Name)
	if v.volumes[vol.Name] {
		v.add(field.Duplicate(at.Child("name"), vol.Name))
	}
	v.volumes[vol.Name] = true
	if n := sources(&vol.VolumeSource); n > 1 {
		v.add(field.Forbidden(at, "may not specify more than 1 volume type"))
	}
	if h := vol.HostPath; h != nil {
		if h.Path == "" {
			v.add(field.Required(at.Child("hostPath", "path"), ""))
		}
		if slices.Contains(strings.Split(h.Path, "/"), "..") {
			v.add(field.Invalid(at.Child("hostPath", "path"), h.Path, "must not contain '..'"))
		}
	}
	if e := vol.EmptyDir; e != nil && e.SizeLimit != nil && e.SizeLimit.Sign() < 0 {
		v.add(field.Forbidden(at.Child("emptyDir", "sizeLimit"), "SizeLimit field must be a valid resource quantity"))
	}
}

func (v *validator) container(c *corev1.Container, at *field.Path) {
	v.label(at.Child("name"), c.Name)
	if c.Image == "" {
		v.add(field.Required(at.Child("image"), ""))
	} else if strings.TrimSpace(c.Image) != c.Image {
		v.add(field.Invalid(at.Child("image"), c.Image, "must not have leading or trailing whitespace"))
	}
	oneOf(v, at.Child("imagePullPolicy"), c.ImagePullPolicy, "", corev1.PullAlways, corev1.PullIfNotPresent, corev1.PullNever)
	oneOf(v, at.Child("terminationMessagePolicy"), c.TerminationMessagePolicy, "", corev1.TerminationMessageReadFile, corev1.TerminationMessageFallbackToLogsOnError)
	v.ports(c, at.Child("ports"))
	for i, e := range c.Env {
		v.holds(at.Child("env").Index(i).Child("name"), e.Name, validation.IsRelaxedEnvVarName(e.Name))
		if e.Value != "" && e.ValueFrom != nil {
			v.add(field.Invalid(at.Child("env").Index(i).Child("valueFrom"), "", "may not be specified when `value` is not empty"))
		}
	}
	v.mounts(c, at.Child("volumeMounts"))
	for n, request := range c.Resources.Requests {
		if l, ok := c.Resources.Limits[n]; ok && request.Cmp(l) > 0 {
			v.add(field.Invalid(at.Child("resources", "requests"), request.String(), fmt.Sprintf("must be less than or equal to %s limit of %s", n, l.String())))
		}
	}
	if s := c.SecurityContext; s != nil && is(s.Privileged) && s.AllowPrivilegeEscalation != nil && !*s.AllowPrivilegeEscalation {
		v.add(field.Invalid(at.Child("securityContext"), "", "cannot set `allowPrivilegeEscalation` to false and `privileged` to true"))
	}
}

func (v *validator) ports(c *corev1.Container, at *field.Path) {
	for i, p := range c.Ports {
		v.holds(at.Index(i).Child("containerPort"), fmt.Sprint(p.ContainerPort), validation.IsValidPortNum(int(p.ContainerPort)))
		if p.HostPort != 0 {
			v.holds(at.Index(i).Child("hostPort"), fmt.Sprint(p.HostPort), validation.IsValidPortNum(int(p.HostPort)))
		}
		oneOf(v, at.Index(i).Child("protocol"), p.Protocol, "", corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP)
		if p.HostIP != "" {
			if _, err := netip.ParseAddr(p.HostIP); err != nil {
				v.add(field.Invalid(at.Index(i).Child("hostIP"), p.HostIP, "must be a valid IP address"))
			}
		}
	}
}

func (v *validator) mounts(c *corev1.Container, at *field.Path) {
	paths := map[string]bool{}
	for i, m := range c.VolumeMounts {
		if !v.volumes[m.Name] {
			v.add(field.NotFound(at.Index(i).Child("name"), m.Name))
		}
		if m.MountPath == "" {
			v.add(field.Required(at.Index(i).Child("mountPath"), ""))
		}
		if paths[m.MountPath] {
			v.add(field.Invalid(at.Index(i).Child("mountPath"), m.MountPath, "must be unique"))
		}
		paths[m.MountPath] = true
		if m.SubPath != "" && m.SubPathExpr != "" {
			v.add(field.Invalid(at.Index(i).Child("subPathExpr"), m.SubPathExpr, "subPathExpr and subPath are mutually exclusive"))
		}
		for name, s := range map[string]string{"subPath": m.SubPath, "subPathExpr": m.SubPathExpr} {
			if path.IsAbs(s) {
				v.add(field.Invalid(at.Index(i).Child(name), s, "must be a relative path"))
			}
			if slices.Contains(strings.Split(s, "/"), "..") {
				v.add(field.Invalid(at.Index(i).Child(name), s, "must not contain '..'"))
			}
		}
		if p := m.MountPropagation; p != nil {
			oneOf(v, at.Index(i).Child("mountPropagation"), *p, corev1.MountPropagationNone, corev1.MountPropagationHostToContainer, corev1.MountPropagationBidirectional)
			if *p == corev1.MountPropagationBidirectional && (c.SecurityContext == nil || !is(c.SecurityContext.Privileged)) {
				v.add(field.Forbidden(at.Index(i).Child("mountPropagation"), "Bidirectional mount propagation is available only to privileged containers"))
			}
		}
	}
}
