// SPDX-License-Identifier: Apache-2.0

// Package resilience proves that traffic does not notice what happens to the
// agent: the real binary is killed, replaced and stopped, and endpoints change
// as fast as they can, while clients connect through every path. It uses the
// topology of test/conformance and refuses to know how a Dataplane works,
// except that fairlead's leftovers in the kernel are counted.
//
// FAIRLEAD_SEED repeats a run's choices, FAIRLEAD_KILLS shortens the kill test.
package resilience
