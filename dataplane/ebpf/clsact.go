// SPDX-License-Identifier: Apache-2.0

package ebpf

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Where a kernel has no tcx (before 6.6) the packet path is a classic filter in
// the clsact qdisc of each device: it stays when the agent goes, and replacing
// it is atomic, as with a link. A preference of its own keeps it apart from
// filters of others.
const (
	clsactPreference = 0xfa1d
	clsactHandle     = 1
)

var clsactParents = map[string]uint32{"ingress": netlink.HANDLE_MIN_INGRESS, "egress": netlink.HANDLE_MIN_EGRESS}

// attachClsact makes the device's filter run p, adding qdisc and filter where
// they are not there yet. The calling thread is in the device's namespace.
func attachClsact(h *netlink.Handle, ifindex int, way string, p *ebpf.Program) error {
	qdisc := &netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: ifindex, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT}}
	if err := h.QdiscAdd(qdisc); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("add clsact qdisc: %w", err)
	}
	filter := &netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{
			LinkIndex: ifindex, Parent: clsactParents[way], Handle: clsactHandle, Priority: clsactPreference, Protocol: unix.ETH_P_ALL,
		},
		Fd: p.FD(), Name: "fairlead_" + way, DirectAction: true,
	}
	if err := h.FilterReplace(filter); err != nil {
		return fmt.Errorf("attach clsact %s filter: %w", way, err)
	}
	return nil
}

// removeClsact removes our filters from every device of the calling thread's
// namespace, and a clsact qdisc that nothing is left in.
func removeClsact() (removed []string, err error) {
	links, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list devices: %w", err)
	}
	var errs []error
	for _, l := range links {
		ours, others := 0, 0
		for way, parent := range clsactParents {
			filters, err := netlink.FilterList(l, parent)
			if err != nil {
				continue // no clsact here
			}
			for _, f := range filters {
				b, ok := f.(*netlink.BpfFilter)
				if !ok || !strings.HasPrefix(b.Name, "fairlead_") {
					others++
					continue
				}
				if err := netlink.FilterDel(f); err != nil {
					errs = append(errs, fmt.Errorf("remove filter of device %s: %w", l.Attrs().Name, err))
					continue
				}
				ours++
				removed = append(removed, fmt.Sprintf("clsact %s filter of %s", way, l.Attrs().Name))
			}
		}
		if ours > 0 && others == 0 {
			qdisc := &netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: l.Attrs().Index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT}}
			if err := netlink.QdiscDel(qdisc); err != nil {
				errs = append(errs, fmt.Errorf("remove clsact qdisc of device %s: %w", l.Attrs().Name, err))
			}
		}
	}
	return removed, errors.Join(errs...)
}
