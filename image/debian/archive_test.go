// SPDX-License-Identifier: Apache-2.0

package debian

import (
	"os"
	"strings"
	"testing"
)

// By way of a real mirror: what others depend on.
func TestPackagesOfAnotherArchitectureCanBeHad(t *testing.T) {
	if testing.Short() {
		t.Skip("needs Debian's archive")
	}
	a, err := Open(t.Context(), t.TempDir(), "bookworm", "arm64")
	if err != nil {
		t.Fatal(err)
	}
	text, err := a.Show("libmnl0")
	if err != nil || !strings.Contains(text, "\nArchitecture: arm64\n") {
		t.Fatalf("%v in:\n%s", err, text)
	}
	_, version, _ := strings.Cut(text, "\nVersion: ")
	version, _, _ = strings.Cut(version, "\n")
	path, err := a.Download(t.TempDir(), "libmnl0", version)
	if err != nil {
		t.Fatal(err)
	}
	if i, err := os.Stat(path); err != nil || i.Size() < 1000 {
		t.Errorf("%s: %v, %v", path, i, err)
	}
	if _, err := a.Download(t.TempDir(), "libmnl0", "0.0.1"); err == nil {
		t.Error("a version that there never was is downloaded")
	}
}
