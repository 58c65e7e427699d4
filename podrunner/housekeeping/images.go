// SPDX-License-Identifier: Apache-2.0

package housekeeping

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"fairlead.dev/podrunner/cri"
)

// image is what is remembered of one.
type image struct {
	bytes  int64
	pinned bool // by the runtime
	// imported: no registry is known to have it.
	imported bool
	// seen is when it was first there, zero where it was from the beginning;
	// used when a container was last made from it, zero: never seen.
	seen, used time.Time
}

// noteImages remembers which images are in use. The runtime's images are only
// listed where a container has one that is not known, and in the beginning.
func (k *Keeper) noteImages(ctx context.Context, c *cri.Client, containers []*runtimeapi.Container) {
	known := len(k.imageNames) > 0
	for name := range namesIn(containers) {
		if _, ok := k.imageNames[name]; !ok {
			known = false
		}
	}
	if !known {
		if err := k.listImages(ctx, c); err != nil {
			k.log.Debug("housekeeping", "error", err)
			return
		}
	}
	k.markUsed(containers)
}

// lookAtImages lists both anew: the images first, so that the containers made
// from them are not missed.
func (k *Keeper) lookAtImages(ctx context.Context, c *cri.Client) error {
	if err := k.listImages(ctx, c); err != nil {
		return err
	}
	containers, err := c.Runtime.ListContainers(ctx, nil)
	if err != nil {
		return fmt.Errorf("list containers: %w", err)
	}
	k.markUsed(containers)
	return nil
}

// markUsed sets the time of all images that containers have, dead ones too.
func (k *Keeper) markUsed(containers []*runtimeapi.Container) (used map[string]bool) {
	now := k.now()
	used = map[string]bool{}
	for name := range namesIn(containers) {
		id, ok := k.imageNames[name]
		if !ok {
			k.imageNames[name] = "" // asked for; the image is gone while its container is not
		}
		if i := k.images[id]; i != nil {
			i.used, used[id] = now, true
		}
	}
	return used
}

// namesIn are all names that containers have of their images: runtimes differ
// in which field has the ID.
func namesIn(containers []*runtimeapi.Container) map[string]bool {
	names := map[string]bool{}
	for _, c := range containers {
		for _, n := range []string{c.ImageId, c.ImageRef, c.GetImage().GetImage()} {
			if n != "" {
				names[n] = true
			}
		}
	}
	return names
}

// listImages brings what is remembered in line with what the runtime has.
func (k *Keeper) listImages(ctx context.Context, c *cri.Client) error {
	listed, err := c.Images.ListImages(ctx, nil)
	if err != nil {
		return fmt.Errorf("list images: %w", err)
	}
	var seen time.Time
	if len(k.imageNames) > 0 {
		seen = k.now()
	}
	images := make(map[string]*image, len(listed))
	names := map[string]string{"": ""} // never empty: it was listed
	for _, l := range listed {
		i := k.images[l.Id]
		if i == nil {
			i = &image{seen: seen}
		}
		i.bytes, i.pinned, i.imported = int64(min(l.Size, math.MaxInt64)), l.Pinned, len(l.RepoDigests) == 0
		images[l.Id], names[l.Id] = i, l.Id
		for _, n := range append(slices.Clone(l.RepoTags), l.RepoDigests...) {
			names[n] = l.Id
		}
	}
	k.images, k.imageNames = images, names
	return nil
}

// collectImages removes images where their filesystem is fuller than it should
// be.
func (k *Keeper) collectImages(ctx context.Context, c *cri.Client) {
	k.imageDir = "" // asked for again: the runtime may have been set up anew
	if err := k.lookAtImages(ctx, c); err != nil {
		k.log.Debug("housekeeping", "error", err)
		return
	}
	d, err := k.imageDisk(ctx, c)
	if err != nil {
		k.log.Debug("housekeeping", "error", err)
		return
	}
	if d.capacity <= 0 {
		k.nodeEvent("InvalidDiskCapacity", fmt.Sprintf("invalid capacity %d on image filesystem", d.capacity))
		return
	}
	available := min(d.available, d.capacity)
	used := 100 - int(available*100/d.capacity)
	if used < k.o.ImageHighPercent || k.o.ImageHighPercent == 100 {
		return
	}
	wanted := d.capacity/100*int64(100-k.o.ImageLowPercent) - available
	k.log.Info("the disk of images is fuller than it should be; images that are not in use are removed",
		"dir", k.imageDir, "used_percent", used, "high_percent", k.o.ImageHighPercent, "wanted_bytes", wanted)
	freed, err := k.freeImages(ctx, c, wanted)
	if err != nil {
		k.log.Warn("remove images", "freed_bytes", freed, "error", err)
	}
	if freed < wanted {
		k.nodeEvent("FreeDiskSpaceFailed", fmt.Sprintf(
			"Failed to garbage collect required amount of images. Attempted to free %d bytes, but only found %d bytes eligible to free.", wanted, freed))
	}
}

// freeImages removes images that are not in use, the least recently used first,
// until so many bytes are freed. Bytes are those that the runtime tells, also
// where images share layers.
func (k *Keeper) freeImages(ctx context.Context, c *cri.Client, bytes int64) (freed int64, err error) {
	if err := k.lookAtImages(ctx, c); err != nil {
		return 0, err
	}
	kept, err := k.keptImages(ctx, c)
	if err != nil {
		return 0, err
	}
	var last error
	for _, id := range k.byLastUse() {
		i := k.images[id]
		if freed >= bytes {
			break
		}
		if i.pinned || kept[id] || (k.o.KeepImported && i.imported) || k.now().Sub(i.seen) < k.o.ImageMinAge {
			continue
		}
		// Asked each time: a container may be made while others are removed.
		containers, err := c.Runtime.ListContainers(ctx, nil)
		if err != nil {
			return freed, fmt.Errorf("list containers: %w", err)
		}
		if k.markUsed(containers)[id] {
			continue
		}
		if err := c.Images.RemoveImage(ctx, &runtimeapi.ImageSpec{Image: id}); err != nil {
			last = fmt.Errorf("remove image %s: %w", id, err)
			continue
		}
		k.log.Info("removed an image", "image", id, "bytes", i.bytes)
		delete(k.images, id)
		freed += i.bytes
	}
	return freed, last
}

// byLastUse are the IDs of all images, the one first that was not used for the
// longest time, and of those that never were the one that is there the longest.
func (k *Keeper) byLastUse() []string {
	ids := make([]string, 0, len(k.images))
	for id := range k.images {
		ids = append(ids, id)
	}
	slices.SortFunc(ids, func(a, b string) int {
		x, y := k.images[a], k.images[b]
		return cmp.Or(x.used.Compare(y.used), x.seen.Compare(y.seen), cmp.Compare(a, b))
	})
	return ids
}

// keptImages are the IDs of those that are never removed. A sandbox does not
// tell its image, and runtimes before containerd 1.7 do not pin it; they tell
// it in their verbose status.
func (k *Keeper) keptImages(ctx context.Context, c *cri.Client) (map[string]bool, error) {
	status, err := c.Runtime.Status(ctx, true)
	if err != nil {
		return nil, fmt.Errorf("ask for the sandbox image: %w", err)
	}
	var config struct {
		SandboxImage string `json:"sandboxImage"`
	}
	_ = json.Unmarshal([]byte(status.GetInfo()["config"]), &config) // not every runtime has it
	kept := map[string]bool{}
	for _, name := range append([]string{config.SandboxImage}, k.o.KeepImages...) {
		if id := k.imageNames[name]; id != "" {
			kept[id] = true
		}
	}
	return kept, nil
}
