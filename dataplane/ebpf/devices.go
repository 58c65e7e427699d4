// SPDX-License-Identifier: Apache-2.0

package ebpf

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"fairlead.dev/bpf"
	"fairlead.dev/dataplane"
	"fairlead.dev/dataplane/nsthread"
	"fairlead.dev/dataplane/uplink"
)

// devices keeps the packet path attached to every device of the network
// namespace it was made in, as devices come, go and change their part.
type devices struct {
	options  Options
	programs *bpf.FairleadPrograms
	log      *slog.Logger
	ns       netns.NsHandle
	route    *netlink.Handle
	uplinks  *uplink.Uplinks
	clsact   bool // the kernel has no tcx

	// Of the goroutine of run.
	attached map[int]role // by ifindex
	skipped  map[int]bool // no Ethernet: said once
}

// role is which way a device leads.
type role uint8

const (
	podFacing role = iota + 1
	outward
)

// newDevices attaches to the devices that are there now.
func newDevices(o Options, p *bpf.FairleadPrograms) (*devices, error) {
	ns, err := netns.Get()
	if err != nil {
		return nil, fmt.Errorf("open network namespace: %w", err)
	}
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		ns.Close()
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	u, err := uplink.Open(o.Devices, o.Logger)
	if err != nil {
		h.Close()
		ns.Close()
		return nil, err
	}
	d := &devices{
		options: o, programs: p, log: o.Logger, ns: ns, route: h, uplinks: u, clsact: o.Clsact || haveTCX() != nil,
		attached: map[int]role{}, skipped: map[int]bool{},
	}
	if err := d.reconcile(); err != nil {
		d.close()
		return nil, err
	}
	return d, nil
}

func (d *devices) close() {
	d.uplinks.Close()
	d.route.Close()
	d.ns.Close()
}

// setNode tells which addresses mark a device as leading out.
func (d *devices) setNode(n dataplane.Node) {
	d.uplinks.SetPrimary([]netip.Addr{n.PrimaryIPv4, n.PrimaryIPv6})
}

// run follows the devices. It keeps its thread in their namespace, since a
// program is attached to an ifindex of the caller's.
func (d *devices) run(ctx context.Context) {
	if err := nsthread.In(d.ns, func() error {
		d.uplinks.Watch(ctx, func() {
			if err := d.reconcile(); err != nil {
				d.log.Warn("attach packet path", "error", err)
			}
		})
		return nil
	}); err != nil {
		d.log.Error("follow devices: those that come later are not attached to", "error", err)
	}
}

// reconcile attaches to new devices, changes programs where a device's part
// changed, and forgets devices that are gone.
func (d *devices) reconcile() error {
	var errs []error
	present := map[int]bool{}
	for _, dev := range d.uplinks.Devices() {
		present[dev.Index] = true
		if dev.Link != "ether" {
			if !d.skipped[dev.Index] {
				d.skipped[dev.Index] = true
				d.log.Warn("device has no Ethernet header: Service traffic that enters there is not handled", "device", dev.Name, "type", dev.Link)
			}
			continue
		}
		r := podFacing
		if dev.Uplink {
			r = outward
		}
		if d.attached[dev.Index] == r {
			continue
		}
		if err := d.attach(dev.Index, r); hasVanished(err) {
			continue // the kernel's word of it is on its way
		} else if err != nil {
			errs = append(errs, fmt.Errorf("device %s: %w", dev.Name, err))
			continue
		}
		d.attached[dev.Index] = r
	}
	d.forget(present)
	return errors.Join(errs...)
}

// hasVanished: the device went after it was listed (ENOLINK: a link that was
// attached to one).
func hasVanished(err error) bool {
	return errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENOLINK)
}

// attach makes ingress and egress of a device run our programs.
func (d *devices) attach(ifindex int, r role) error {
	ingress := d.programs.FairleadFromPod
	if r == outward {
		ingress = d.programs.FairleadFromUplink
	}
	// Egress first: a translated question must find its answer translated.
	if err := d.attachOne(ifindex, "egress", ebpf.AttachTCXEgress, d.programs.FairleadFromHost); err != nil {
		return err
	}
	return d.attachOne(ifindex, "ingress", ebpf.AttachTCXIngress, ingress)
}

func (d *devices) attachOne(ifindex int, way string, at ebpf.AttachType, p *ebpf.Program) error {
	if d.clsact {
		return attachClsact(d.route, ifindex, way, p)
	}
	pin := d.pin(ifindex, way)
	done, err := replaceProgram(pin, p, func(i *link.Info) bool {
		t := i.TCX()
		return t != nil && int(t.Ifindex) == ifindex
	})
	if err != nil || done {
		return err
	}
	l, err := link.AttachTCX(link.TCXOptions{Interface: ifindex, Program: p, Attach: at, Anchor: link.Head()})
	if err != nil {
		return fmt.Errorf("attach tcx %s: %w", way, err)
	}
	defer l.Close()
	return l.Pin(pin)
}

func (d *devices) pin(ifindex int, way string) string {
	return filepath.Join(d.options.pinDir(), "links", fmt.Sprintf("tcx-%d-%s", ifindex, way))
}

// forget removes the pins of devices that are gone, an earlier agent's too.
func (d *devices) forget(present map[int]bool) {
	for i := range d.attached {
		if !present[i] {
			delete(d.attached, i)
		}
	}
	for i := range d.skipped {
		if !present[i] {
			delete(d.skipped, i)
		}
	}
	pins, err := filepath.Glob(filepath.Join(d.options.pinDir(), "links", "tcx-*-*"))
	if err != nil {
		return
	}
	for _, pin := range pins {
		field := strings.Split(filepath.Base(pin), "-")
		if len(field) != 3 {
			continue
		}
		if i, err := strconv.Atoi(field[1]); err == nil && !present[i] {
			if err := os.Remove(pin); err != nil && !errors.Is(err, fs.ErrNotExist) {
				d.log.Warn("remove pin of a device that is gone", "pin", pin, "error", err)
			}
		}
	}
}
