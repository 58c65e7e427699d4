// SPDX-License-Identifier: Apache-2.0

package source

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

const (
	// nodePortFirst and nodePortCount are the API server's default range,
	// 30000-32767.
	nodePortFirst = 30000
	nodePortCount = 2768
	// keepGrant is how long the addresses of a Service that is gone are kept
	// for its return, where nothing else needs them.
	keepGrant = 10 * time.Minute
)

// grant is what one Service was given.
type grant struct {
	addrs []netip.Addr // at most one a family
	// nodePorts are by protocol and port: "TCP/80".
	nodePorts   map[string]int32
	healthCheck int32
	// gone is when the Service went away; zero while it exists.
	gone time.Time
}

func (g *grant) empty() bool {
	return len(g.addrs) == 0 && len(g.nodePorts) == 0 && g.healthCheck == 0
}

// claim is what the manifest of a Service asks for by value.
type claim struct {
	addrs []netip.Addr
	ports []int32
}

func claimOf(s *corev1.Service) claim {
	var c claim
	for _, ip := range s.Spec.ClusterIPs {
		if a, err := netip.ParseAddr(ip); err == nil {
			c.addrs = append(c.addrs, a)
		}
	}
	for i := range s.Spec.Ports {
		if p := s.Spec.Ports[i].NodePort; p != 0 {
			c.ports = append(c.ports, p)
		}
	}
	if p := s.Spec.HealthCheckNodePort; p != 0 {
		c.ports = append(c.ports, p)
	}
	return c
}

// pool knows which values are in use: claimed by a manifest, by any number of
// Services, or held by the one Service that was given it.
type pool[V comparable] struct {
	claimed map[V]int
	held    map[V]types.NamespacedName
}

func newPool[V comparable]() pool[V] {
	return pool[V]{claimed: map[V]int{}, held: map[V]types.NamespacedName{}}
}

func (p *pool[V]) free(v V) bool {
	if p.claimed[v] > 0 {
		return false
	}
	_, held := p.held[v]
	return !held
}

func (p *pool[V]) unclaim(v V) {
	if p.claimed[v]--; p.claimed[v] <= 0 {
		delete(p.claimed, v)
	}
}

// allocator gives ClusterIPs and node ports to Services that name none. A value
// that some manifest names is never given away: its holder moves. As in an API
// server, values are taken from the upper part of a range first, so that those
// who choose a value have the lower part to themselves (KEP-3070, KEP-3668).
// Where a search begins depends on the Service's name only, so that values
// mostly stay the same even where no state was kept.
type allocator struct {
	ranges []netip.Prefix // at most one a family; the first is the default family
	addrs  pool[netip.Addr]
	ports  pool[int32]
	grants map[types.NamespacedName]*grant
	// changed: the grants are not as last saved.
	changed bool
}

func newAllocator(ranges []netip.Prefix) (*allocator, error) {
	a := &allocator{addrs: newPool[netip.Addr](), ports: newPool[int32](), grants: map[types.NamespacedName]*grant{}}
	for _, r := range ranges {
		if !r.IsValid() || r.Addr().Is4In6() {
			return nil, fmt.Errorf("service CIDR %v is not a prefix", r)
		}
		if slices.ContainsFunc(a.ranges, func(o netip.Prefix) bool { return o.Addr().Is4() == r.Addr().Is4() }) {
			return nil, fmt.Errorf("service CIDR %v is a second one of its family: give one for IPv4 and one for IPv6", r)
		}
		a.ranges = append(a.ranges, r.Masked())
	}
	return a, nil
}

func (a *allocator) rangeOf(f corev1.IPFamily) (netip.Prefix, bool) {
	for _, r := range a.ranges {
		if familyOf(r.Addr()) == f {
			return r, true
		}
	}
	return netip.Prefix{}, false
}

// claim records what a manifest names, in place of what it named before, and
// gives the Services that have to move. All Services that exist are to claim
// before the first is filled: what is not known to exist may be given away.
func (a *allocator) claim(key types.NamespacedName, before, now claim) (evicted []types.NamespacedName) {
	if g := a.grants[key]; g != nil {
		g.gone = time.Time{}
	}
	for _, v := range before.addrs {
		a.addrs.unclaim(v)
	}
	for _, v := range before.ports {
		a.ports.unclaim(v)
	}
	for _, v := range now.addrs {
		a.addrs.claimed[v]++
		if holder, held := a.addrs.held[v]; held {
			a.dropAddr(holder, v)
			evicted = append(evicted, holder)
		}
	}
	for _, v := range now.ports {
		a.ports.claimed[v]++
		if holder, held := a.ports.held[v]; held {
			a.dropPort(holder, v)
			evicted = append(evicted, holder)
		}
	}
	return slices.DeleteFunc(evicted, func(k types.NamespacedName) bool { return k == key })
}

func (a *allocator) dropAddr(key types.NamespacedName, v netip.Addr) {
	delete(a.addrs.held, v)
	g := a.grants[key]
	g.addrs = slices.DeleteFunc(g.addrs, func(o netip.Addr) bool { return o == v })
	a.prune(key, g)
}

func (a *allocator) dropPort(key types.NamespacedName, v int32) {
	delete(a.ports.held, v)
	g := a.grants[key]
	for name, p := range g.nodePorts {
		if p == v {
			delete(g.nodePorts, name)
		}
	}
	if g.healthCheck == v {
		g.healthCheck = 0
	}
	a.prune(key, g)
}

func (a *allocator) prune(key types.NamespacedName, g *grant) {
	a.changed = true
	if g.empty() {
		delete(a.grants, key)
	}
}

