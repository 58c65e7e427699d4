// SPDX-License-Identifier: Apache-2.0

package source

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Defaults of DirectoryOptions, where the zero value stands for them.
const (
	// DefaultMaxFiles is how many files of a directory are read.
	DefaultMaxFiles = 10_000
	// DefaultMaxFileBytes is the size of one file. Parsing YAML takes up to
	// some 30 times the size of a document in memory, for as long as it lasts.
	DefaultMaxFileBytes = 16 << 20
	// DefaultMaxObjects is how many objects all files together may hold.
	DefaultMaxObjects = 200_000
)

// DirectoryOptions are what a Directory is made from.
type DirectoryOptions struct {
	// Path is the directory. It must exist. Subdirectories are not read.
	Path string
	// NodeName is this node's name: its Node object and its Pods are delivered.
	NodeName string
	// ServiceCIDRs are the ranges that ClusterIPs come from, at most one for
	// each family. The first one's family is that of a Service that does not
	// say. Empty: a Service needs a clusterIP.
	ServiceCIDRs []netip.Prefix
	// StatePath is the file that keeps the ClusterIPs and node ports that were
	// given, so that a restart does not change them. Empty: they are not kept.
	StatePath string

	// MaxFiles, MaxFileBytes and MaxObjects bound what is read; what is beyond
	// is a problem. 0: DefaultMaxFiles, DefaultMaxFileBytes, DefaultMaxObjects.
	MaxFiles     int
	MaxFileBytes int64
	MaxObjects   int

	// Logger takes what an operator should read. nil: slog.Default().
	Logger *slog.Logger
}

// Directory is a Source that reads *.yaml, *.yml and *.json files of one
// directory. A file holds any number of documents, Lists included. Hidden files
// (and so what editors leave while they save) are not read, subdirectories
// neither. A file counts as a whole: where any of it cannot be taken, all that
// it last held stays in force. Of the same object in two files, the one of the
// first file in the order of names is in force.
//
// A change that takes objects away, or that cannot be parsed, is believed only
// when it is still so after 50 ms: it may be a file that is being written. For
// the same reason a file that was written in place is read 3 ms after the last
// write; one that was renamed into place is read at once.
type Directory struct {
	o   DirectoryOptions
	log *slog.Logger
	ran atomic.Bool

	// Below is Run's own.
	h        Handler
	configs  ConfigHandler // nil: the Handler is none
	alloc    *allocator
	files    map[string]*file
	bad      map[string]*file // those with faults
	doubtful map[string]*file // those to be looked at once more, at confirmAt
	records  map[objectKey]*record
	objects  int // of all files, duplicates included
	twice    map[objectKey]struct{}
	services map[types.NamespacedName]*service
	refused  map[types.NamespacedName]string // Services without what they want, and why
	slices   map[types.NamespacedName]int    // of files, by their Service
	pods     map[types.NamespacedName]*corev1.Pod
	status   map[types.NamespacedName]corev1.PodStatus
	pass     pass
	synced   bool
	// returned is when the directory was last found again.
	returned time.Time
	scratch  []byte
	// lack are problems that belong to no file.
	lack map[string]string

	poke  chan struct{}
	mu    sync.Mutex // guards what follows
	state State
	stats DirectoryStats
	// newStatus is what SetPodStatus brought and Run did not take yet.
	newStatus map[types.NamespacedName]corev1.PodStatus
}

// DirectoryStats are figures for metrics.
type DirectoryStats struct {
	// Files and Objects are what is in force; BadFiles is the number of files
	// that are not as written.
	Files, Objects, BadFiles int
	// FileErrors counts how often a file could not be taken, since the start.
	FileErrors uint64
	// Grants is the number of Services that hold an allocated address or port.
	Grants int
}

