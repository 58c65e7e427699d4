// SPDX-License-Identifier: Apache-2.0

package ipvs

import (
	"cmp"
	"encoding/binary"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"

	"fairlead.dev/dataplane"
)

// elementKey is where an element is.
type elementKey struct {
	set string
	key string // as the kernel has it
	end bool   // the key is where a range of one field ends, exclusively
}

// element is what is there.
type element struct {
	keyEnd  string // where a range of several fields ends, inclusively
	value   uint32 // of a map
	comment string
}

// elements are those of a Service, or of the whole table.
type elements map[elementKey]element

func (e elements) put(set string, key []byte, v element) {
	e[elementKey{set: set, key: string(key)}] = v
}

// edit is a change of elements. One that is changed is in both.
type edit struct {
	deletes, adds elements
}

func newEdit() edit { return edit{elements{}, elements{}} }

func (e edit) empty() bool { return len(e.deletes)+len(e.adds) == 0 }

// difference gives the edit that makes before after.
func difference(before, after elements) edit {
	d := newEdit()
	for k, v := range before {
		if now, ok := after[k]; !ok || now != v {
			d.deletes[k] = v
		}
	}
	for k, v := range after {
		if was, ok := before[k]; !ok || was != v {
			d.adds[k] = v
		}
	}
	return d
}

// join adds another edit. What one deletes and the other adds as it was stays.
func (e edit) join(o edit) {
	for k, v := range o.deletes {
		if a, ok := e.adds[k]; ok && a == v {
			delete(e.adds, k)
			continue
		}
		e.deletes[k] = v
	}
	for k, v := range o.adds {
		if d, ok := e.deletes[k]; ok && d == v {
			delete(e.deletes, k)
			continue
		}
		e.adds[k] = v
	}
}

// frontends gives the Frontends an edit is about, and how many elements belong
// to no single one.
func (e edit) frontends() (keys map[dataplane.FrontendKey]bool, others int) {
	keys = map[dataplane.FrontendKey]bool{}
	ofServer := map[string]bool{}
	for _, side := range []elements{e.deletes, e.adds} {
		for k := range side {
			name := strings.TrimRight(k.set, "46")
			switch name {
			case "frontends", "internal", "external", "refused-internal", "refused-external", "dropped-internal", "dropped-external",
				"restricted", "masquerade", "sticky":
				if f, ok := parseFrontendKey([]byte(k.key)); ok {
					keys[f] = true
				}
			case "allowed":
				fields := len(k.key) - int(familyOfSet(k.set).bytes)
				if f, ok := parseFrontendKey([]byte(k.key)[:fields]); ok {
					keys[f] = true
				}
			default:
				ofServer[name+k.key[:4]] = true
			}
		}
	}
	return keys, len(ofServer)
}

func familyOfSet(name string) *family {
	if strings.HasSuffix(name, ipv6.suffix) {
		return ipv6
	}
	return ipv4
}

// bySet sorts elements into sets, in a fixed order.
func (e elements) bySet() (names []string, sets map[string][]elementKey) {
	sets = map[string][]elementKey{}
	for k := range e {
		sets[k.set] = append(sets[k.set], k)
	}
	for _, keys := range sets {
		slices.SortFunc(keys, func(a, b elementKey) int {
			return cmp.Or(strings.Compare(a.key, b.key), cmp.Compare(boolInt(b.end), boolInt(a.end)))
		})
	}
	return slices.Sorted(maps.Keys(sets)), sets
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

// kernel gives an element as the library wants it.
func (k elementKey) kernel(s *nftables.Set, v element) nftables.SetElement {
	out := nftables.SetElement{Key: []byte(k.key), IntervalEnd: k.end, Comment: v.comment}
	if v.keyEnd != "" {
		out.KeyEnd = []byte(v.keyEnd)
	}
	if s.IsMap {
		out.Val = number(v.value)
	}
	return out
}

// fromKernel is the inverse of kernel.
func fromKernel(set string, e nftables.SetElement) (elementKey, element) {
	v := element{keyEnd: string(e.KeyEnd), comment: e.Comment}
	if len(e.Val) == 4 {
		v.value = binary.NativeEndian.Uint32(e.Val)
	}
	return elementKey{set, string(e.Key), e.IntervalEnd}, v
}

// withoutNested drops prefixes that others hold, and sorts.
func withoutNested(prefixes []netip.Prefix) []netip.Prefix {
	sorted := slices.Clone(prefixes)
	for i, p := range sorted {
		sorted[i] = p.Masked()
	}
	slices.SortFunc(sorted, func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
	var out []netip.Prefix
	for _, p := range sorted {
		if len(out) == 0 || !out[len(out)-1].Overlaps(p) {
			out = append(out, p)
		}
	}
	return out
}

// lastOf is the last address of a prefix.
func lastOf(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for bit := p.Bits(); bit < len(b)*8; bit++ {
		b[bit/8] |= 0x80 >> (bit % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// putRanges puts prefixes of one family as ranges of one field: ranges that
// touch are one.
func (e elements) putRanges(set string, prefixes []netip.Prefix) {
	list := withoutNested(prefixes)
	for i := 0; i < len(list); {
		from, last := list[i].Addr(), lastOf(list[i])
		for i++; i < len(list) && last.Next() == list[i].Addr(); i++ {
			last = lastOf(list[i])
		}
		e.put(set, from.AsSlice(), element{})
		if next := last.Next(); next.IsValid() {
			e[elementKey{set, string(next.AsSlice()), true}] = element{}
		}
	}
}
