// SPDX-License-Identifier: Apache-2.0

package kubeletapi

import (
	"testing"

	"fairlead.dev/podrunner/containerdtest"
)

func TestMain(m *testing.M) { containerdtest.Main(m) }