// NewDirectory checks the options. A directory that does not exist is an error.
func NewDirectory(o DirectoryOptions) (*Directory, error) {
	o.MaxFiles = cmp.Or(o.MaxFiles, DefaultMaxFiles)
	o.MaxFileBytes = cmp.Or(o.MaxFileBytes, DefaultMaxFileBytes)
	o.MaxObjects = cmp.Or(o.MaxObjects, DefaultMaxObjects)
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.Path == "" || o.NodeName == "" {
		return nil, errors.New("directory source: no path or no node name: set --manifests and --node-name")
	}
	if o.MaxFiles < 0 || o.MaxFileBytes < 0 || o.MaxObjects < 0 {
		return nil, errors.New("directory source: a limit is negative")
	}
	if err := checkDirectory(o.Path); err != nil {
		return nil, err
	}
	if samePath(filepath.Dir(o.StatePath), o.Path) && isManifest(filepath.Base(o.StatePath)) {
		return nil, fmt.Errorf("directory source: state file %s would be read as a manifest: put it elsewhere", o.StatePath)
	}
	alloc, err := newAllocator(o.ServiceCIDRs)
	if err != nil {
		return nil, fmt.Errorf("directory source: %w", err)
	}
	return &Directory{
		o: o, log: o.Logger.With("directory", o.Path), alloc: alloc,
		files: map[string]*file{}, bad: map[string]*file{}, doubtful: map[string]*file{},
		refused: map[types.NamespacedName]string{}, records: map[objectKey]*record{}, twice: map[objectKey]struct{}{},
		services: map[types.NamespacedName]*service{}, slices: map[types.NamespacedName]int{},
		pods: map[types.NamespacedName]*corev1.Pod{}, status: map[types.NamespacedName]corev1.PodStatus{},
		pass: newPass(), lack: map[string]string{}, poke: make(chan struct{}, 1),
		state: State{Since: time.Now()}, newStatus: map[types.NamespacedName]corev1.PodStatus{},
	}, nil
}

func checkDirectory(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("directory source: %w: create it or set --manifests to another one", err)
	}
	if !info.IsDir() {
		return fmt.Errorf("directory source: %s is not a directory", path)
	}
	return nil
}

func samePath(a, b string) bool {
	a, errA := filepath.Abs(a)
	b, errB := filepath.Abs(b)
	return errA == nil && errB == nil && a == b
}

// Name says which directory.
func (d *Directory) Name() string { return "directory " + d.o.Path }

// State may be called at any time. Its problems begin with FILE:LINE.
func (d *Directory) State() State {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.state // Problems is replaced, never changed
}

// Stats may be called at any time.
func (d *Directory) Stats() DirectoryStats {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.stats
}

// SetPodStatus says how a Pod of the directory fares, in place of the status in
// its manifest, until the Pod is removed. It is for the runner of Pods, may be
// called from any goroutine (a Handler's call too) and does not block. A Pod
// that is not there is ignored.
func (d *Directory) SetPodStatus(key types.NamespacedName, status corev1.PodStatus) {
	d.mu.Lock()
	d.newStatus[key] = *status.DeepCopy()
	d.mu.Unlock()
	select {
	case d.poke <- struct{}{}:
	default:
	}
}

// Run delivers what the files hold, and follows them until ctx ends. It can be
// called once. A directory that vanishes later is waited for.
func (d *Directory) Run(ctx context.Context, h Handler) error {
	if d.ran.Swap(true) {
		return errors.New("directory source: already run")
	}
	if err := checkDirectory(d.o.Path); err != nil {
		return err
	}
	d.h = h
	d.configs, _ = h.(ConfigHandler)
	d.loadState()
	w := newWatcher(d)
	defer w.close()
	return w.run(ctx)
}

// loadState takes over what an earlier process gave.
func (d *Directory) loadState() {
	path := d.o.StatePath
	if path == "" {
		return
	}
	err := d.alloc.load(path, time.Now())
	switch {
	case errors.Is(err, errCorrupt):
		aside := path + ".corrupt"
		if renameErr := os.Rename(path, aside); renameErr != nil {
			err = errors.Join(err, renameErr)
		}
		d.log.Warn("state file of ClusterIPs and node ports cannot be used, Services get new ones", "file", path, "kept", aside, "err", err)
	case err != nil:
		d.log.Warn("state file of ClusterIPs and node ports cannot be read, Services may get new ones", "file", path, "err", err)
	}
}

// saveState keeps what was given, before anyone hears of it.
func (d *Directory) saveState() {
	if d.o.StatePath == "" || !d.alloc.changed {
		return
	}
	if err := d.alloc.save(d.o.StatePath); err != nil {
		d.lack["state"] = fmt.Sprintf("state file %s: %v: ClusterIPs and node ports may change at a restart", d.o.StatePath, err)
		return
	}
	delete(d.lack, "state")
}
