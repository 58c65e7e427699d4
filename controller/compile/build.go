// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"fairlead.dev/dataplane"
)

// job is an owner that is being compiled.
type job struct {
	*owner
	wants   []want
	reasons []string
}

// Compile compiles what became dirty since the last call.
func (c *Compiler) Compile() Result {
	jobs := c.settleClaims()
	r := Result{Change: dataplane.Change{}}
	if c.nodeChanged {
		node := c.node.table
		r.Change.Node = &node
		c.nodeChanged = false
	}
	for i := range jobs {
		c.compile(&jobs[i], &r)
	}
	c.triggerTimes = nil
	r.Problems, r.ProblemsChanged = c.problems.current()
	r.NoLocalEndpoints = map[dataplane.Scope]int{
		dataplane.Internal: c.noLocal[dataplane.Internal],
		dataplane.External: c.noLocal[dataplane.External],
	}
	return r
}

// settleClaims brings the claims up to date with every dirty owner, and with
// those that became dirty by it, and returns them all. Only then is it known
// who has which Frontend.
func (c *Compiler) settleClaims() []job {
	jobs := make([]job, 0, len(c.dirty))
	for i := 0; i < len(c.dirty); i++ {
		o := c.dirty[i]
		j := job{owner: o}
		j.wants, j.reasons = c.wants(o)
		rank := o.currentRank()
		reranked := rank != o.rank
		o.rank = rank
		c.claims.update(o, o.claimed(), j.wants, reranked, c.touch)
		jobs = append(jobs, j)
	}
	for _, o := range c.dirty {
		o.isDirty = false
	}
	c.dirty = nil
	return jobs
}

func (o *owner) currentRank() int64 {
	switch {
	case o.service != nil:
		return o.service.rank
	case o.pod != nil:
		return o.pod.rank
	}
	return 0
}

// claimed lists the keys that o wanted when it was last compiled, sorted.
func (o *owner) claimed() []dataplane.FrontendKey {
	n := len(o.lost)
	if o.compiled != nil {
		n += len(o.compiled.Frontends)
	}
	keys := make([]dataplane.FrontendKey, 0, n)
	keys = append(keys, o.lost...)
	if o.compiled != nil {
		for i := range o.compiled.Frontends {
			keys = append(keys, o.compiled.Frontends[i].FrontendKey)
		}
	}
	slices.SortFunc(keys, dataplane.FrontendKey.Compare)
	return keys
}

// compile makes one owner's Frontends and puts what changed into r.
func (c *Compiler) compile(j *job, r *Result) {
	won := c.won(j)
	b := builder{c: c, owner: j.owner}
	made := &dataplane.Service{Name: j.name, Frontends: make([]dataplane.Frontend, 0, len(won))}
	for i := range won {
		made.Frontends = append(made.Frontends, b.frontend(&won[i]))
	}
	if b.cut > 0 {
		j.reasons = append(j.reasons, fmt.Sprintf("more than %d endpoints; %d are left out", c.opts.MaxBackendsPerSet, b.cut))
	}
	if len(made.Frontends) == 0 {
		made = nil
	}
	if replace(&j.compiled, made) {
		if r.Change.Services == nil {
			r.Change.Services = map[dataplane.ServiceName]*dataplane.Service{}
		}
		r.Change.Services[j.name] = made
		if times := c.triggerTimes[j.name]; len(times) > 0 {
			if r.TriggerTimes == nil {
				r.TriggerTimes = map[dataplane.ServiceName][]time.Time{}
			}
			r.TriggerTimes[j.name] = times
		}
	}
	c.problems.set(j.object(), compiling, j.reasons)
	c.updateNoLocal(j.owner, b.noLocal)
	c.updateHealth(j.owner, r)
	if j.service == nil && j.pod == nil && len(j.slices) == 0 {
		delete(c.owners, j.name)
	}
}

// won picks the wants that j has, in the order of Kind and key, and notes what
// it lost to whom.
func (c *Compiler) won(j *job) []want {
	j.lost = nil
	won := j.wants[:0]
	for _, w := range j.wants {
		if holder := c.claims.winner[w.FrontendKey]; holder != j.owner {
			j.lost = append(j.lost, w.FrontendKey)
			j.reasons = append(j.reasons, fmt.Sprintf("%v %s is held by %v, which is older or first by name; this one takes over when that is gone", w.kind, w.FrontendKey, holder.object()))
			continue
		}
		won = append(won, w)
	}
	slices.SortStableFunc(won, func(a, b want) int { return cmp.Compare(a.kind, b.kind) })
	return won
}

// replace stores made and reports whether a kernel sees a difference. Where
// nothing at all differs the old one stays, so that it is not held twice.
func replace(compiled **dataplane.Service, made *dataplane.Service) bool {
	old := *compiled
	switch {
	case old == nil && made == nil:
		return false
	case old == nil || made == nil || !old.Equal(made):
		*compiled = made
		return true
	case !sameZones(old, made):
		*compiled = made
	}
	return false
}

func sameZones(a, b *dataplane.Service) bool {
	same := func(x, y []dataplane.Backend) bool {
		return slices.EqualFunc(x, y, func(a, b dataplane.Backend) bool { return a.Zone == b.Zone })
	}
	return slices.EqualFunc(a.Frontends, b.Frontends, func(f, g dataplane.Frontend) bool {
		return same(f.Internal.Backends, g.Internal.Backends) && same(f.External.Backends, g.External.Backends) && same(f.Draining, g.Draining)
	})
}

