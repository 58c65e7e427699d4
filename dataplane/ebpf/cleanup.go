// SPDX-License-Identifier: Apache-2.0

package ebpf

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Cleanup removes all that the dataplane left in the kernel: links first, so
// that no program runs on maps that go away. It returns what it removed. Flows
// of the packet path end with it.
func Cleanup(o Options) (removed []string, err error) {
	o = o.withDefaults()
	removed, err = removeClsact()
	errs := []error{err}
	for _, sub := range []string{"links", "maps"} {
		pins, err := filepath.Glob(filepath.Join(o.pinDir(), sub, "*"))
		if err != nil {
			return removed, err
		}
		for _, pin := range pins {
			if err := os.Remove(pin); err != nil && !errors.Is(err, fs.ErrNotExist) {
				errs = append(errs, fmt.Errorf("unpin %s: %w", pin, err))
				continue
			}
			removed = append(removed, pin)
		}
	}
	for _, dir := range []string{filepath.Join(o.pinDir(), "links"), filepath.Join(o.pinDir(), "maps"), o.pinDir()} {
		if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("remove pin directory: %w", err))
		}
	}
	return removed, errors.Join(errs...)
}
