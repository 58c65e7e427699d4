// SPDX-License-Identifier: Apache-2.0

package podspec

import (
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// CgroupParent returns a Pod's cgroup as the runtime wants it named: below
// the cgroup of its class, Guaranteed Pods directly below the root.
func CgroupParent(pod *corev1.Pod, f *Facts) string {
	return cgroupName(f, append(classPath(QOS(pod)), "pod"+string(pod.UID)))
}

// ClassCgroup returns the cgroup that Pods of a class are in.
func ClassCgroup(class corev1.PodQOSClass, f *Facts) string {
	return cgroupName(f, classPath(class))
}

// PodOfCgroup returns the Pod whose cgroup has this last path element, "" for
// none.
func PodOfCgroup(name string) types.UID {
	name, systemd := strings.CutSuffix(name, ".slice")
	if systemd {
		i := strings.LastIndex(name, "-")
		name = strings.ReplaceAll(name[i+1:], "_", "-")
	}
	uid, ok := strings.CutPrefix(name, "pod")
	if !ok {
		return ""
	}
	return types.UID(uid)
}

func classPath(class corev1.PodQOSClass) []string {
	switch class {
	case corev1.PodQOSBurstable:
		return []string{"burstable"}
	case corev1.PodQOSBestEffort:
		return []string{"besteffort"}
	}
	return nil
}

// cgroupName joins path elements below the root as the driver does: with
// systemd each level is a slice that repeats the names above it.
func cgroupName(f *Facts, below []string) string {
	parts := append(strings.FieldsFunc(f.cgroupRoot(), func(r rune) bool { return r == '/' }), below...)
	if f.CgroupDriver != "systemd" {
		return "/" + strings.Join(parts, "/")
	}
	var path, prefix strings.Builder
	for i, p := range parts {
		if i > 0 {
			prefix.WriteByte('-')
		}
		prefix.WriteString(strings.ReplaceAll(p, "-", "_"))
		path.WriteString("/" + prefix.String() + ".slice")
	}
	return path.String()
}
