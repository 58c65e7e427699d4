// SPDX-License-Identifier: Apache-2.0

package objects

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"fairlead.dev/podrunner/apiclient"
)

// APIOptions are what an API Store needs.
type APIOptions struct {
	// Client reaches the API server. Required. One watch is open for each
	// object that a volume shows, so its rate limit must let as many start.
	Client apiclient.Interface
	// Logger gets a line when an object cannot be watched. Default
	// slog.Default().
	Logger *slog.Logger
	// BackoffMin and BackoffMax bound the pause between two attempts to watch
	// an object. Default 200 ms and 10 s.
	BackoffMin, BackoffMax time.Duration
	// MaxAge is how old an answer may be that is asked for without a watch:
	// many Pods that start at once ask once. Default 1 s.
	MaxAge time.Duration
	// Now is the clock. Default time.Now.
	Now func() time.Time
}

// API is a Store over an API server. It asks for single objects by name only,
// as the Node authorizer wants it: those that volumes show are watched; those
// that a container needs when it starts are asked for then, and the last
// answer serves where the API server is away. What no Pod uses is forgotten.
type API struct {
	o         APIOptions
	listeners listeners
	tokens    tokenCache
	services  serviceCache

	mu      sync.Mutex
	closed  bool
	pods    map[types.UID]podRefs
	entries map[Key]*entry
	running sync.WaitGroup
}

type podRefs struct {
	namespace string
	keys      map[Key]bool
}

// NewAPI returns an API Store. Close ends it.
func NewAPI(o APIOptions) *API {
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	o.BackoffMin = cmp.Or(o.BackoffMin, 200*time.Millisecond)
	o.BackoffMax = max(cmp.Or(o.BackoffMax, 10*time.Second), o.BackoffMin)
	o.MaxAge = cmp.Or(o.MaxAge, time.Second)
	a := &API{o: o, pods: map[types.UID]podRefs{}, entries: map[Key]*entry{}}
	a.tokens = tokenCache{client: o.Client, now: o.Now, log: o.Logger, tokens: map[TokenRequest]*tokenEntry{}}
	a.services = serviceCache{client: o.Client, now: o.Now, maxAge: o.MaxAge, lists: map[string]*serviceList{}}
	return a
}

// Close ends all watches and waits for them. The Store answers no more.
func (a *API) Close() {
	a.mu.Lock()
	a.closed = true
	for k, e := range a.entries {
		e.stop()
		delete(a.entries, k)
	}
	a.mu.Unlock()
	a.running.Wait()
}

// ConfigMap implements Store.
func (a *API) ConfigMap(ctx context.Context, key types.NamespacedName) (*corev1.ConfigMap, error) {
	return getAs[*corev1.ConfigMap](ctx, a, Key{KindConfigMap, key})
}

// Secret implements Store.
func (a *API) Secret(ctx context.Context, key types.NamespacedName) (*corev1.Secret, error) {
	return getAs[*corev1.Secret](ctx, a, Key{KindSecret, key})
}

func getAs[T object](ctx context.Context, a *API, k Key) (t T, err error) {
	o, err := a.get(ctx, k)
	if err != nil {
		return t, err
	}
	t, ok := o.(T)
	if !ok {
		return t, fmt.Errorf("the API server answered with a %T for %s %s", o, k.Kind, k)
	}
	return t, nil
}

func (a *API) get(ctx context.Context, k Key) (object, error) {
	a.mu.Lock()
	e := a.entries[k]
	a.mu.Unlock()
	if e == nil { // used by no Pod: an answer, and nothing kept
		return a.fetch(ctx, k)
	}
	return e.get(ctx)
}

// fetch asks for one object.
func (a *API) fetch(ctx context.Context, k Key) (o object, err error) {
	switch k.Kind {
	case KindSecret:
		o, err = a.o.Client.Secrets(k.Namespace).Get(ctx, k.Name, metav1.GetOptions{})
	case KindConfigMap:
		o, err = a.o.Client.ConfigMaps(k.Namespace).Get(ctx, k.Name, metav1.GetOptions{})
	default:
		return nil, fmt.Errorf("no such kind: %s", k.Kind)
	}
	if err != nil {
		return nil, inKubeletWords(err, k)
	}
	return lean(o), nil
}

// Services implements Store.
func (a *API) Services(ctx context.Context, namespace string) ([]*corev1.Service, error) {
	return a.services.list(ctx, namespace)
}

// Token implements Store.
func (a *API) Token(ctx context.Context, r TokenRequest) (*Token, error) {
	return a.tokens.get(ctx, r)
}

// Use implements Store.
func (a *API) Use(pod *corev1.Pod) {
	keys := Refs(pod)
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return
	}
	a.pods[pod.UID] = podRefs{pod.Namespace, keys}
	for k, shown := range keys {
		e := a.entries[k]
		if e == nil {
			e = newEntry(a, k)
			a.entries[k] = e
		}
		if shown {
			e.watch()
		}
	}
	a.forgetUnused()
}

// Release implements Store.
func (a *API) Release(uid types.UID) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.pods, uid)
	a.forgetUnused()
	a.tokens.forget(uid)
}

// forgetUnused drops the entries that no Pod refers to, with a.mu held. Its
// cost is that of all references of a node's Pods; it is called when a Pod
// comes or goes.
func (a *API) forgetUnused() {
	used, namespaces := map[Key]bool{}, map[string]bool{corev1.NamespaceDefault: true}
	for _, p := range a.pods {
		namespaces[p.namespace] = true
		for k := range p.keys {
			used[k] = true
		}
	}
	for k, e := range a.entries {
		if !used[k] {
			e.stop()
			delete(a.entries, k)
		}
	}
	a.services.keep(namespaces)
}

// OnChange implements Store.
func (a *API) OnChange(f func(Key)) (stop func()) { return a.listeners.add(f) }

var _ Store = (*API)(nil)
