// SPDX-License-Identifier: Apache-2.0

// Package compile is the law of Services, written once: it turns Services,
// EndpointSlices, Pods with hostPorts and the facts of a node into the Table
// that a Dataplane programs. docs/semantics.md lists every field it reads.
//
// It is incremental: what a Compile costs follows what was set since the last
// one, not how much there is. It is pure: it refuses to know a clock, the
// network, the kernel or a log, it starts no goroutine, and it keeps parsed
// forms only, never the API objects.
package compile

import (
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"

	"fairlead.dev/dataplane"
)

// Defaults of Options, where the zero value stands for them.
const (
	// DefaultMaxBackendsPerSet is what a 16-bit Backend index can count.
	DefaultMaxBackendsPerSet = 65535
	// DefaultMaxFrontendsPerService leaves room for a Service with every port
	// of one protocol.
	DefaultMaxFrontendsPerService = 65535
)

// Options are the limits that keep one absurd object from filling a node, and
// what Services may claim.
type Options struct {
	// MaxBackendsPerSet cuts a BackendSet that is longer; what is left out is
	// a Problem. 0: DefaultMaxBackendsPerSet.
	MaxBackendsPerSet int
	// MaxFrontendsPerService cuts a Service with more Frontends; what is left
	// out is a Problem. 0: DefaultMaxFrontendsPerService.
	MaxFrontendsPerService int
	// ExternalIPs is about spec.externalIPs, LoadBalancerIPs about
	// status.loadBalancer.ingress. What they refuse is a Problem.
	ExternalIPs, LoadBalancerIPs AddressPolicy
}

// Compiler holds what was set, and what it compiled to. It is made by New and
// is not safe for concurrent use.
type Compiler struct {
	opts Options
	node nodeView

	owners map[dataplane.ServiceName]*owner
	slices map[types.NamespacedName]*slice

	dirty       []*owner
	nodeChanged bool

	claims   claims
	problems problems
	noLocal  [2]int
	// triggerTimes is made anew after each Compile: clearing a map costs what
	// it once held.
	triggerTimes map[dataplane.ServiceName][]time.Time

	scratch scratch
}

// owner is a Service or a Pod: what may own Frontends. One may exist for the
// sake of its slices alone.
type owner struct {
	name dataplane.ServiceName
	// service or pod is set where the object exists and is not ignored.
	service *service
	pod     *pod
	slices  []*slice

	// compiled is what the last Compile made of it, nil for no Frontends.
	compiled *dataplane.Service
	// lost are the claims that another owner holds, sorted.
	lost    []dataplane.FrontendKey
	health  *HealthCheck
	noLocal [2]bool
	// rank is the one the claims were made with.
	rank    int64
	isDirty bool
}

// Result is what one Compile changed.
type Result struct {
	// Change is the difference to the Table before.
	Change dataplane.Change
	// Problems is the full current list, sorted. It is the same slice as
	// before where nothing changed, and must not be modified.
	Problems []Problem
	// ProblemsChanged: Problems differs from that of the last Compile.
	ProblemsChanged bool
	// HealthChecks holds the health checks that changed; nil is one that is gone.
	HealthChecks map[dataplane.ServiceName]*HealthCheck
	// NoLocalEndpoints counts the Services whose policy for a scope is Local
	// and that have endpoints, but none on this node for some port.
	NoLocalEndpoints map[dataplane.Scope]int
	// TriggerTimes are the endpoints.kubernetes.io/last-change-trigger-time
	// annotations of the slices set since the last Compile, for the Services
	// in Change only. Times before the start of the agent are in it: whoever
	// has a clock leaves them out.
	TriggerTimes map[dataplane.ServiceName][]time.Time
}

// HealthCheck is what the healthCheckNodePort server of a Service answers.
type HealthCheck struct {
	// NodePort is in host byte order, 1 to 65535.
	NodePort uint16
	// LocalEndpoints counts addresses of ready endpoints on this node, of the
	// family that has more of them.
	LocalEndpoints int
}

// New makes a Compiler that knows nothing yet.
func New(o Options) *Compiler {
	if o.MaxBackendsPerSet <= 0 {
		o.MaxBackendsPerSet = DefaultMaxBackendsPerSet
	}
	if o.MaxFrontendsPerService <= 0 {
		o.MaxFrontendsPerService = DefaultMaxFrontendsPerService
	}
	return &Compiler{
		opts:     o,
		owners:   map[dataplane.ServiceName]*owner{},
		slices:   map[types.NamespacedName]*slice{},
		claims:   newClaims(),
		problems: newProblems(),
	}
}

