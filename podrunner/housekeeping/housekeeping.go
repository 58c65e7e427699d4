// SPDX-License-Identifier: Apache-2.0

// Package housekeeping keeps a node from filling up: it rotates the logs of
// containers, removes images that nobody uses, ends Pods that take more of the
// disk than they may, and, where the node itself runs short of disk or memory,
// removes what can be had again and then ends Pods, in the kubelet's order and
// words. It refuses to know how a Pod is run or ended, and keeps no state on
// disk: what it remembers is when an image was last seen in use.
package housekeeping

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"fairlead.dev/podrunner/cri"
	"fairlead.dev/podrunner/node"
)

// Pods are those of the node, and what may be done about them: a
// *podrunner.Runner.
type Pods interface {
	// Pods with their current status; they are the caller's.
	Pods() []*corev1.Pod
	// Evict ends a Pod: its phase becomes Failed. It does not wait.
	Evict(uid types.UID, reason, message string, grace time.Duration)
	// Runtime is the container runtime, nil before it was reached.
	Runtime() *cri.Client
}

// Volumes tell what those of a Pod take, in bytes by name: a *volume.Manager.
type Volumes interface {
	Usage(uid types.UID) (map[string]int64, error)
}

// EventSink takes Events about Pods and the Node: a part of client-go's
// record.EventRecorder. It must not block.
type EventSink interface {
	Event(object runtime.Object, eventType, reason, message string)
}

type noEvents struct{}

func (noEvents) Event(runtime.Object, string, string, string) {}

// Options are what a Keeper is made from. Pods, Volumes and NodeName are
// needed; zero values of the others stand for the defaults that are named,
// which are the kubelet's.
type Options struct {
	Pods     Pods
	Volumes  Volumes
	NodeName string
	// Events default to none.
	Events EventSink
	// Pressure is told of what the Keeper finds, so that the Node's conditions
	// show it, and for how long. Default: nobody is told.
	Pressure *node.Gauge
	// StatusKept: an API server keeps the status of Pods that have finished, so
	// all containers of theirs may go when the disk is short. Else the newest of
	// each name stays: only it tells that the Pod has run.
	StatusKept bool

	// Root is where volumes are, an absolute path; its filesystem is the node's.
	// Default /var/lib/fairlead.
	Root string
	// LogRoot is where the logs of Pods are. Default /var/log/pods.
	LogRoot string

	// Interval is how often logs, limits and pressure are looked at. Default 10 s.
	Interval time.Duration
	// LogMaxBytes is the size of a container's log from which on it is rotated
	// (containerLogMaxSize); it may get larger within an Interval. Negative: logs
	// are not rotated. Default 10 Mi.
	LogMaxBytes int64
	// LogMaxFiles is how many files a log may have, the present one included
	// (containerLogMaxFiles); at least 2. Default 5.
	LogMaxFiles int

	// ImageInterval is how often images are looked at. Default 5 min.
	ImageInterval time.Duration
	// From ImageHighPercent of the image filesystem on, images are removed until
	// ImageLowPercent are in use. 100: not before the disk is short. Defaults 85
	// and 80 %.
	ImageHighPercent, ImageLowPercent int
	// ImageMinAge is how long an image is kept after it was first seen. Default
	// 2 min. One that was there when the Keeper began is old enough.
	ImageMinAge time.Duration
	// KeepImages, names with a tag or digest, are not removed, beside those that
	// the runtime says are pinned and its sandbox image. Default none.
	KeepImages []string
	// KeepImported: images without a digest of a registry are not removed. They
	// were imported by hand, and nobody could get them again.
	KeepImported bool

	// The node is short, and Pods are evicted, where less than this is available
	// (evictionHard). Negative: never for that reason. Defaults: 100 Mi of memory
	// (MemAvailable); of the bytes of Root's filesystem 10 %, of those of the
	// images' 15 %, of the inodes of either 5 %.
	LeastMemoryBytes                                        int64
	LeastNodePercent, LeastImagePercent, LeastInodesPercent int

	// Logger takes what an operator should read. Default slog.Default().
	Logger *slog.Logger
}

// Keeper keeps a node. All it does is done by the goroutine that calls Run.
type Keeper struct {
	o   Options
	log *slog.Logger

	now    func() time.Time
	disk   func(dir string) (disk, error)
	memory func() (available int64, err error)

	logs       map[string]*logFile // of running containers, by ID
	images     map[string]*image   // by ID
	imageNames map[string]string   // IDs by any name; "" for one that no image has
	imagesDue  time.Time
	imageDir   string                  // where the runtime has them; "" : not known
	limitsDue  map[types.UID]time.Time // when a Pod that has limits is measured again
	evicting   map[types.UID]time.Time // since when
}

