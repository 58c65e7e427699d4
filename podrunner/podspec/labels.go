// SPDX-License-Identifier: Apache-2.0

package podspec

import (
	"encoding/json"
	"fmt"
	"hash/fnv"
	"maps"
	"path/filepath"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Labels of sandboxes and containers, the kubelet's own: cadvisor, crictl and
// log collectors read them.
const (
	LabelPodName       = "io.kubernetes.pod.name"
	LabelPodNamespace  = "io.kubernetes.pod.namespace"
	LabelPodUID        = "io.kubernetes.pod.uid"
	LabelContainerName = "io.kubernetes.container.name"
)

// Annotations of containers. All that must be known of a container after a
// restart of the agent is in them; the runtime keeps them.
const (
	annotationHash                     = "io.kubernetes.container.hash"
	annotationRestartCount             = "io.kubernetes.container.restartCount"
	annotationTerminationMessagePath   = "io.kubernetes.container.terminationMessagePath"
	annotationTerminationMessagePolicy = "io.kubernetes.container.terminationMessagePolicy"
	annotationPreStop                  = "io.kubernetes.container.preStopHandler"
	annotationPorts                    = "io.kubernetes.container.ports"
	annotationDeletionGrace            = "io.kubernetes.pod.deletionGracePeriod"
	annotationTerminationGrace         = "io.kubernetes.pod.terminationGracePeriod"
	// annotationResources has the resources the container was last given.
	annotationResources = "fairlead.dev/container.resources"
	// annotationPodHash, on the sandbox, is PodHash.
	annotationPodHash = "fairlead.dev/pod.hash"
)

// SandboxInfo is what a sandbox's labels and annotations say.
type SandboxInfo struct {
	Namespace, Name string
	UID             types.UID
	// Labels and Annotations are the Pod's own.
	Labels, Annotations map[string]string
	// PodHash is PodHash of the Pod it was made for; 0 where it is not said.
	PodHash uint64
}

// ContainerInfo is what a container's labels and annotations say.
type ContainerInfo struct {
	Namespace, Pod, Name string
	UID                  types.UID
	// Hash is ContainerHash of what it was made from.
	Hash                     uint64
	RestartCount             int
	TerminationMessagePath   string
	TerminationMessagePolicy corev1.TerminationMessagePolicy
	// DeletionGraceSeconds and TerminationGraceSeconds are the Pod's, when
	// the container was made; nil where it had none.
	DeletionGraceSeconds, TerminationGraceSeconds *int64
	PreStop                                       *corev1.LifecycleHandler
	Ports                                         []corev1.ContainerPort
	// Resources are the Pod's for this container when it was made; nil where
	// it is not said. A later resize is not in them.
	Resources *corev1.ResourceRequirements
}

func sandboxLabels(pod *corev1.Pod) map[string]string {
	l := make(map[string]string, len(pod.Labels)+3)
	maps.Copy(l, pod.Labels)
	l[LabelPodName], l[LabelPodNamespace], l[LabelPodUID] = pod.Name, pod.Namespace, string(pod.UID)
	return l
}

func sandboxAnnotations(pod *corev1.Pod) map[string]string {
	a := make(map[string]string, len(pod.Annotations)+1)
	maps.Copy(a, pod.Annotations)
	a[annotationPodHash] = strconv.FormatUint(PodHash(pod), 16)
	return a
}

func containerLabels(pod *corev1.Pod, c *corev1.Container) map[string]string {
	return map[string]string{
		LabelPodName:       pod.Name,
		LabelPodNamespace:  pod.Namespace,
		LabelPodUID:        string(pod.UID),
		LabelContainerName: c.Name,
	}
}

func containerAnnotations(pod *corev1.Pod, c *corev1.Container, restarts int) map[string]string {
	a := map[string]string{
		annotationHash:                     strconv.FormatUint(ContainerHash(c), 16),
		annotationRestartCount:             strconv.Itoa(restarts),
		annotationTerminationMessagePath:   c.TerminationMessagePath,
		annotationTerminationMessagePolicy: string(c.TerminationMessagePolicy),
		annotationResources:                encode(c.Resources),
	}
	if s := pod.DeletionGracePeriodSeconds; s != nil {
		a[annotationDeletionGrace] = strconv.FormatInt(*s, 10)
	}
	if s := pod.Spec.TerminationGracePeriodSeconds; s != nil {
		a[annotationTerminationGrace] = strconv.FormatInt(*s, 10)
	}
	if c.Lifecycle != nil && c.Lifecycle.PreStop != nil {
		a[annotationPreStop] = encode(c.Lifecycle.PreStop)
	}
	if len(c.Ports) > 0 {
		a[annotationPorts] = encode(c.Ports)
	}
	return a
}

// ParseSandbox reads what Sandbox wrote. It fails where the sandbox is not
// one of a Pod.
func ParseSandbox(labels, annotations map[string]string) (SandboxInfo, error) {
	i := SandboxInfo{
		Namespace: labels[LabelPodNamespace], Name: labels[LabelPodName], UID: types.UID(labels[LabelPodUID]),
		Labels: map[string]string{}, Annotations: map[string]string{},
	}
	if i.Namespace == "" || i.Name == "" || i.UID == "" {
		return i, fmt.Errorf("sandbox without the labels %s, %s and %s", LabelPodNamespace, LabelPodName, LabelPodUID)
	}
	maps.Copy(i.Labels, labels)
	for _, l := range []string{LabelPodName, LabelPodNamespace, LabelPodUID} {
		delete(i.Labels, l)
	}
	maps.Copy(i.Annotations, annotations)
	delete(i.Annotations, annotationPodHash)
	i.PodHash, _ = strconv.ParseUint(annotations[annotationPodHash], 16, 64)
	return i, nil
}

// ParseContainer reads what Container wrote. It fails where the container is
// not one of a Pod, or where an annotation is not readable; the rest is set.
func ParseContainer(labels, annotations map[string]string) (ContainerInfo, error) {
	i := ContainerInfo{
		Namespace: labels[LabelPodNamespace], Pod: labels[LabelPodName],
		Name: labels[LabelContainerName], UID: types.UID(labels[LabelPodUID]),
		TerminationMessagePath:   annotations[annotationTerminationMessagePath],
		TerminationMessagePolicy: corev1.TerminationMessagePolicy(annotations[annotationTerminationMessagePolicy]),
	}
	if i.Pod == "" || i.Namespace == "" || i.UID == "" || i.Name == "" {
		return i, fmt.Errorf("container without the labels %s, %s, %s and %s",
			LabelPodNamespace, LabelPodName, LabelPodUID, LabelContainerName)
	}
	var bad []string
	for name, read := range map[string]func(string) error{
		annotationHash:             func(s string) (err error) { i.Hash, err = strconv.ParseUint(s, 16, 64); return err },
		annotationRestartCount:     func(s string) (err error) { i.RestartCount, err = strconv.Atoi(s); return err },
		annotationDeletionGrace:    seconds(&i.DeletionGraceSeconds),
		annotationTerminationGrace: seconds(&i.TerminationGraceSeconds),
		annotationPreStop:          decode(&i.PreStop),
		annotationPorts:            decode(&i.Ports),
		annotationResources:        decode(&i.Resources),
	} {
		if s, ok := annotations[name]; ok && read(s) != nil {
			bad = append(bad, name)
		}
	}
	if bad != nil {
		return i, fmt.Errorf("container %s of %s/%s: unreadable annotations: %s", i.Name, i.Namespace, i.Pod, strings.Join(bad, ", "))
	}
	return i, nil
}

func seconds(to **int64) func(string) error {
	return func(s string) error {
		n, err := strconv.ParseInt(s, 10, 64)
		if err == nil {
			*to = &n
		}
		return err
	}
}

func decode[T any](to *T) func(string) error {
	return func(s string) error { return json.Unmarshal([]byte(s), to) }
}

func encode(v any) string {
	b, err := json.Marshal(v)
	if err != nil { // types of the API marshal
		panic(err)
	}
	return string(b)
}

// ContainerHash changes when a running container must be made anew: with its
// name or its image, as the kubelet's does. All other fields of a Pod are
// immutable or (resources) changed in place.
func ContainerHash(c *corev1.Container) uint64 {
	return hash(c.Name, c.Image)
}

// PodHash changes with anything of the Pod that makes it another one, where
// no API server forbids the change (manifests in a directory): its whole spec
// but what may change in place (resources, activeDeadlineSeconds, grace,
// ephemeral containers, tolerations, scheduling), its labels and annotations.
func PodHash(pod *corev1.Pod) uint64 {
	s := pod.Spec.DeepCopy()
	s.ActiveDeadlineSeconds, s.TerminationGracePeriodSeconds, s.EphemeralContainers = nil, nil, nil
	s.Tolerations, s.NodeName, s.SchedulingGates, s.Affinity, s.NodeSelector = nil, "", nil, nil, nil
	s.Priority, s.PreemptionPolicy, s.Resources = nil, nil, nil
	for _, cs := range [][]corev1.Container{s.Containers, s.InitContainers} {
		for i := range cs {
			cs[i].Resources = corev1.ResourceRequirements{}
		}
	}
	return hash(encode(s), encode(pod.Labels), encode(pod.Annotations))
}

func hash(parts ...string) uint64 {
	h := fnv.New64a()
	for _, p := range parts {
		fmt.Fprintf(h, "%d:%s", len(p), p)
	}
	return h.Sum64()
}

// LogDir returns the directory of a Pod's logs.
func LogDir(pod *corev1.Pod, f *Facts) string {
	return filepath.Join(f.logRoot(), pod.Namespace+"_"+pod.Name+"_"+string(pod.UID))
}

// LogPath returns the path of a container's log relative to LogDir.
func LogPath(container string, restarts int) string {
	return filepath.Join(container, strconv.Itoa(restarts)+".log")
}

// ParseLogDir returns the Pod that a directory's name (LogDir's last element)
// belongs to; ok is false where it is not such a name.
func ParseLogDir(name string) (key types.NamespacedName, uid types.UID, ok bool) {
	p := strings.Split(name, "_")
	if len(p) != 3 || p[0] == "" || p[1] == "" || p[2] == "" {
		return key, "", false
	}
	return types.NamespacedName{Namespace: p[0], Name: p[1]}, types.UID(p[2]), true
}