// builder makes the Frontends of one owner.
type builder struct {
	c     *Compiler
	owner *owner
	// sets is indexed by port and family, each made when first asked for.
	sets    []portSets
	noLocal [2]bool
	cut     int
}

func (b *builder) frontend(w *want) dataplane.Frontend {
	f := dataplane.Frontend{FrontendKey: w.FrontendKey, Kind: w.kind}
	if w.kind == dataplane.HostPort {
		b.hostPort(&f, w.port)
		return f
	}
	s := b.owner.service
	f.PortName = s.ports[w.port].name.Value()
	f.AffinitySeconds = s.affinitySeconds
	sets := b.setsOf(w.port, familyOf(w.Address))
	if w.kind == dataplane.ClusterIP {
		b.internal(&f, s, sets)
	} else {
		b.external(&f, s, sets)
	}
	if w.kind == dataplane.LoadBalancer {
		f.SourceRanges = s.allowedSources(w.Address, &b.c.node)
	}
	return f
}

// internal fills in a ClusterIP: internalTrafficPolicy decides for everyone
// who reaches it, and Local without a local endpoint is as without any.
func (b *builder) internal(f *dataplane.Frontend, s *service, sets *portSets) {
	policy, backends := inCluster, sets.cluster
	if s.internalLocal {
		policy, backends = inLocal, sets.local
		b.noLocal[dataplane.Internal] = b.noLocal[dataplane.Internal] || sets.any && len(backends) == 0
	}
	f.Internal = dataplane.BackendSet{Backends: backends, OnEmpty: dataplane.Reject}
	f.External = f.Internal
	f.Draining = sets.notIn[policy]
	f.MasqueradeExternal = true
}

// external fills in the other kinds: clients of this node and its pods always
// have the Cluster policy, those from outside externalTrafficPolicy.
func (b *builder) external(f *dataplane.Frontend, s *service, sets *portSets) {
	f.Internal = dataplane.BackendSet{Backends: sets.cluster, OnEmpty: dataplane.Reject}
	if !s.externalLocal {
		f.External = f.Internal
		f.Draining = sets.notIn[inCluster]
		f.MasqueradeExternal = true
		return
	}
	f.External = dataplane.BackendSet{Backends: sets.local, OnEmpty: dataplane.Reject}
	if sets.any {
		f.External.OnEmpty = dataplane.Drop
		b.noLocal[dataplane.External] = b.noLocal[dataplane.External] || len(sets.local) == 0
	}
	f.Draining = sets.notIn[inCluster|inLocal]
}

// hostPort fills in a Frontend of a Pod: the Pod is its one Backend, ready or
// not, and sees its clients' addresses.
func (b *builder) hostPort(f *dataplane.Frontend, index int) {
	p := b.owner.pod
	h := &p.ports[index]
	f.PortName = h.name.Value()
	a := p.ips[familyOf(f.Address)]
	set := dataplane.BackendSet{Backends: []dataplane.Backend{{
		Address: a, Port: h.container, Local: true, HostNetwork: b.c.node.isOwn(a),
	}}}
	f.Internal, f.External = set, set
}

func (b *builder) setsOf(port int, f family) *portSets {
	ports := b.owner.service.ports
	if b.sets == nil {
		b.sets = make([]portSets, len(ports)*len(families))
	}
	sets := &b.sets[port*len(families)+int(f)]
	if !sets.made {
		*sets = b.c.portSetsOf(b.owner, &ports[port], f)
		b.cut = max(b.cut, sets.cut)
	}
	return sets
}

func (c *Compiler) updateNoLocal(o *owner, now [2]bool) {
	for scope := range now {
		if o.noLocal[scope] {
			c.noLocal[scope]--
		}
		if now[scope] {
			c.noLocal[scope]++
		}
	}
	o.noLocal = now
}

func (c *Compiler) updateHealth(o *owner, r *Result) {
	var now *HealthCheck
	if o.service != nil && o.service.healthCheckPort != 0 {
		now = &HealthCheck{NodePort: o.service.healthCheckPort, LocalEndpoints: c.localReady(o)}
	}
	if now == nil && o.health == nil || now != nil && o.health != nil && *now == *o.health {
		return
	}
	o.health = now
	if r.HealthChecks == nil {
		r.HealthChecks = map[dataplane.ServiceName]*HealthCheck{}
	}
	r.HealthChecks[o.name] = now
}

// localReady counts the endpoints that a load balancer's health check is told
// of: those on this node that are ready, each address once however many ports
// it has. A dual-stack Pod has one in each family, so the larger family counts.
func (c *Compiler) localReady(o *owner) int {
	var seen [2]map[netip.Addr]struct{}
	for _, s := range o.slices {
		if len(s.ports) == 0 {
			continue
		}
		for i := range s.endpoints {
			e := &s.endpoints[i]
			if e.terminating || c.node.name == "" || e.where.Value().node != c.node.name {
				continue
			}
			if seen[s.family] == nil {
				seen[s.family] = map[netip.Addr]struct{}{}
			}
			seen[s.family][e.addr] = struct{}{}
		}
	}
	return max(len(seen[v4]), len(seen[v6]))
}
