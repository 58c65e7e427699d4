// SPDX-License-Identifier: Apache-2.0

// Package podrunner runs the Pods of this node through a container runtime. It
// is responsible for each Pod's life: one worker per Pod brings what the runtime
// has in line with what the Pod says, whatever it finds there; all state is the
// runtime's, so that a restart of the agent disturbs nothing. It refuses to know
// where Pods come from, what their Services are, and who reads their status.
package podrunner

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"fairlead.dev/podrunner/cri"
	"fairlead.dev/podrunner/objects"
	"fairlead.dev/podrunner/podspec"
	"fairlead.dev/podrunner/probe"
	"fairlead.dev/podrunner/volume"
)

// Options are what a Runner is made from. Socket, Objects, Status and Facts are
// needed; zero values of the others stand for the defaults that are named.
type Options struct {
	NodeName string
	// Root is where volumes are. Default /var/lib/fairlead.
	Root string
	// Socket is the runtime's CRI endpoint, a path or unix:///path.
	Socket  string
	Objects objects.Store
	// Volumes default to those of a Manager below Root.
	Volumes Volumes
	Status  StatusSink
	// Events default to none.
	Events EventSink
	// Facts of the node; PodIPs and Features are set by the Runner.
	Facts func() podspec.Facts
	// Admit says why a Pod cannot be taken beside others, which are not finished,
	// nil where it can. It is asked once before a Pod starts, and for a resize;
	// not for a Pod that was found running. Default: all are taken.
	Admit func(pod *corev1.Pod, others []*corev1.Pod) *podspec.Refused

	// Relist is how often the runtime is asked for what there is, when nothing
	// happens and it has no events. Default 1 s.
	Relist time.Duration
	// RestartBackoff doubles up to RestartBackoffMax for a container that ends
	// again and again, PullBackoff is the first for an image that cannot be
	// pulled. Defaults 10 s, 300 s, 10 s.
	RestartBackoff, RestartBackoffMax, PullBackoff time.Duration
	// Retry is how long the runner waits, doubled up to 16 times as long, after
	// something failed that may go well later. Default 1 s.
	Retry time.Duration
	// CallTimeout is that of one call to the runtime. Default 2 min.
	CallTimeout time.Duration
	// ParallelPulls bounds the pulls of images at once. Default 5.
	ParallelPulls int
	// Logger takes what an operator should read. Default slog.Default().
	Logger *slog.Logger
}

// Volumes are what a Runner needs of volume.Manager.
type Volumes interface {
	SetUp(ctx context.Context, pod *corev1.Pod, f *podspec.Facts) error
	Refresh(ctx context.Context, pod *corev1.Pod, f *podspec.Facts) error
	Mounts(ctx context.Context, pod *corev1.Pod, c *corev1.Container, restarts int, f *podspec.Facts) ([]*runtimeapi.Mount, error)
	EnvFile(pod *corev1.Pod) podspec.EnvFile
	TearDown(ctx context.Context, uid types.UID) error
	ForgetTerminationLog(uid types.UID, container string, restarts int) error
	Known() ([]types.UID, error)
}

// Runner runs Pods. Its methods may be called at any time, OnPod and OnSynced
// also before Run.
type Runner struct {
	o       Options
	log     *slog.Logger
	client  *cri.Client // from Run on, before any worker starts
	volumes Volumes
	puller  *cri.Puller
	prober  *probe.Prober
	cgroups *cgroups
	exits   *exits
	// started is closed when client and the rest are set.
	started chan struct{}
	ready   chan struct{} // closed when the runtime was listed once
	ran     atomic.Bool
	// hurry is when something last happened that will be followed by something
	// else, in nanoseconds since 1970: the runtime is asked more often then.
	hurry    atomic.Int64
	relistCh chan struct{}
	lastList atomic.Pointer[time.Time] // of the runtime; when it was reached, before the first one
	eventsOn atomic.Bool
	can      atomic.Pointer[podspec.Features] // of the runtime

	admitMu sync.Mutex
	mu      sync.Mutex // guards what follows
	ctx     context.Context
	workers map[types.UID]*worker
	current map[types.NamespacedName]types.UID // of what the source has
	synced  bool
	group   sync.WaitGroup
	lists   int // of the runtime, since the source was synced
	listed  map[types.UID]*cri.Listed
	orphans map[types.UID]int
}

