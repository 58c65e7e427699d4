// SPDX-License-Identifier: Apache-2.0

package source

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"k8s.io/client-go/rest"
)

// APIServerOptions says which API server to read, and what of it.
type APIServerOptions struct {
	// Config reaches the API server; see LoadRESTConfig. It is copied.
	// Required.
	Config *rest.Config
	// NodeName is the name of this node's Node object. Required.
	NodeName string
	// WantPods also delivers the Pods that are bound to this node.
	WantPods bool
	// Version is fairlead's version, for the User-Agent. Default "devel".
	Version string
	// Logger gets a line when the connection is lost or found again. Default
	// slog.Default().
	Logger *slog.Logger
	// BackoffMin and BackoffMax bound the pause between two attempts to
	// reconnect. Default 200 ms and 10 s.
	BackoffMin, BackoffMax time.Duration
}

// APIServer is a Source that reads a Kubernetes API server: all Services and
// EndpointSlices that are meant for the default service proxy, this node's
// Node and, where wanted, its Pods. It keeps the names of what it delivered
// and nothing else (docs/decisions/0002-reflector-without-cache.md).
//
// While it is disconnected, what it delivered stays in force; what vanished
// meanwhile is delivered as deleted after the reconnect.
type APIServer struct {
	name    string
	conns   *conns
	health  *health
	streams []*stream
	deliver delivery
}

// NewAPIServer checks the options; it does not connect. An error means that no
// attempt could ever succeed.
func NewAPIServer(o APIServerOptions) (*APIServer, error) {
	switch {
	case o.Config == nil:
		return nil, errors.New("API server source: no connection configured; pass --kubeconfig FILE")
	case o.NodeName == "":
		return nil, errors.New("API server source: the node name is empty; pass --node-name NAME")
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.Version == "" {
		o.Version = "devel"
	}
	if o.BackoffMin <= 0 {
		o.BackoffMin = 200 * time.Millisecond
	}
	if o.BackoffMax < o.BackoffMin {
		o.BackoffMax = max(10*time.Second, o.BackoffMin)
	}
	clients, err := newRESTClients(o.Config, "fairlead/"+o.Version)
	if err != nil {
		return nil, err
	}

	kinds := []kind{serviceKind(clients.core), endpointSliceKind(clients.discovery), nodeKind(clients.core, o.NodeName)}
	if o.WantPods {
		kinds = append(kinds, podKind(clients.core, o.NodeName))
	}
	a := &APIServer{
		name:   "apiserver " + clients.host,
		conns:  clients.conns,
		health: newHealth(o.Logger.With("source", "apiserver "+clients.host), kinds),
	}
	a.deliver.unsynced = len(kinds)
	for _, k := range kinds {
		a.streams = append(a.streams, &stream{
			kind:    k,
			keys:    newKeyset(),
			health:  a.health,
			deliver: &a.deliver,
			backoff: backoff{min: o.BackoffMin, max: o.BackoffMax},
		})
	}
	return a, nil
}

// Name implements Source.
func (a *APIServer) Name() string { return a.name }

// State implements Source. Connected means that every kind of object was
// listed and is watched.
func (a *APIServer) State() State { return a.health.state() }

// Run implements Source. It is called once, and returns nil when ctx ends and
// its goroutines and connections have ended.
func (a *APIServer) Run(ctx context.Context, h Handler) error {
	a.deliver.handler = h
	var wg sync.WaitGroup
	for _, s := range a.streams {
		wg.Go(func() { s.run(ctx) })
	}
	wg.Wait()
	a.conns.close()
	return nil
}

// delivery lets one stream at a time call the Handler.
type delivery struct {
	mu       sync.Mutex
	handler  Handler
	unsynced int // kinds that were not listed yet
}

// do calls f with the Handler.
func (d *delivery) do(f func(Handler)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f(d.handler)
}

// listed is called once by each stream, after its first complete list.
func (d *delivery) listed() {
	d.do(func(h Handler) {
		if d.unsynced--; d.unsynced == 0 {
			h.OnSynced()
		}
	})
}
