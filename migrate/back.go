// SPDX-License-Identifier: Apache-2.0

package migrate

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"fairlead.dev/dataplane"
)

// KubeProxy is a running kube-proxy as the successor of fairlead's Dataplanes:
// it is in force when its rules serve every Frontend. It programs nothing.
type KubeProxy struct {
	report *Report
	run    func(context.Context) (string, error)

	mu      sync.Mutex
	covered bool
	waited  string // what was told last
}

var _ dataplane.Dataplane = (*KubeProxy)(nil)

// NewKubeProxy is for the way back. running is asked whether a kube-proxy runs;
// nil for one that need not be asked.
func NewKubeProxy(r *Report, running func(context.Context) (string, error)) *KubeProxy {
	return &KubeProxy{report: r, run: running}
}

// Name implements dataplane.Dataplane.
func (*KubeProxy) Name() string { return "kube-proxy" }

// Sync implements dataplane.Dataplane: it fails until kube-proxy's rules serve
// every Frontend that has a Backend, and changes nothing.
func (k *KubeProxy) Sync(ctx context.Context, t *dataplane.Table) (changed int, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.covered {
		return 0, nil
	}
	if k.run != nil {
		how, err := k.run(ctx)
		if err != nil {
			return 0, err
		}
		if how == "" {
			return 0, k.wait(`kube-proxy does not run on this node: start it first: kubectl label node NODE fairlead.dev/proxy- (or its service)`)
		}
	}
	serves, err := readServed(ctx)
	if err != nil {
		return 0, err
	}
	wanted := wantedOf(t)
	var missing []string
	for _, f := range wanted {
		if !serves.has(f) {
			missing = append(missing, fmt.Sprintf("%s %s", f.service, f.key))
		}
	}
	if len(missing) > 0 {
		slices.Sort(missing)
		return 0, k.wait(fmt.Sprintf("kube-proxy's rules lack %d of %d Frontends, first %s", len(missing), len(wanted), missing[0]))
	}
	if _, err := Cleanup(); err != nil {
		return 0, err
	}
	k.report.Add(Checked, "kube-proxy's rules (mode %s) serve all %s", serves.mode, plural(len(wanted), "Frontend"))
	k.covered = true
	return 0, nil
}

// wait is the error that says what is waited for.
func (k *KubeProxy) wait(what string) error {
	if k.waited != what {
		k.report.Add(Waiting, "%s", what)
		k.waited = what
	}
	return errors.New(what)
}

// Apply implements dataplane.Dataplane: kube-proxy hears of changes itself.
func (*KubeProxy) Apply(context.Context, dataplane.Change) error { return nil }

// Close implements dataplane.Dataplane.
func (*KubeProxy) Close() error { return nil }

// wantedFrontend is one that kube-proxy has to serve.
type wantedFrontend struct {
	service dataplane.ServiceName
	kind    dataplane.Kind
	key     dataplane.FrontendKey
}

// wantedOf are those of a Table that have a Backend. NodePorts on loopback
// addresses are left out: kube-proxy has them in one of its modes only.
func wantedOf(t *dataplane.Table) (list []wantedFrontend) {
	for name, s := range t.Services {
		for i := range s.Frontends {
			f := &s.Frontends[i]
			if f.Kind == dataplane.HostPort || len(f.Internal.Backends) == 0 || f.Kind == dataplane.NodePort && f.Address.IsLoopback() {
				continue
			}
			list = append(list, wantedFrontend{name, f.Kind, f.FrontendKey})
		}
	}
	return list
}
