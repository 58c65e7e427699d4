// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"fmt"
	"slices"
	"strconv"
)

// bucketSize is how many keys a chain lists before it becomes a node with up to
// sixteen chains below it. Both cost at most sixteen rules to walk.
const bucketSize = 16

// tree sorts keys into chains by their digits of four bits, so that a packet
// walks some rules of each level and not one for each key. Which chains there
// are depends on the keys alone and not on the order in which they came: what
// an earlier process left can be compared with what this one would make.
type tree[K any] struct {
	root *branch[K]
	// depth is the number of digits.
	depth   int
	digit   func(key K, level int) int
	compare func(a, b K) int
	// dirty and dead are the chains that changed since they were last taken.
	dirty map[*branch[K]]struct{}
	dead  map[string]struct{}
}

// branch is one chain: a bucket of keys, or a node with branches.
type branch[K any] struct {
	name     string
	level    int
	count    int
	keys     []K // sorted; of a bucket
	children *[16]*branch[K]
}

func newTree[K any](name string, depth int, digit func(K, int) int, compare func(a, b K) int) *tree[K] {
	// A chain's name has a character for each level.
	depth = min(depth, maxChainName-1-len(name))
	t := &tree[K]{depth: depth, digit: digit, compare: compare, dirty: map[*branch[K]]struct{}{}, dead: map[string]struct{}{}}
	t.root = t.branch(name, 0)
	return t
}

func (t *tree[K]) branch(name string, level int) *branch[K] {
	b := &branch[K]{name: name, level: level}
	t.mark(b)
	return b
}

func (t *tree[K]) mark(b *branch[K]) {
	t.dirty[b] = struct{}{}
	delete(t.dead, b.name)
}

func (t *tree[K]) kill(b *branch[K]) {
	delete(t.dirty, b)
	t.dead[b.name] = struct{}{}
	if b.children != nil {
		for _, c := range b.children {
			if c != nil {
				t.kill(c)
			}
		}
	}
}

// add puts a key into the tree, once.
func (t *tree[K]) add(key K) {
	b := t.root
	for b.count++; b.children != nil; b.count++ {
		d := t.digit(key, b.level)
		if b.children[d] == nil {
			b.children[d] = t.child(b, d)
			t.mark(b)
		}
		b = b.children[d]
	}
	i, _ := slices.BinarySearchFunc(b.keys, key, t.compare)
	b.keys = slices.Insert(b.keys, i, key)
	t.mark(b)
	t.split(b)
}

func (t *tree[K]) child(b *branch[K], digit int) *branch[K] {
	name := b.name + strconv.FormatInt(int64(digit), 16)
	if b.level == 0 {
		name = b.name + "-" + strconv.FormatInt(int64(digit), 16)
	}
	return t.branch(name, b.level+1)
}

func (t *tree[K]) split(b *branch[K]) {
	if b.count <= bucketSize || b.level == t.depth {
		return
	}
	keys := b.keys
	b.keys, b.children = nil, &[16]*branch[K]{}
	for _, key := range keys {
		d := t.digit(key, b.level)
		if b.children[d] == nil {
			b.children[d] = t.child(b, d)
		}
		c := b.children[d]
		c.keys = append(c.keys, key)
		c.count++
	}
	for _, c := range b.children {
		if c != nil {
			t.split(c)
		}
	}
}

// remove takes a key out that is in.
func (t *tree[K]) remove(key K) {
	b := t.root
	var small *branch[K] // the highest node that is to be a bucket
	for b.count--; b.children != nil; b.count-- {
		if small == nil && b.count <= bucketSize {
			small = b
		}
		d := t.digit(key, b.level)
		c := b.children[d]
		if c.count == 1 {
			b.children[d] = nil
			t.mark(b)
			t.kill(c)
			b = nil
			break
		}
		b = c
	}
	if b != nil {
		if i, ok := slices.BinarySearchFunc(b.keys, key, t.compare); ok {
			b.keys = slices.Delete(b.keys, i, i+1)
		}
		t.mark(b)
	}
	if small != nil {
		t.merge(small)
	}
}

func (t *tree[K]) merge(b *branch[K]) {
	keys := b.all(nil)
	for _, c := range b.children {
		if c != nil {
			t.kill(c)
		}
	}
	slices.SortFunc(keys, t.compare)
	b.keys, b.children = keys, nil
	t.mark(b)
}

func (b *branch[K]) all(keys []K) []K {
	keys = append(keys, b.keys...)
	if b.children != nil {
		for _, c := range b.children {
			if c != nil {
				keys = c.all(keys)
			}
		}
	}
	return keys
}

// touch marks the chain that lists a key.
func (t *tree[K]) touch(key K) {
	b := t.root
	for b.children != nil {
		b = b.children[t.digit(key, b.level)]
	}
	t.mark(b)
}

// touchAll marks every chain.
func (t *tree[K]) touchAll() { t.root.each(t.mark) }

func (b *branch[K]) each(f func(*branch[K])) {
	f(b)
	if b.children != nil {
		for _, c := range b.children {
			if c != nil {
				c.each(f)
			}
		}
	}
}

// stage gives the chains that changed to a table. to is the match of a digit
// at a level, list the rules of a key.
func (t *tree[K]) stage(out *table, to func(b *branch[K], digit int) string, list func(key K) []string) {
	for b := range t.dirty {
		var rules []string
		if b.children != nil {
			for d, c := range b.children {
				if c != nil {
					rules = append(rules, fmt.Sprintf("%s -j %s", to(b, d), c.name))
				}
			}
		}
		for _, key := range b.keys {
			rules = append(rules, list(key)...)
		}
		out.put(b.name, rules)
	}
	for name := range t.dead {
		out.drop(name)
	}
	clear(t.dirty)
	clear(t.dead)
}

// destroy gives up the whole tree.
func (t *tree[K]) destroy(out *table) {
	t.kill(t.root)
	for name := range t.dead {
		out.drop(name)
	}
}
