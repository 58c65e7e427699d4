// SPDX-License-Identifier: Apache-2.0

package config

import (
	"strings"
	"testing"
)

func TestThresholdsOfEvictionAreTheKubelets(t *testing.T) {
	for text, want := range map[string]Shortage{
		strings.Join(Default().EvictionHard, ","): {100 << 20, 10, 15, 5},
		"":                     {-1, -1, -1, -1},
		"memory.available<1Gi": {1 << 30, -1, -1, -1},
		"nodefs.available<0%,imagefs.available<100%": {-1, 0, 100, -1},
		"nodefs.inodesFree<3%,imagefs.inodesFree<3%": {-1, -1, -1, 3},
	} {
		c := Default()
		c.EvictionHard = nil
		if text != "" {
			c.EvictionHard = strings.Split(text, ",")
		}
		if got, err := c.Shortages(); err != nil || got != want {
			t.Errorf("%q: %+v, %v; want %+v", text, got, err, want)
		}
	}
	for _, text := range []string{"memory.available", "memory.available<x", "memory.available<-1", "pid.available<5%", "nodefs.available<1Gi",
		"nodefs.available<101%", "nodefs.available<%", "nodefs.inodesFree<3%,imagefs.inodesFree<4%", "<"} {
		c := Default()
		c.EvictionHard = strings.Split(text, ",")
		if _, err := c.Shortages(); err == nil || !strings.Contains(err.Error(), "eviction-hard") {
			t.Errorf("%q: %v, want an error that names the flag", text, err)
		}
	}
}