// New checks the options.
func New(o Options) (*Runner, error) {
	if o.Socket == "" || o.Objects == nil || o.Status == nil || o.Facts == nil {
		return nil, errors.New("pod runner: Socket, Objects, Status and Facts must be set")
	}
	set(&o.Root, "/var/lib/fairlead")
	set(&o.Relist, time.Second)
	set(&o.RestartBackoff, 10*time.Second)
	set(&o.RestartBackoffMax, 300*time.Second)
	set(&o.PullBackoff, 10*time.Second)
	set(&o.Retry, time.Second)
	set(&o.CallTimeout, cri.DefaultTimeout)
	if o.Events == nil {
		o.Events = noEvents{}
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.Admit == nil {
		o.Admit = func(*corev1.Pod, []*corev1.Pod) *podspec.Refused { return nil }
	}
	if o.Volumes == nil {
		root, err := filepath.Abs(o.Root)
		if err != nil {
			return nil, fmt.Errorf("pod runner: %w", err)
		}
		o.Volumes = volume.New(root, o.Objects, o.Logger)
	}
	r := &Runner{
		o: o, log: o.Logger, volumes: o.Volumes, started: make(chan struct{}), ready: make(chan struct{}), relistCh: make(chan struct{}, 1),
		workers: map[types.UID]*worker{}, current: map[types.NamespacedName]types.UID{}, orphans: map[types.UID]int{},
	}
	r.prober = probe.New(probe.Options{
		Exec: func(ctx context.Context, id string, command []string, timeout time.Duration) ([]byte, int, error) {
			return r.client.Exec(ctx, id, command, timeout)
		},
		Changed:   func(pod types.UID) { r.wake(pod) },
		Unhealthy: r.unhealthy,
		Logger:    o.Logger,
	})
	return r, nil
}

// Run runs Pods until ctx ends; they run on then. It waits for a runtime that
// is not there yet. It can be called once.
func (r *Runner) Run(ctx context.Context) error {
	if r.ran.Swap(true) {
		return errors.New("pod runner: already run")
	}
	var err error
	if r.cgroups, err = findCgroups(r.log); err != nil {
		return err
	}
	if r.client, err = r.connect(ctx); err != nil {
		return nil // ctx has ended
	}
	defer r.client.Close()
	r.exits = newExits(r.cgroups.v2(), r.log, r.exited)
	r.askFeatures(ctx)
	r.puller = cri.NewPuller(r.client, r.o.ParallelPulls, r.o.PullBackoff, r.o.RestartBackoffMax)
	r.listedNow()
	close(r.started)
	stop := r.o.Objects.OnChange(r.objectChanged)
	defer stop()

	var own sync.WaitGroup
	own.Go(func() { r.prober.Run(ctx) })
	own.Go(func() { r.followEvents(ctx) })
	own.Go(func() { r.exits.run(ctx) })
	r.mu.Lock()
	r.ctx = ctx
	for _, w := range r.workers {
		r.launch(w)
	}
	r.mu.Unlock()
	r.relist(ctx)
	r.group.Wait()
	own.Wait()
	return nil
}

// connect waits for the runtime.
func (r *Runner) connect(ctx context.Context) (*cri.Client, error) {
	wait := 100 * time.Millisecond
	for told := false; ; told = true {
		c, err := cri.Open(ctx, r.o.Socket, r.o.CallTimeout)
		if err == nil {
			r.log.Info("container runtime", "name", c.Name(), "version", c.Version())
			return c, nil
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if !told {
			r.log.Warn("no container runtime yet", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(wait):
			wait = min(2*wait, 2*time.Second)
		}
	}
}

// askFeatures asks the runtime what it can do: at the start, and when it answers
// again, since it may be another version then.
func (r *Runner) askFeatures(ctx context.Context) {
	status, err := r.client.Runtime.Status(cri.Quiet(ctx), false)
	if err != nil {
		r.log.Warn("ask the container runtime what it can do", "error", cri.Message(err))
		return
	}
	can := podspec.Features{
		SupplementalGroupsPolicy: status.GetFeatures().GetSupplementalGroupsPolicy(),
		MountOptions:             status.GetFeatures().GetMountOptions(), RecursiveReadOnly: map[string]bool{},
	}
	for _, h := range status.GetRuntimeHandlers() {
		can.RecursiveReadOnly[h.GetName()] = h.GetFeatures().GetRecursiveReadOnlyMounts()
	}
	r.can.Store(&can)
}

func (r *Runner) features() podspec.Features {
	if can := r.can.Load(); can != nil {
		return *can
	}
	return podspec.Features{}
}

// launch starts a worker's goroutine; mu is held, and r.ctx set.
func (r *Runner) launch(w *worker) {
	r.group.Go(func() { w.loop(r.ctx) })
}

// OnPod tells of a Pod of this node, new or changed; nil: it is gone. The Pod is
// copied. One without a UID, from a file, gets one, and defaults.
func (r *Runner) OnPod(key types.NamespacedName, p *corev1.Pod) {
	r.mu.Lock()
	defer r.mu.Unlock()
	old := r.workers[r.current[key]]
	if p == nil {
		delete(r.current, key)
		if old != nil {
			old.next = nil
			old.remove()
		}
		return
	}
	if old != nil && old.same(p) {
		return
	}
	given := p.UID != ""
	p = p.DeepCopy()
	Default(p)
	if !given {
		p.UID = uidOf(r.o.NodeName, p)
		p.Status = corev1.PodStatus{} // of the Pod that had the name before, if any
	}
	if old != nil && old.uid != p.UID {
		old.remove()
	}
	r.current[key] = p.UID
	switch w := r.workers[p.UID]; {
	case w == nil:
		r.begin(key, p, given, old)
	case w.removed():
		w.next = func() { r.begin(key, p, given, nil) } // it came back: when the first one has ended
	default:
		w.set(p, given)
	}
}

// begin makes a worker for a Pod; mu is held. One from a file waits until the
// old one of the same name has ended.
func (r *Runner) begin(key types.NamespacedName, p *corev1.Pod, given bool, old *worker) {
	w := r.newWorker(p.UID, key)
	if !given && old != nil {
		w.after = old.gone
	}
	w.set(p, given)
	r.add(w)
}

// add takes a worker in; mu is held.
func (r *Runner) add(w *worker) {
	r.workers[w.uid] = w
	if l := r.listed[w.uid]; l != nil {
		w.inbox.listed, w.inbox.last, w.inbox.fresh = l, l, true
	}
	if r.ctx != nil && r.ctx.Err() == nil {
		r.launch(w)
	}
}

// OnSynced tells that all Pods that existed at the start were told of. Before
// that nothing unknown is removed.
func (r *Runner) OnSynced() {
	r.mu.Lock()
	r.synced = true
	r.mu.Unlock()
	r.poke()
}

// Settle waits until the Pods that ran already when the Runner began, and were
// told of before, have reported what their probes say: all were asked once. It
// waits for at most that long after the runtime has told what runs, and for that
// withoutRuntime; or until ctx ends.
func (r *Runner) Settle(ctx context.Context, withoutRuntime, atMost time.Duration) {
	timer := time.NewTimer(withoutRuntime)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return
	case <-timer.C:
		r.log.Warn("the container runtime has not told yet what runs: no Pod counts as ready", "waited", withoutRuntime)
		return
	case <-r.ready:
	}
	ctx, cancel := context.WithTimeout(ctx, atMost)
	defer cancel()
	for !r.settled() {
		select {
		case <-ctx.Done():
			r.log.Info("some Pods that ran already have not answered their probes yet", "waited", atMost)
			return
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func (r *Runner) settled() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, w := range r.workers {
		if !w.settled() {
			return false
		}
	}
	return true
}

// Pods are the Pods of this node, those that are being ended too, with their
// current status. They are the caller's.
func (r *Runner) Pods() []*corev1.Pod {
	r.mu.Lock()
	workers := make([]*worker, 0, len(r.workers))
	for _, w := range r.workers {
		workers = append(workers, w)
	}
	r.mu.Unlock()
	pods := make([]*corev1.Pod, 0, len(workers))
	for _, w := range workers {
		if p := w.snapshot(); p != nil {
			pods = append(pods, p)
		}
	}
	return pods
}

// Pod is one of Pods by its key, nil where there is none.
func (r *Runner) Pod(key types.NamespacedName) *corev1.Pod {
	r.mu.Lock()
	w := r.workers[r.current[key]]
	for _, o := range r.workers {
		if w == nil && o.key == key {
			w = o
		}
	}
	r.mu.Unlock()
	if w == nil {
		return nil
	}
	return w.snapshot()
}

// ErrNotFound: there is no such Pod or container.
var ErrNotFound = errors.New("not found")

// Container finds the runtime's ID and the absolute path of the log of a Pod's
// container, with previous of the one before it. uid may be empty.
func (r *Runner) Container(key types.NamespacedName, uid types.UID, container string, previous bool) (id, logPath string, err error) {
	r.mu.Lock()
	if uid == "" {
		uid = r.current[key]
	}
	w := r.workers[uid]
	r.mu.Unlock()
	if w == nil || w.key != key {
		return "", "", fmt.Errorf("pod %q %w", key, ErrNotFound)
	}
	skip := 0
	if previous {
		skip = 1
	}
	return w.container(container, skip)
}

// SandboxID finds the runtime's ID of a Pod's sandbox, for port forwarding.
func (r *Runner) SandboxID(key types.NamespacedName) (string, error) {
	r.mu.Lock()
	w := r.workers[r.current[key]]
	r.mu.Unlock()
	if w == nil {
		return "", fmt.Errorf("pod %q %w", key, ErrNotFound)
	}
	return w.sandboxID()
}

// Runtime is the client of the runtime, nil before it was reached.
func (r *Runner) Runtime() *cri.Client {
	select {
	case <-r.started:
		return r.client
	default:
		return nil
	}
}

// Evict ends a Pod for the reason: its phase becomes Failed. grace is at most
// how long its containers may take.
func (r *Runner) Evict(uid types.UID, reason, message string, grace time.Duration) {
	r.mu.Lock()
	w := r.workers[uid]
	r.mu.Unlock()
	if w != nil {
		w.evict(reason, message, grace)
	}
}

// wake has a Pod's worker look again.
func (r *Runner) wake(uid types.UID) {
	r.mu.Lock()
	w := r.workers[uid]
	r.mu.Unlock()
	if w != nil {
		w.wake()
	}
}

// others are the Pods that take room on the node besides one.
func (r *Runner) others(uid types.UID) (pods []*corev1.Pod) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, w := range r.workers {
		if w.uid == uid {
			continue
		}
		if p := w.takesRoom(); p != nil {
			pods = append(pods, p)
		}
	}
	return pods
}

// roomFreed has the Pods look again whose resize waits for room.
func (r *Runner) roomFreed() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, w := range r.workers {
		if w.deferred.Load() {
			w.wake()
		}
	}
}

// gone takes a worker out that has nothing left.
func (r *Runner) gone(w *worker) {
	r.mu.Lock()
	if r.workers[w.uid] == w {
		delete(r.workers, w.uid)
	}
	delete(r.orphans, w.uid)
	delete(r.listed, w.uid)
	if w.next != nil {
		w.next()
	} else if r.current[w.key] == w.uid {
		delete(r.current, w.key)
	}
	r.mu.Unlock()
}
