// SPDX-License-Identifier: Apache-2.0

package ebpf

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"fairlead.dev/bpf"
	"fairlead.dev/dataplane"
)

// devices keeps the packet path attached to every device of the network
// namespace it was made in, as devices come, go and change their part.
type devices struct {
	options  Options
	programs *bpf.FairleadPrograms
	log      *slog.Logger
	ns       netns.NsHandle
	route    *netlink.Handle
	wake     chan struct{}
	clsact   bool // the kernel has no tcx

	mu       sync.Mutex
	primary  []netip.Addr
	attached map[int]role // by ifindex
	skipped  map[int]bool // no Ethernet: said once
}

// role is which way a device leads.
type role uint8

const (
	podFacing role = iota + 1
	uplink
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
	d := &devices{
		options: o, programs: p, log: o.Logger, ns: ns, route: h, clsact: o.Clsact || haveTCX() != nil,
		wake: make(chan struct{}, 1), attached: map[int]role{}, skipped: map[int]bool{},
	}
	if err := d.reconcile(); err != nil {
		d.close()
		return nil, err
	}
	return d, nil
}

func (d *devices) close() {
	d.route.Close()
	d.ns.Close()
}

// setNode tells which addresses mark a device as leading out.
func (d *devices) setNode(n dataplane.Node) {
	d.mu.Lock()
	d.primary = []netip.Addr{n.PrimaryIPv4, n.PrimaryIPv6}
	d.mu.Unlock()
	d.kick()
}

func (d *devices) kick() {
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

// run follows link and route changes. It keeps its thread in the devices'
// namespace, since a program is attached to an ifindex of the caller's.
func (d *devices) run(ctx context.Context) {
	runtime.LockOSThread() // not unlocked: the thread ends with the goroutine
	// Entering takes CAP_SYS_ADMIN; in a pod of the host's network this thread
	// is there already.
	here, err := netns.Get()
	if err == nil {
		defer here.Close()
	}
	if err != nil || !here.Equal(d.ns) {
		if err := netns.Set(d.ns); err != nil {
			d.log.Error("enter network namespace of the devices: those that come later are not attached to", "error", err)
			return
		}
	}
	for {
		d.follow(ctx)
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Second): // the subscription broke: a new one
		}
	}
}

func (d *devices) follow(ctx context.Context) {
	done := make(chan struct{})
	defer close(done)
	links := make(chan netlink.LinkUpdate, 64)
	routes := make(chan netlink.RouteUpdate, 64)
	broken := make(chan error, 2)
	fail := func(err error) {
		select {
		case broken <- err:
		default:
		}
	}
	if err := netlink.LinkSubscribeWithOptions(links, done, netlink.LinkSubscribeOptions{ErrorCallback: fail}); err != nil {
		d.log.Warn("watch devices", "error", err)
		return
	}
	if err := netlink.RouteSubscribeWithOptions(routes, done, netlink.RouteSubscribeOptions{ErrorCallback: fail}); err != nil {
		d.log.Warn("watch routes", "error", err)
		return
	}
	for {
		if err := d.reconcile(); err != nil {
			d.log.Warn("attach packet path", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-broken:
			return
		case _, ok := <-links:
			if !ok {
				return
			}
		case _, ok := <-routes:
			if !ok {
				return
			}
		case <-d.wake:
		}
		for len(links) > 0 { // one look serves them all
			<-links
		}
		for len(routes) > 0 {
			<-routes
		}
	}
}

// reconcile attaches to new devices, changes programs where a device's part
// changed, and forgets devices that are gone.
func (d *devices) reconcile() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	links, err := d.route.LinkList()
	if err != nil {
		return fmt.Errorf("list devices: %w", err)
	}
	outward, err := d.outward()
	if err != nil {
		return err
	}
	var errs []error
	present := map[int]bool{}
	for _, l := range links {
		a := l.Attrs()
		present[a.Index] = true
		if a.Flags&net.FlagLoopback != 0 {
			continue
		}
		if a.EncapType != "ether" {
			if !d.skipped[a.Index] {
				d.skipped[a.Index] = true
				d.log.Warn("device has no Ethernet header: Service traffic that enters there is not handled", "device", a.Name, "type", a.EncapType)
			}
			continue
		}
		r := d.roleOf(l, outward)
		if d.attached[a.Index] == r {
			continue
		}
		if err := d.attach(a.Index, r); err != nil {
			errs = append(errs, fmt.Errorf("device %s: %w", a.Name, err))
			continue
		}
		d.attached[a.Index] = r
	}
	d.forget(present)
	return errors.Join(errs...)
}

// outward gives the devices with a default route or the node's own address.
func (d *devices) outward() (map[int]bool, error) {
	out := map[int]bool{}
	routes, err := d.route.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Dst: nil}, netlink.RT_FILTER_DST)
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	for _, r := range routes {
		out[r.LinkIndex] = true
		for _, hop := range r.MultiPath {
			out[hop.LinkIndex] = true
		}
	}
	addrs, err := d.route.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range addrs {
		ip, ok := netip.AddrFromSlice(a.IP)
		for _, p := range d.primary {
			// A /32 or /128 on a pod's veth (CNI ptp) does not lead out.
			if ones, bits := a.Mask.Size(); ok && p.IsValid() && p == ip.Unmap() && ones < bits {
				out[a.LinkIndex] = true
			}
		}
	}
	return out, nil
}

// tunnels lead to other nodes, so they are outward like a physical device.
var tunnels = map[string]bool{"vxlan": true, "geneve": true, "gretap": true, "ip6gretap": true}

func (d *devices) roleOf(l netlink.Link, outward map[int]bool) role {
	a := l.Attrs()
	if len(d.options.Devices) > 0 {
		for _, pattern := range d.options.Devices {
			if pattern == a.Name || (strings.HasSuffix(pattern, "*") && strings.HasPrefix(a.Name, strings.TrimSuffix(pattern, "*"))) {
				return uplink
			}
		}
		return podFacing
	}
	if outward[a.Index] || tunnels[l.Type()] || l.Type() == "device" {
		return uplink
	}
	return podFacing
}

// attach makes ingress and egress of a device run our programs.
func (d *devices) attach(ifindex int, r role) error {
	ingress := d.programs.FairleadFromPod
	if r == uplink {
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
