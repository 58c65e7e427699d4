// SPDX-License-Identifier: Apache-2.0

package podspec

import (
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// ImageUser is the user of an image as the runtime reports it
// (runtimeapi.Image: Uid, or Username where it is a name). Neither is root.
type ImageUser struct {
	UID  *int64
	Name string
}

// What of /proc and /sys a container does not see, or cannot change, unless
// its procMount is Unmasked: what container engines hide by default.
var (
	maskedPaths = []string{
		"/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
		"/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware",
		"/sys/devices/virtual/powercap",
	}
	readonlyPaths = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
)

// effective returns a container's security context, with the Pod's where the
// container does not say.
func effective(pod *corev1.Pod, c *corev1.Container) *corev1.SecurityContext {
	e := new(corev1.SecurityContext)
	if c.SecurityContext != nil {
		*e = *c.SecurityContext
	}
	p := pod.Spec.SecurityContext
	if p == nil {
		return e
	}
	e.SELinuxOptions = or(e.SELinuxOptions, p.SELinuxOptions)
	e.RunAsUser = or(e.RunAsUser, p.RunAsUser)
	e.RunAsGroup = or(e.RunAsGroup, p.RunAsGroup)
	e.RunAsNonRoot = or(e.RunAsNonRoot, p.RunAsNonRoot)
	e.SeccompProfile = or(e.SeccompProfile, p.SeccompProfile)
	return e
}

func or[T any](a, b *T) *T {
	if a != nil {
		return a
	}
	return b
}

func is(b *bool) bool { return b != nil && *b }

func containerSecurity(pod *corev1.Pod, c *corev1.Container, in ContainerInput, f *Facts) (*runtimeapi.LinuxContainerSecurityContext, error) {
	e := effective(pod, c)
	if err := verifyNonRoot(pod, c, e, in.ImageUser); err != nil {
		return nil, err
	}
	groups, policy, err := supplementalGroups(pod)
	if err != nil {
		return nil, err
	}
	s := &runtimeapi.LinuxContainerSecurityContext{
		Privileged:               is(e.Privileged),
		ReadonlyRootfs:           is(e.ReadOnlyRootFilesystem),
		NoNewPrivs:               e.AllowPrivilegeEscalation != nil && !*e.AllowPrivilegeEscalation,
		NamespaceOptions:         namespaces(pod),
		SupplementalGroups:       groups,
		SupplementalGroupsPolicy: policy,
		SelinuxOptions:           selinux(e.SELinuxOptions),
		RunAsUser:                int64Value(e.RunAsUser),
		RunAsGroup:               int64Value(e.RunAsGroup),
		Capabilities:             capabilities(e.Capabilities),
	}
	if e.RunAsUser == nil {
		s.RunAsUser, s.RunAsUsername = int64Value(in.ImageUser.UID), in.ImageUser.Name
		if s.RunAsUser == nil && s.RunAsUsername == "" {
			s.RunAsUser = &runtimeapi.Int64Value{}
		}
	}
	if s.Seccomp, err = seccomp(e.SeccompProfile, f); err != nil {
		return nil, err
	}
	if s.Apparmor, err = apparmor(pod, c); err != nil {
		return nil, err
	}
	//lint:ignore SA1019 containerd 1.6 reads this one
	s.ApparmorProfile = deprecatedApparmor(s.Apparmor)
	if e.ProcMount == nil || *e.ProcMount != corev1.UnmaskedProcMount {
		s.MaskedPaths, s.ReadonlyPaths = slices.Concat(maskedPaths, f.MaskedPaths), readonlyPaths
	}
	if in.TargetID != "" && s.NamespaceOptions.Pid == runtimeapi.NamespaceMode_CONTAINER {
		s.NamespaceOptions.Pid, s.NamespaceOptions.TargetId = runtimeapi.NamespaceMode_TARGET, in.TargetID
	}
	return s, nil
}

// verifyNonRoot holds runAsNonRoot against the user that will be.
func verifyNonRoot(pod *corev1.Pod, c *corev1.Container, e *corev1.SecurityContext, image ImageUser) error {
	where := fmt.Sprintf("(pod: %q, container: %s)", describe(pod), c.Name)
	uid := image.UID
	switch {
	case !is(e.RunAsNonRoot):
		return nil
	case e.RunAsUser != nil && *e.RunAsUser == 0:
		return fmt.Errorf("container's runAsUser breaks non-root policy %s", where)
	case e.RunAsUser != nil:
		return nil
	case uid == nil && image.Name != "":
		return fmt.Errorf("container has runAsNonRoot and image has non-numeric user (%s), cannot verify user is non-root %s", image.Name, where)
	case uid == nil || *uid == 0:
		return fmt.Errorf("container has runAsNonRoot and image will run as root %s", where)
	}
	if errs := validation.IsValidUserID(*uid); len(errs) > 0 {
		return fmt.Errorf("container has runAsNonRoot and image has an invalid user id (%d). (Must be 1-(%d)): %s %s",
			*uid, math.MaxInt32, strings.Join(errs, "; "), where)
	}
	return nil
}

// supplementalGroups are the Pod's fsGroup and its supplementalGroups.
func supplementalGroups(pod *corev1.Pod) (groups []int64, policy runtimeapi.SupplementalGroupsPolicy, err error) {
	p := pod.Spec.SecurityContext
	if p == nil {
		return nil, 0, nil
	}
	if p.FSGroup != nil {
		groups = append(groups, *p.FSGroup)
	}
	groups = append(groups, p.SupplementalGroups...)
	if p.SupplementalGroupsPolicy != nil {
		v, ok := runtimeapi.SupplementalGroupsPolicy_value[string(*p.SupplementalGroupsPolicy)]
		if !ok {
			return nil, 0, fmt.Errorf("unsupported supplementalGroupsPolicy: %s", *p.SupplementalGroupsPolicy)
		}
		policy = runtimeapi.SupplementalGroupsPolicy(v)
	}
	return groups, policy, nil
}

func namespaces(pod *corev1.Pod) *runtimeapi.NamespaceOption {
	o := &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER}
	if pod.Spec.HostNetwork {
		o.Network = runtimeapi.NamespaceMode_NODE
	}
	if pod.Spec.HostIPC {
		o.Ipc = runtimeapi.NamespaceMode_NODE
	}
	switch {
	case pod.Spec.HostPID:
		o.Pid = runtimeapi.NamespaceMode_NODE
	case is(pod.Spec.ShareProcessNamespace):
		o.Pid = runtimeapi.NamespaceMode_POD
	}
	return o
}

