// SPDX-License-Identifier: Apache-2.0

package podrunner

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"
	"k8s.io/apimachinery/pkg/types"

	"fairlead.dev/podrunner/podspec"
	"fairlead.dev/podrunner/podstatus"
)

// exits hears from the kernel that the last process of a container has ended:
// its cgroup in the v2 hierarchy says so (cgroup.events, cgroups(7)). The runtime
// tells later, when it has cleaned up (containerd: half a second on a busy
// machine), and until then clients would be sent to a Pod that refuses them.
// Where a container has no such cgroup what the runtime says has to do.
type exits struct {
	top   string // the v2 hierarchy
	fs    *fsnotify.Watcher
	ended func(pod types.UID, container string)

	mu         sync.Mutex
	containers map[string]ofPod // by the path of cgroup.events
}

type ofPod struct {
	pod types.UID
	id  string
}

// newExits gives one that hears nothing, where nothing can be heard.
func newExits(top string, log *slog.Logger, ended func(types.UID, string)) *exits {
	e := &exits{top: top, ended: ended, containers: map[string]ofPod{}}
	if top == "" {
		return e
	}
	var err error
	if e.fs, err = fsnotify.NewWatcher(); err != nil {
		log.Info("the end of containers is only seen in the runtime's lists", "error", err)
	}
	return e
}

// watch tells of the end of a container that runs; false: it cannot. parent is
// the Pod's cgroup as the runtime was told it.
func (e *exits) watch(pod types.UID, parent, id string) (watched bool) {
	if e.fs == nil || parent == "" || id == "" {
		return false
	}
	// Runtimes name the cgroup ID, or PREFIX-ID.scope.
	found, _ := filepath.Glob(filepath.Join(e.top, slicePath(parent), "*"+id+"*", "cgroup.events"))
	for _, path := range found {
		if empty(path) {
			continue // some runtimes have their processes elsewhere
		}
		e.mu.Lock()
		e.containers[path] = ofPod{pod, id}
		e.mu.Unlock()
		if err := e.fs.Add(path); err != nil {
			e.mu.Lock()
			delete(e.containers, path)
			e.mu.Unlock()
			continue
		}
		watched = true
		if empty(path) {
			e.tell(path)
		}
	}
	return watched
}

// watched is how many containers will be heard of.
func (e *exits) watched() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.containers)
}

// run tells until ctx ends.
func (e *exits) run(ctx context.Context) {
	if e.fs == nil {
		return
	}
	defer e.fs.Close()
	for {
		select {
		case <-ctx.Done():
			return
		case event := <-e.fs.Events:
			if empty(event.Name) {
				e.tell(event.Name)
			}
		case <-e.fs.Errors: // events were lost: the lists see it
		}
	}
}

// tell tells once of each container.
func (e *exits) tell(path string) {
	e.mu.Lock()
	c, ok := e.containers[path]
	delete(e.containers, path)
	e.mu.Unlock()
	if ok {
		_ = e.fs.Remove(path) // it may have gone with its cgroup
		e.ended(c.pod, c.id)
	}
}

// empty: no process is in the cgroup, or it is gone.
func empty(path string) bool {
	b, err := os.ReadFile(path)
	return err != nil || strings.Contains(string(b), "populated 0")
}

// slicePath is where systemd has a slice: a-b.slice is in a.slice. What is no
// slice is a path already.
func slicePath(parent string) string {
	if !isSlice(parent) {
		return parent
	}
	path, name := "", ""
	for part := range strings.SplitSeq(strings.TrimSuffix(filepath.Base(parent), ".slice"), "-") {
		name += part
		path = filepath.Join(path, name+".slice")
		name += "-"
	}
	return path
}

// soon is when the runtime is asked about a container whose processes have
// ended, beside the lists, which follow each other fast then.
const soon = 20 * time.Millisecond

// exited: a container has no processes any more. It is not ready, whatever the
// runtime says; that it has ended, and how, is the runtime's to say.
func (r *Runner) exited(uid types.UID, id string) {
	r.transition()
	r.poke()
	r.mu.Lock()
	w := r.workers[uid]
	r.mu.Unlock()
	if w != nil {
		w.put(func(in *inbox) { in.ended = append(in.ended, id) })
		time.AfterFunc(soon, w.lookAgain)
	}
}

// watchExit watches a container that runs; false: its end will not be heard of.
func (w *worker) watchExit(c *podstatus.Container) bool {
	return w.pod != nil && c.State == podstatus.Running && w.r.exits.watch(w.uid, podspec.CgroupParent(w.pod, w.facts()), c.ID)
}
