// SPDX-License-Identifier: Apache-2.0

// Package controller moves what a Source says through compile into a
// Dataplane, and tells how that goes: health servers and metrics. It is
// responsible for when things happen (coalescing, retries, the background
// check) and for the facts of the node. It refuses to know what a Service
// means, which is compile's, and how a kernel is programmed, which is the
// Dataplane's.
package controller

import "context"

// Controller is the agent's loop. It is made by New and run once.
type Controller struct {
	opts Options
}

// New checks the options and makes a Controller. It opens nothing.
func New(o Options) (*Controller, error) {
	if _, err := o.complete(); err != nil {
		return nil, err
	}
	return &Controller{opts: o}, nil
}

// Run serves until ctx ends, and then returns nil with the kernel as it is.
// An error means that the node cannot be served: a first Sync that keeps
// failing, a Source that can deliver nothing, an address that cannot be bound.
func (c *Controller) Run(ctx context.Context) error {
	<-ctx.Done()
	return nil
}