// New checks the options.
func New(o Options) (*Keeper, error) {
	if o.Pods == nil || o.Volumes == nil || o.NodeName == "" {
		return nil, errors.New("housekeeping: Pods, Volumes and NodeName must be set")
	}
	set(&o.Root, "/var/lib/fairlead")
	set(&o.LogRoot, "/var/log/pods")
	set(&o.Interval, 10*time.Second)
	set(&o.LogMaxBytes, 10<<20)
	set(&o.LogMaxFiles, 5)
	set(&o.ImageInterval, 5*time.Minute)
	set(&o.ImageHighPercent, 85)
	set(&o.ImageLowPercent, 80)
	set(&o.ImageMinAge, 2*time.Minute)
	set(&o.LeastMemoryBytes, 100<<20)
	set(&o.LeastNodePercent, 10)
	set(&o.LeastImagePercent, 15)
	set(&o.LeastInodesPercent, 5)
	if o.Events == nil {
		o.Events = noEvents{}
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	switch {
	case !filepath.IsAbs(o.Root) || !filepath.IsAbs(o.LogRoot):
		return nil, fmt.Errorf("housekeeping: Root %q and LogRoot %q must be absolute paths", o.Root, o.LogRoot)
	case o.Interval < 0 || o.ImageInterval < 0 || o.ImageMinAge < 0:
		return nil, errors.New("housekeeping: a time is negative")
	case o.LogMaxFiles < 2:
		return nil, fmt.Errorf("housekeeping: invalid LogMaxFiles %d, must be > 1", o.LogMaxFiles)
	case max(o.LeastNodePercent, o.LeastImagePercent, o.LeastInodesPercent) > 100:
		return nil, errors.New("housekeeping: a threshold is more than 100 %")
	case o.ImageLowPercent < 0 || o.ImageHighPercent > 100 || o.ImageLowPercent > o.ImageHighPercent:
		return nil, fmt.Errorf("housekeeping: ImageLowPercent %d and ImageHighPercent %d must be in range [0-100], the low one not above the high one",
			o.ImageLowPercent, o.ImageHighPercent)
	}
	return &Keeper{
		o: o, log: o.Logger, now: time.Now, disk: measureDisk, memory: measureMemory,
		logs: map[string]*logFile{}, images: map[string]*image{}, imageNames: map[string]string{},
		limitsDue: map[types.UID]time.Time{}, evicting: map[types.UID]time.Time{},
	}, nil
}

func set[T comparable](v *T, to T) {
	var zero T
	if *v == zero {
		*v = to
	}
}

// Run keeps the node until ctx ends; then it returns nil. It waits for a
// runtime that is not there yet.
func (k *Keeper) Run(ctx context.Context) error {
	ticker := time.NewTicker(k.o.Interval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
			k.round(ctx)
		}
	}
}

// round looks at everything that is due. Where the runtime does not answer
// nothing is done: without knowing what runs, all would be a guess.
func (k *Keeper) round(ctx context.Context) {
	c := k.o.Pods.Runtime()
	if c == nil {
		return
	}
	ctx = cri.Quiet(ctx)
	containers, err := c.Runtime.ListContainers(ctx, nil)
	if err != nil {
		k.log.Debug("housekeeping: list containers", "error", err)
		return
	}
	k.rotateLogs(ctx, c, containers)
	k.noteImages(ctx, c, containers)
	pods := k.o.Pods.Pods()
	k.forgetEvicted(pods)
	dedicated := k.dedicatedImages(ctx, c)
	running := runningOf(containers)
	if !k.enforceLimits(ctx, c, pods, running, dedicated) {
		k.relieve(ctx, c, pods, running, dedicated)
	}
	if now := k.now(); !now.Before(k.imagesDue) {
		k.imagesDue = now.Add(k.o.ImageInterval)
		k.collectImages(ctx, c)
	}
}

// runningOf are the IDs of the containers that run.
func runningOf(containers []*runtimeapi.Container) map[string]bool {
	ids := map[string]bool{}
	for _, c := range containers {
		if c.State == runtimeapi.ContainerState_CONTAINER_RUNNING {
			ids[c.Id] = true
		}
	}
	return ids
}

// nodeEvent is about the Node. Its UID is its name, as in the kubelet's Events.
func (k *Keeper) nodeEvent(reason, message string) {
	k.o.Events.Event(&corev1.ObjectReference{
		APIVersion: "v1", Kind: "Node", Name: k.o.NodeName, UID: types.UID(k.o.NodeName),
	}, corev1.EventTypeWarning, reason, message)
}
