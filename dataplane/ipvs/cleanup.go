// SPDX-License-Identifier: Apache-2.0

package ipvs

import (
	"errors"
	"fmt"
)

// Present reports whether kernel state of this dataplane is in the calling
// thread's network namespace.
func Present(o Options) (bool, error) {
	o = o.withDefaults()
	t, err := openTable(o.AffinityMax)
	if err != nil {
		return false, err
	}
	defer t.close()
	if there, err := t.present(); there || err != nil {
		return there, err
	}
	r, err := openRoutes()
	if err != nil {
		return false, err
	}
	defer r.close()
	_, err = r.handle.LinkByName(deviceName)
	if isNoLink(err) {
		return false, nil
	}
	return err == nil, err
}

// Cleanup removes all that the dataplane left in the calling thread's network
// namespace, and nothing else: the table first, so that nothing new comes to
// what goes after it. Settings are set to what they were, where nobody changed
// them since. It returns what it removed.
func Cleanup(o Options) (removed []string, err error) {
	o = o.withDefaults()
	t, err := openTable(o.AffinityMax)
	if err != nil {
		return nil, err
	}
	defer t.close()
	var errs []error
	notes, gone, err := cleanTable(t)
	removed = append(removed, gone...)
	errs = append(errs, err)
	gone, err = cleanDevice()
	removed = append(removed, gone...)
	errs = append(errs, err)
	if haveIPVS() == nil {
		gone, err = cleanServers(o, notes)
		removed = append(removed, gone...)
		errs = append(errs, err)
	}
	gone, err = o.undoSysctls(notes)
	return append(removed, gone...), errors.Join(append(errs, err)...)
}

func cleanTable(t *table) (notes elements, removed []string, err error) {
	there, err := t.present()
	if err != nil || !there {
		return nil, nil, err
	}
	// A table that somebody broke has no notes to read.
	notes, _ = t.memory()
	if err := t.remove(); err != nil {
		return notes, nil, err
	}
	return notes, []string{"nftables table inet " + tableName}, nil
}

func cleanDevice() (removed []string, err error) {
	r, err := openRoutes()
	if err != nil {
		return nil, err
	}
	defer r.close()
	l, err := r.handle.LinkByName(deviceName)
	if isNoLink(err) {
		return nil, nil
	}
	if err == nil {
		err = r.handle.LinkDel(l)
	}
	if err != nil {
		return nil, fmt.Errorf("delete device %s: %w", deviceName, err)
	}
	return []string{"device " + deviceName}, nil
}

func cleanServers(o Options, notes elements) (removed []string, err error) {
	k, err := openKernel(o.marks())
	if err != nil {
		return nil, err
	}
	defer k.close()
	servers, err := k.servers()
	if err != nil {
		return nil, err
	}
	var errs []error
	for mark, s := range servers {
		if err := k.remove(mark, s.family); err != nil {
			errs = append(errs, err)
			continue
		}
		removed = append(removed, fmt.Sprintf("virtual server of mark %#x", mark))
	}
	undone, err := k.undoTimeouts(notes)
	return append(removed, undone...), errors.Join(append(errs, err)...)
}

// Withdraw leaves IPVS deciding no new flow, for a successor that takes over:
// the flows it carries go on. Cleanup removes the rest.
func Withdraw(o Options) error {
	o = o.withDefaults()
	t, err := openTable(o.AffinityMax)
	if err != nil {
		return err
	}
	defer t.close()
	if there, err := t.present(); err != nil || !there {
		return err
	}
	for _, s := range t.specs {
		switch s.name[:len(s.name)-1] {
		case "internal", "external", "refused-internal", "refused-external", "dropped-internal", "dropped-external", "restricted", "vips":
			t.conn.FlushSet(t.sets[s.name])
		}
	}
	return t.commit()
}
