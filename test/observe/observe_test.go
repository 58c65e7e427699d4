// SPDX-License-Identifier: Apache-2.0

package observe

import "testing"

// One agent serves all: what they look at does not change it.
func TestARunningAgent(t *testing.T) {
	b := newBed(t)
	t.Run("listens where the docs say and nowhere else", b.listens)
	t.Run("holds files that the docs name and no others", b.holdsFiles)
	b.load()
	t.Run("fills every panel of the dashboard", b.fillsTheDashboard)
	t.Run("has a status on the command line", b.hasAStatus)
	t.Run("has a status in a browser", b.hasAPage)
	t.Run("has a status when it is dead", b.hasAStatusWhenDead)
}