// release takes back all that a Service was given.
func (a *allocator) release(key types.NamespacedName) {
	g := a.grants[key]
	if g == nil {
		return
	}
	for _, v := range g.addrs {
		delete(a.addrs.held, v)
	}
	for _, v := range g.nodePorts {
		delete(a.ports.held, v)
	}
	delete(a.ports.held, g.healthCheck)
	delete(a.grants, key)
	a.changed = true
}

// gone notes that a Service does not exist any more.
func (a *allocator) gone(key types.NamespacedName, now time.Time) {
	if g := a.grants[key]; g != nil && g.gone.IsZero() {
		g.gone = now
	}
}

// expire releases what belonged to Services that are gone since before.
func (a *allocator) expire(before time.Time) {
	for key, g := range a.grants {
		if !g.gone.IsZero() && g.gone.Before(before) {
			a.release(key)
		}
	}
}

// reclaim releases the grants of all Services that are gone, for a range that
// is full, and reports whether there were any.
func (a *allocator) reclaim() bool {
	n := len(a.grants)
	a.expire(time.Unix(1<<40, 0))
	return len(a.grants) < n
}

var errFull = errors.New("in use")

// addr gives the Service's address of a family: the one that it has, or a new
// one.
func (a *allocator) addr(key types.NamespacedName, f corev1.IPFamily) (netip.Addr, error) {
	r, ok := a.rangeOf(f)
	if !ok {
		return netip.Addr{}, fmt.Errorf("wants an %s address: add an %s range to --service-cidr, or set spec.clusterIPs", f, f)
	}
	g := a.grants[key]
	if g != nil {
		for _, v := range g.addrs {
			if familyOf(v) != f {
				continue
			}
			if r.Contains(v) {
				return v, nil
			}
			a.dropAddr(key, v) // the range changed
			break
		}
	}
	first, count := usable(r)
	at := func(i uint64) netip.Addr { return addrPlus(first, i) }
	v, ok := pick(count, min(max(16, count/16), 256), start(key, string(f)), at, a.addrs.free)
	if !ok && a.reclaim() {
		v, ok = pick(count, 0, start(key, string(f)), at, a.addrs.free)
	}
	if !ok {
		return netip.Addr{}, fmt.Errorf("no address left: all %d of %v are %w: widen --service-cidr", count, r, errFull)
	}
	g = a.grantFor(key)
	g.addrs = append(g.addrs, v)
	a.addrs.held[v] = key
	return v, nil
}

// port gives the Service's node port called name ("TCP/80", or "" for the
// health check).
func (a *allocator) port(key types.NamespacedName, name string) (int32, error) {
	if g := a.grants[key]; g != nil {
		if v := g.port(name); v != 0 {
			return v, nil
		}
	}
	at := func(i uint64) int32 { return nodePortFirst + int32(i) }
	v, ok := pick(nodePortCount, 86, start(key, name), at, a.ports.free)
	if !ok && a.reclaim() {
		v, ok = pick(nodePortCount, 0, start(key, name), at, a.ports.free)
	}
	if !ok {
		return 0, fmt.Errorf("no node port left: all of %d-%d are %w: remove Services or set spec.allocateLoadBalancerNodePorts to false",
			nodePortFirst, nodePortFirst+nodePortCount-1, errFull)
	}
	g := a.grantFor(key)
	if a.ports.held[v] = key; name == "" {
		g.healthCheck = v
		return v, nil
	}
	if g.nodePorts == nil {
		g.nodePorts = map[string]int32{}
	}
	g.nodePorts[name] = v
	return v, nil
}

func (g *grant) port(name string) int32 {
	if name == "" {
		return g.healthCheck
	}
	return g.nodePorts[name]
}

// grantFor gives the grant of a Service that exists, to be added to.
func (a *allocator) grantFor(key types.NamespacedName) *grant {
	g := a.grants[key]
	if g == nil {
		g = &grant{}
		a.grants[key] = g
	}
	g.gone = time.Time{}
	a.changed = true
	return g
}

// pick looks for a free value among count: from a place that start decides on
// through all after the first static ones, then through those.
func pick[V any](count, static, start uint64, at func(uint64) V, free func(V) bool) (v V, ok bool) {
	if static >= count {
		static = 0
	}
	for i, n := uint64(0), count-static; i < n; i++ {
		if v = at(static + (start%n+i)%n); free(v) {
			return v, true
		}
	}
	for i := range static {
		if v = at(i); free(v) {
			return v, true
		}
	}
	return v, false
}

// start is where the search of a Service begins.
func start(key types.NamespacedName, what string) uint64 {
	h := fnv.New64a()
	for _, s := range []string{key.Namespace, key.Name, what} {
		h.Write([]byte(s))
		h.Write([]byte{0})
	}
	// FNV's low bits are weak for short inputs that differ at the end.
	v := h.Sum64()
	v ^= v >> 32
	v *= 0xd6e8feb86659fd93
	return v ^ v>>32
}

// usable gives the first address of a range that can be given, and how many
// there are: neither the network's own nor, in IPv4, the broadcast address. Of
// an IPv6 range no more than 2^32 are used.
func usable(r netip.Prefix) (first netip.Addr, count uint64) {
	bits := r.Addr().BitLen() - r.Bits()
	count = uint64(1)<<min(bits, 32) - 1
	if r.Addr().Is4() && count > 0 {
		count--
	}
	return r.Addr().Next(), count
}

func addrPlus(a netip.Addr, i uint64) netip.Addr {
	if a.Is4() {
		b := a.As4()
		binary.BigEndian.PutUint32(b[:], binary.BigEndian.Uint32(b[:])+uint32(i))
		return netip.AddrFrom4(b)
	}
	b := a.As16()
	low := binary.BigEndian.Uint64(b[8:])
	binary.BigEndian.PutUint64(b[8:], low+i)
	return netip.AddrFrom16(b)
}
