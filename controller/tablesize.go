// SPDX-License-Identifier: Apache-2.0

package controller

import "fairlead.dev/dataplane"

// size counts what the metrics tell of a Service.
type size struct{ frontends, backends int }

// count follows the size of the Table, Change by Change, at the cost of the Change.
func (l *loop) count(change dataplane.Change) {
	for name, s := range change.Services {
		var n size
		old := l.sizes[name]
		if s == nil {
			delete(l.sizes, name)
		} else {
			n = sizeOf(s)
			l.sizes[name] = n
		}
		l.total.frontends += n.frontends - old.frontends
		l.total.backends += n.backends - old.backends
	}
	if len(change.Services) > 0 {
		l.c.metrics.services.Set(float64(len(l.sizes)))
		l.c.metrics.frontends.Set(float64(l.total.frontends))
		l.c.metrics.backends.Set(float64(l.total.backends))
	}
}

func sizeOf(s *dataplane.Service) size {
	n := size{frontends: len(s.Frontends)}
	for i := range s.Frontends {
		n.backends += len(s.Frontends[i].Internal.Backends)
		if s.Frontends[i].Kind != dataplane.ClusterIP {
			n.backends += len(s.Frontends[i].External.Backends)
		}
	}
	return n
}
