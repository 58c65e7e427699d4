// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"os"
	"path/filepath"

	"fairlead.dev/podrunner/containerdtest"
	"fairlead.dev/test/e2e/controlplane"
)

// program is one that the e2e tests built.
func (k *testCase) program(b controlplane.Binary) (path string, binary []byte) {
	k.Helper()
	path, err := b.Path()
	if err != nil {
		k.Fatal(err)
	}
	if binary, err = os.ReadFile(path); err != nil {
		k.Fatalf("%v; run `go run ./cmd/build-controlplane %s` in test/e2e once", err, b)
	}
	return path, binary
}

// importProgram gives all nodes an image of that name with the program alone.
func (k *testCase) importProgram(b controlplane.Binary, image string) {
	k.Helper()
	_, binary := k.program(b)
	archive, err := containerdtest.ProgramTar(image, string(b), binary)
	if err != nil {
		k.Fatal(err)
	}
	k.importImages(archive)
}

// importImages gives all nodes what is in the archive.
func (k *testCase) importImages(archive []byte) {
	k.Helper()
	path := filepath.Join(k.TempDir(), "image.tar")
	if err := os.WriteFile(path, archive, 0o644); err != nil {
		k.Fatal(err)
	}
	for _, n := range k.nodes {
		if err := n.importImage(path); err != nil {
			k.Fatal(err)
		}
	}
}