func seccomp(p *corev1.SeccompProfile, f *Facts) (*runtimeapi.SecurityProfile, error) {
	s := &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Unconfined}
	switch {
	case p == nil && f.SeccompDefault, p != nil && p.Type == corev1.SeccompProfileTypeRuntimeDefault:
		s.ProfileType = runtimeapi.SecurityProfile_RuntimeDefault
	case p != nil && p.Type == corev1.SeccompProfileTypeLocalhost:
		if p.LocalhostProfile == nil || *p.LocalhostProfile == "" {
			return nil, errors.New("localhostProfile must be set if seccompProfile type is Localhost")
		}
		if !filepath.IsLocal(*p.LocalhostProfile) {
			return nil, fmt.Errorf("localhostProfile %q must be a relative path without '..'", *p.LocalhostProfile)
		}
		s.ProfileType, s.LocalhostRef = runtimeapi.SecurityProfile_Localhost, filepath.Join(f.seccompRoot(), *p.LocalhostProfile)
	}
	return s, nil
}

// apparmor returns nil where nothing is said: the runtime's default, where
// the kernel has AppArmor.
func apparmor(pod *corev1.Pod, c *corev1.Container) (*runtimeapi.SecurityProfile, error) {
	var p *corev1.AppArmorProfile
	if pod.Spec.SecurityContext != nil {
		p = pod.Spec.SecurityContext.AppArmorProfile
	}
	p = or(annotatedApparmor(pod, c.Name), p)
	if c.SecurityContext != nil {
		p = or(c.SecurityContext.AppArmorProfile, p)
	}
	if p == nil {
		return nil, nil
	}
	switch p.Type {
	case corev1.AppArmorProfileTypeRuntimeDefault:
		return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}, nil
	case corev1.AppArmorProfileTypeUnconfined:
		return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Unconfined}, nil
	case corev1.AppArmorProfileTypeLocalhost:
		if p.LocalhostProfile == nil || *p.LocalhostProfile == "" {
			return nil, errors.New("missing localhost apparmor profile name")
		}
		return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: *p.LocalhostProfile}, nil
	}
	return nil, fmt.Errorf("unknown apparmor profile type: %q", p.Type)
}

// annotatedApparmor is the old form, which manifests in a directory may have.
func annotatedApparmor(pod *corev1.Pod, container string) *corev1.AppArmorProfile {
	v, ok := pod.Annotations[corev1.DeprecatedAppArmorBetaContainerAnnotationKeyPrefix+container]
	name, local := strings.CutPrefix(v, corev1.DeprecatedAppArmorBetaProfileNamePrefix)
	switch {
	case !ok:
		return nil
	case v == corev1.DeprecatedAppArmorBetaProfileRuntimeDefault:
		return &corev1.AppArmorProfile{Type: corev1.AppArmorProfileTypeRuntimeDefault}
	case v == corev1.DeprecatedAppArmorBetaProfileNameUnconfined:
		return &corev1.AppArmorProfile{Type: corev1.AppArmorProfileTypeUnconfined}
	case local:
		return &corev1.AppArmorProfile{Type: corev1.AppArmorProfileTypeLocalhost, LocalhostProfile: &name}
	}
	return nil
}

func deprecatedApparmor(p *runtimeapi.SecurityProfile) string {
	switch {
	case p == nil:
		return ""
	case p.ProfileType == runtimeapi.SecurityProfile_RuntimeDefault:
		return corev1.DeprecatedAppArmorBetaProfileRuntimeDefault
	case p.ProfileType == runtimeapi.SecurityProfile_Unconfined:
		return corev1.DeprecatedAppArmorBetaProfileNameUnconfined
	}
	return corev1.DeprecatedAppArmorBetaProfileNamePrefix + p.LocalhostRef
}

func capabilities(c *corev1.Capabilities) *runtimeapi.Capability {
	if c == nil {
		return nil
	}
	r := new(runtimeapi.Capability)
	for _, a := range c.Add {
		r.AddCapabilities = append(r.AddCapabilities, string(a))
	}
	for _, d := range c.Drop {
		r.DropCapabilities = append(r.DropCapabilities, string(d))
	}
	return r
}

func selinux(o *corev1.SELinuxOptions) *runtimeapi.SELinuxOption {
	if o == nil {
		return nil
	}
	return &runtimeapi.SELinuxOption{User: o.User, Role: o.Role, Type: o.Type, Level: o.Level}
}

func int64Value(p *int64) *runtimeapi.Int64Value {
	if p == nil {
		return nil
	}
	return &runtimeapi.Int64Value{Value: *p}
}
