// SPDX-License-Identifier: Apache-2.0

package housekeeping

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	internalapi "k8s.io/cri-api/pkg/apis"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"fairlead.dev/podrunner"
	"fairlead.dev/podrunner/cri"
	"fairlead.dev/podrunner/podspec"
	"fairlead.dev/podrunner/volume"
)

var (
	_ Pods      = (*podrunner.Runner)(nil)
	_ Volumes   = (*volume.Manager)(nil)
	_ EventSink = podrunner.EventSink(nil)
)

// world is a node, its runtime and its Pods, as a test wants them. Calls that
// it does not have panic.
type world struct {
	internalapi.RuntimeService
	internalapi.ImageManagerService

	now        time.Time
	containers []*runtimeapi.Container
	stats      map[string]*runtimeapi.ContainerStats // by container
	images     []*runtimeapi.Image
	sandbox    string // the sandbox image
	pods       []*corev1.Pod
	volumes    map[types.UID]map[string]int64
	node, disk disk // disk: of images
	memory     int64

	listed  int // images
	walked  int // volumes
	took    time.Duration
	removed []string
	evicted map[types.UID]string
	events  []string
	before  func(image string) // called when one is to be removed
}

const gib = 1 << 30

func newWorld(t *testing.T, with ...func(*Options)) (*world, *Keeper) {
	t.Helper()
	w := &world{
		now: time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC), stats: map[string]*runtimeapi.ContainerStats{},
		volumes: map[types.UID]map[string]int64{}, evicted: map[types.UID]string{},
		node: disk{device: 1, capacity: 100 * gib, available: 50 * gib, inodes: 1000, inodesFree: 500}, memory: gib,
	}
	w.disk = w.node
	o := Options{Pods: w, Volumes: w, Events: w, NodeName: "node", Root: "/root", LogRoot: t.TempDir(), LogMaxBytes: -1, Logger: slog.New(slog.DiscardHandler)}
	for _, f := range with {
		f(&o)
	}
	k, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	k.now = func() time.Time { return w.now }
	k.disk = func(dir string) (disk, error) {
		if dir == "/images" {
			return w.disk, nil
		}
		return w.node, nil
	}
	k.memory = func() (int64, error) { return w.memory, nil }
	return w, k
}

// round lets time pass, and the Keeper look.
func (w *world) round(t *testing.T, k *Keeper, later time.Duration) {
	w.now = w.now.Add(later)
	k.round(t.Context())
}

func (w *world) Pods() []*corev1.Pod  { return w.pods }
func (w *world) Runtime() *cri.Client { return &cri.Client{Runtime: w, Images: w} }
func (w *world) Evict(uid types.UID, reason, message string, grace time.Duration) {
	w.evicted[uid] = fmt.Sprintf("%s %v: %s", reason, grace, message)
}
func (w *world) Usage(uid types.UID) (map[string]int64, error) {
	w.walked++
	w.now = w.now.Add(w.took)
	return w.volumes[uid], nil
}
func (w *world) Event(o runtime.Object, kind, reason, message string) {
	r := o.(*corev1.ObjectReference)
	w.events = append(w.events, fmt.Sprintf("%s %s %s %s: %s", r.Kind, r.Name, kind, reason, message))
}

func (w *world) ListContainers(context.Context, *runtimeapi.ContainerFilter) ([]*runtimeapi.Container, error) {
	return slices.Clone(w.containers), nil
}
func (w *world) ListPodSandbox(context.Context, *runtimeapi.PodSandboxFilter) ([]*runtimeapi.PodSandbox, error) {
	return []*runtimeapi.PodSandbox{{Id: "s-done", Labels: map[string]string{podspec.LabelPodUID: "done"}}}, nil
}
func (w *world) RemovePodSandbox(_ context.Context, id string) error {
	w.removed = append(w.removed, "sandbox "+id)
	return nil
}
func (w *world) RemoveContainer(_ context.Context, id string) error {
	w.removed = append(w.removed, "container "+id)
	w.containers = slices.DeleteFunc(w.containers, func(c *runtimeapi.Container) bool { return c.Id == id })
	return nil
}
func (w *world) ListContainerStats(_ context.Context, f *runtimeapi.ContainerStatsFilter) (out []*runtimeapi.ContainerStats, err error) {
	for _, c := range w.containers {
		uid := f.LabelSelector[podspec.LabelPodUID]
		if s := w.stats[c.Id]; s != nil && (uid == "" || uid == c.Labels[podspec.LabelPodUID]) {
			s.Attributes = &runtimeapi.ContainerAttributes{Id: c.Id, Labels: c.Labels}
			out = append(out, s)
		}
	}
	return out, nil
}
func (w *world) Status(context.Context, bool) (*runtimeapi.StatusResponse, error) {
	return &runtimeapi.StatusResponse{Info: map[string]string{"config": `{"sandboxImage": "` + w.sandbox + `"}`}}, nil
}
func (w *world) ListImages(context.Context, *runtimeapi.ImageFilter) ([]*runtimeapi.Image, error) {
	w.listed++
	return slices.Clone(w.images), nil
}
func (w *world) RemoveImage(_ context.Context, i *runtimeapi.ImageSpec) error {
	if i.Image == "stuck" {
		return errors.New("no")
	}
	w.removed = append(w.removed, "image "+i.Image)
	w.images = slices.DeleteFunc(w.images, func(have *runtimeapi.Image) bool { return have.Id == i.Image })
	if w.before != nil {
		w.before(i.Image)
	}
	return nil
}
func (w *world) ImageFsInfo(context.Context) (*runtimeapi.ImageFsInfoResponse, error) {
	return &runtimeapi.ImageFsInfoResponse{ImageFilesystems: []*runtimeapi.FilesystemUsage{{FsId: &runtimeapi.FilesystemIdentifier{Mountpoint: "/images"}}}}, nil
}

func (w *world) image(id string, gibs uint64) *runtimeapi.Image {
	i := &runtimeapi.Image{Id: id, Size: gibs * gib, RepoTags: []string{"example.test/" + id + ":1"}}
	w.images = append(w.images, i)
	return i
}

// container of a Pod (its UID), made from an image.
func (w *world) container(id, uid, name, image string, state runtimeapi.ContainerState) *runtimeapi.Container {
	c := &runtimeapi.Container{Id: id, State: state, ImageRef: image, PodSandboxId: "s-" + uid, Labels: map[string]string{
		podspec.LabelPodUID: uid, podspec.LabelPodName: uid, podspec.LabelPodNamespace: "default", podspec.LabelContainerName: name,
	}}
	w.containers = append(w.containers, c)
	return c
}

func uses(layer, memory uint64) *runtimeapi.ContainerStats {
	return &runtimeapi.ContainerStats{
		WritableLayer: &runtimeapi.FilesystemUsage{UsedBytes: &runtimeapi.UInt64Value{Value: layer}, InodesUsed: &runtimeapi.UInt64Value{Value: layer}},
		Memory:        &runtimeapi.MemoryUsage{WorkingSetBytes: &runtimeapi.UInt64Value{Value: memory}},
	}
}

const (
	running = runtimeapi.ContainerState_CONTAINER_RUNNING
	exited  = runtimeapi.ContainerState_CONTAINER_EXITED
)

// Close is in both services.
func (w *world) Close(context.Context) error { return nil }
