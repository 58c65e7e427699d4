// SPDX-License-Identifier: Apache-2.0

package config

import (
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/api/resource"
)

// Shortage is what of the node must be available: with less, Pods are evicted.
// Negative: never for that reason.
type Shortage struct {
	MemoryBytes                                  int64
	NodefsPercent, ImagefsPercent, InodesPercent int
}

// Shortages is EvictionHard, parsed: SIGNAL<QUANTITY as the kubelet has them. A
// signal that is not named is not looked at. Inodes have one threshold.
func (c *Configuration) Shortages() (Shortage, error) {
	s := Shortage{-1, -1, -1, -1}
	for _, e := range c.EvictionHard {
		refuse := &InvalidError{"eviction-hard", e, "memory.available<QUANTITY and PERCENT% of nodefs.available, imagefs.available, nodefs.inodesFree and imagefs.inodesFree (the last two alike)"}
		signal, value, _ := strings.Cut(e, "<")
		if signal == "memory.available" {
			q, err := resource.ParseQuantity(value)
			if err != nil || q.Sign() < 0 {
				return s, refuse
			}
			s.MemoryBytes = q.Value()
			continue
		}
		digits, ok := strings.CutSuffix(value, "%")
		percent, err := strconv.Atoi(digits)
		if !ok || err != nil || percent < 0 || percent > 100 {
			return s, refuse
		}
		switch {
		case signal == "nodefs.available":
			s.NodefsPercent = percent
		case signal == "imagefs.available":
			s.ImagefsPercent = percent
		case (signal == "nodefs.inodesFree" || signal == "imagefs.inodesFree") && (s.InodesPercent < 0 || s.InodesPercent == percent):
			s.InodesPercent = percent
		default:
			return s, refuse
		}
	}
	return s, nil
}

func (c *Configuration) validateImageGC() error {
	if c.ImageGCHighThreshold < 1 || c.ImageGCHighThreshold > 100 {
		return &InvalidError{"image-gc-high-threshold", strconv.Itoa(c.ImageGCHighThreshold), "1 to 100 %"}
	}
	if c.ImageGCLowThreshold < 1 || c.ImageGCLowThreshold > c.ImageGCHighThreshold {
		return &InvalidError{"image-gc-low-threshold", strconv.Itoa(c.ImageGCLowThreshold), "1 % up to image-gc-high-threshold"}
	}
	return nil
}
