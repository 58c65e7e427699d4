// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"bytes"
	"context"
	"errors"
	"fmt"
)

// Cleanup removes all that the Dataplane left in the kernel, in whichever
// flavour, and returns what it removed. Established flows go on. It undoes
// route_localnet where its guard says that we set it.
func Cleanup(o Options) (removed []string, err error) {
	o = o.withDefaults()
	tools, err := present(o)
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, t := range tools {
		chains, err := cleanFamily(context.Background(), newFamily(t, o))
		removed = append(removed, chains...)
		if err != nil {
			errs = append(errs, fmt.Errorf("clean %s: %w", command(t.flavour, t.v6, ""), err))
		}
	}
	return removed, errors.Join(errs...)
}

func cleanFamily(ctx context.Context, f *family) (removed []string, err error) {
	saved, _, err := f.adopt(ctx)
	if err != nil {
		return nil, err
	}
	var in bytes.Buffer
	for _, name := range []string{"nat", "filter", "raw"} {
		out := f.tables[name]
		for chain, c := range saved[name].chains {
			for _, rule := range c.rules {
				if !isOurs(chain) && isOurs(target(rule)) {
					out.extra = append(out.extra, jump{name, chain, rule})
				}
			}
		}
		for chain := range out.held {
			out.drop(chain)
			removed = append(removed, command(f.tool.flavour, f.v6, "")+" "+name+" "+chain)
		}
		out.write(&in)
	}
	if err := f.closeLocalnet(); err != nil {
		return nil, err
	}
	if in.Len() == 0 {
		return nil, nil
	}
	if err := f.tool.restore(ctx, in.Bytes(), f.lockWait); err != nil {
		return nil, err
	}
	f.tool.ending.Wait()
	return removed, nil
}