// SetNode says what this node is. A change of what Frontends or Backends
// depend on compiles everything anew.
func (c *Compiler) SetNode(f NodeFacts) {
	view := newNodeView(f)
	if !view.table.Equal(c.node.table) {
		c.nodeChanged = true
	}
	same := view.sameForServices(&c.node)
	c.node = view
	if same {
		return
	}
	for _, o := range c.owners {
		c.touch(o)
	}
}

// SetService says what a Service is now; nil deletes it.
func (c *Compiler) SetService(key types.NamespacedName, s *corev1.Service) {
	name := dataplane.ServiceName(key)
	var parsed *service
	var reasons []string
	switch {
	case s == nil:
	case strings.ContainsAny(key.Name, ":/"):
		// ":" is what keeps the names of Pods apart from those of Services.
		reasons = []string{"the name must not contain ':' or '/'; the Service is ignored"}
	default:
		parsed, reasons = parseService(s)
	}
	c.problems.set(object{kindService, name}, parsing, reasons)
	if parsed == nil && (c.owners[name] == nil || c.owners[name].service == nil) {
		return
	}
	o := c.owner(name)
	o.service = parsed
	c.touch(o)
}

// SetEndpointSlice says what an EndpointSlice is now; nil deletes it.
func (c *Compiler) SetEndpointSlice(key types.NamespacedName, s *discoveryv1.EndpointSlice) {
	if old := c.slices[key]; old != nil {
		o := c.owners[old.service]
		o.slices = slices.DeleteFunc(o.slices, func(x *slice) bool { return x == old })
		delete(c.slices, key)
		if s == nil {
			// The annotation is about the last update, not the deletion.
			delete(c.triggerTimes, old.service)
		}
		c.touch(o)
	}
	var parsed *slice
	var reasons []string
	if s != nil {
		parsed, reasons = parseSlice(key, s)
	}
	c.problems.set(object{kindSlice, dataplane.ServiceName(key)}, parsing, reasons)
	if parsed == nil {
		return
	}
	c.slices[key] = parsed
	o := c.owner(parsed.service)
	o.slices = append(o.slices, parsed)
	if t, ok := triggerTime(s); ok {
		if c.triggerTimes == nil {
			c.triggerTimes = map[dataplane.ServiceName][]time.Time{}
		}
		c.triggerTimes[o.name] = append(c.triggerTimes[o.name], t)
	}
	c.touch(o)
}

// SetPod says what a Pod of this node is now; nil deletes it. Its hostPorts
// are Frontends of the name that PodServiceName gives.
func (c *Compiler) SetPod(key types.NamespacedName, p *corev1.Pod) {
	var parsed *pod
	var reasons []string
	if p != nil {
		parsed, reasons = parsePod(p)
	}
	c.problems.set(object{kindPod, dataplane.ServiceName(key)}, parsing, reasons)
	name := PodServiceName(key)
	if parsed == nil && (c.owners[name] == nil || c.owners[name].pod == nil) {
		return
	}
	o := c.owner(name)
	o.pod = parsed
	c.touch(o)
}

// PodServiceName is the name under which the hostPorts of a Pod are in the
// Table: the ':' in it, which no Service may have, keeps it unique.
func PodServiceName(pod types.NamespacedName) dataplane.ServiceName {
	return dataplane.ServiceName{Namespace: pod.Namespace, Name: podPrefix + pod.Name}
}

const podPrefix = "pod:"

// Table is the whole current Table, as of the last Compile. It shares the
// Services with the Changes.
func (c *Compiler) Table() *dataplane.Table {
	t := &dataplane.Table{Services: make(map[dataplane.ServiceName]*dataplane.Service, len(c.owners)), Node: c.node.table}
	for name, o := range c.owners {
		if o.compiled != nil {
			t.Services[name] = o.compiled
		}
	}
	return t
}

func (c *Compiler) owner(name dataplane.ServiceName) *owner {
	o := c.owners[name]
	if o == nil {
		o = &owner{name: name}
		c.owners[name] = o
	}
	return o
}

func (c *Compiler) touch(o *owner) {
	if !o.isDirty {
		o.isDirty = true
		c.dirty = append(c.dirty, o)
	}
}

// object is the Kubernetes object the owner came from, to name it in Problems.
func (o *owner) object() object {
	if pod, ok := strings.CutPrefix(o.name.Name, podPrefix); ok {
		return object{kindPod, dataplane.ServiceName{Namespace: o.name.Namespace, Name: pod}}
	}
	return object{kindService, o.name}
}
