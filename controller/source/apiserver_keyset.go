// SPDX-License-Identifier: Apache-2.0

package source

import "k8s.io/apimachinery/pkg/types"

// keyset holds the keys of the objects that were delivered and not deleted.
// It finds what vanished between two lists, by the number of the list in which
// a key was last seen: a list need not be in memory as a whole.
type keyset struct {
	list uint64
	seen map[types.NamespacedName]uint64
}

func newKeyset() *keyset { return &keyset{seen: make(map[types.NamespacedName]uint64)} }

// begin starts a list. An unfinished list may be followed by another.
func (k *keyset) begin() { k.list++ }

// add notes an object of the present list or a later change.
func (k *keyset) add(key types.NamespacedName) { k.seen[key] = k.list }

// remove forgets an object and says whether it was known.
func (k *keyset) remove(key types.NamespacedName) bool {
	_, ok := k.seen[key]
	delete(k.seen, key)
	return ok
}

// finish ends the list: it forgets, and returns, the keys that were not in it.
func (k *keyset) finish() (vanished []types.NamespacedName) {
	for key, list := range k.seen {
		if list != k.list {
			vanished = append(vanished, key)
			delete(k.seen, key)
		}
	}
	return vanished
}
