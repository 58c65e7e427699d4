// SPDX-License-Identifier: Apache-2.0

package objects

import (
	"maps"
	"slices"
	"sync"
)

// listeners are the functions of OnChange.
type listeners struct {
	mu    sync.Mutex
	next  int
	funcs map[int]func(Key)
}

func (l *listeners) add(f func(Key)) (stop func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.funcs == nil {
		l.funcs = map[int]func(Key){}
	}
	id := l.next
	l.next++
	l.funcs[id] = f
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.funcs, id)
	}
}

func (l *listeners) changed(k Key) {
	l.mu.Lock()
	funcs := slices.Collect(maps.Values(l.funcs))
	l.mu.Unlock()
	for _, f := range funcs {
		f(k)
	}
}
