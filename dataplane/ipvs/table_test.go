// SPDX-License-Identifier: Apache-2.0

package ipvs

import "testing"

func TestTableCanBeMadeAsAWhole(t *testing.T) {
	err := inNewNamespace(func() {
		if err := tryTable(Options{}.withDefaults()); err != nil {
			t.Error(err)
		}
	})
	if err != nil {
		t.Skip(err)
	}
}
