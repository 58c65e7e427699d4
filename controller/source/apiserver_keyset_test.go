// SPDX-License-Identifier: Apache-2.0

package source

import (
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/types"
	"pgregory.net/rapid"
)

func TestAKeysetReturnsExactlyWhatVanishedBetweenTwoLists(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		names := rapid.SliceOfDistinct(rapid.StringMatching(`[a-e]/[a-e]`), rapid.ID)
		k := newKeyset()
		want := map[string]bool{} // the model: what is known
		for range rapid.IntRange(1, 6).Draw(t, "lists") {
			k.begin()
			listed := names.Draw(t, "listed")
			for _, name := range listed {
				k.add(keyFrom(name))
			}
			if rapid.Bool().Draw(t, "interrupted") { // another list follows
				for _, name := range listed {
					want[name] = true
				}
				continue
			}
			var vanished []string
			for name := range want {
				if !slices.Contains(listed, name) {
					vanished = append(vanished, name)
				}
			}
			slices.Sort(vanished)
			var got []string
			for _, key := range k.finish() {
				got = append(got, key.String())
			}
			slices.Sort(got)
			if diff := cmp.Diff(vanished, got); diff != "" {
				t.Fatalf("vanished (-want +got):\n%s", diff)
			}
			clear(want)
			for _, name := range listed {
				want[name] = true
			}
			for _, name := range names.Draw(t, "changed") {
				k.add(keyFrom(name))
				want[name] = true
			}
			for _, name := range names.Draw(t, "deleted") {
				if got := k.remove(keyFrom(name)); got != want[name] {
					t.Fatalf("remove(%s) says known=%v, want %v", name, got, want[name])
				}
				delete(want, name)
			}
		}
		if len(k.seen) != len(want) {
			t.Fatalf("%d keys are kept, want %d", len(k.seen), len(want))
		}
	})
}

func keyFrom(s string) types.NamespacedName {
	return types.NamespacedName{Namespace: s[:1], Name: s[2:]}
}

func BenchmarkKeyset(b *testing.B) {
	keys := make([]types.NamespacedName, 20_000)
	for i := range keys {
		keys[i] = types.NamespacedName{Namespace: "default", Name: fmt.Sprintf("service-%d", i)}
	}
	b.ReportAllocs()
	for b.Loop() {
		k := newKeyset()
		k.begin()
		for _, key := range keys {
			k.add(key)
		}
		k.finish()
	}
}
