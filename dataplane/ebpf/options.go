// SPDX-License-Identifier: Apache-2.0

// Package ebpf makes the kernel equal a Table with eBPF maps, socket hooks and
// tc programs. All state is in maps and links pinned in bpffs: a new process
// adopts what it finds there. It knows no Kubernetes objects.
package ebpf

import (
	"cmp"
	"log/slog"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// Defaults of Options.
const (
	DefaultBPFFS        = "/sys/fs/bpf"
	DefaultFrontendsMax = 262144
	DefaultSlotsMax     = 262144
	DefaultServicesMax  = 65536
	DefaultAffinityMax  = 65536
	DefaultDatagramsMax = 65536

	defaultMasqueradePortMin = 1024
	defaultMasqueradePortMax = 29999
)

// Options configures the eBPF dataplane. The zero value is usable.
type Options struct {
	// BPFFS is a directory in a mounted bpffs; pins go to BPFFS/fairlead.
	// Default /sys/fs/bpf.
	BPFFS string
	// CgroupRoot is the cgroup2 directory whose processes get the socket
	// hooks. Default: the cgroup2 mount found in /proc/self/mountinfo.
	CgroupRoot string
	// Devices are the names of the devices that lead out of the node; a
	// trailing '*' matches any suffix. Default: devices with a default route
	// or the node's primary address, physical ones and tunnels.
	Devices []string

	// Clsact attaches the packet path as classic filters even where the kernel
	// has tcx. A switch between the two wants a Cleanup first.
	Clsact bool

	// Draining: another dataplane decides new flows. Those of this one go on,
	// and its sockets to removed Backends are ended as ever.
	Draining bool

	// LeaveUnknownFlows: see the method of this name.
	LeaveUnknownFlows bool

	// Sizes of the maps, in entries; 0 for the default. A flow takes two
	// ConntrackMax entries; its default is the machine's memory / 64 KiB,
	// between 16,384 and 1,048,576. SlotsMax is the sum of all BackendSets,
	// ServicesMax counts Service ports.
	FrontendsMax, SlotsMax, ServicesMax, ConntrackMax, AffinityMax, DatagramsMax int

	// Timeouts after which an idle flow of the packet path is forgotten; 0
	// for the default.
	Timeouts Timeouts

	// MasqueradePortMin and MasqueradePortMax bound the source ports of
	// masqueraded flows, inclusive. They must not overlap the ports that the
	// node's own processes connect from (net.ipv4.ip_local_port_range).
	// Default 1024 to 29999.
	MasqueradePortMin, MasqueradePortMax uint16

	// Logger defaults to slog.Default().
	Logger *slog.Logger
}

// Timeouts of idle flows.
type Timeouts struct {
	TCPEstablished time.Duration // default 24 h, as kube-proxy's
	TCPTransient   time.Duration // opening or closing; default 60 s
	UDP            time.Duration // a question: not answered, or over in 2 s; default 30 s
	UDPStream      time.Duration // goes on for longer, with replies; default 180 s
	SCTP           time.Duration // default 5 min
}

func (o Options) withDefaults() Options {
	o.BPFFS = cmp.Or(o.BPFFS, DefaultBPFFS)
	o.FrontendsMax = cmp.Or(o.FrontendsMax, DefaultFrontendsMax)
	o.SlotsMax = cmp.Or(o.SlotsMax, DefaultSlotsMax)
	o.ServicesMax = cmp.Or(o.ServicesMax, DefaultServicesMax)
	o.AffinityMax = cmp.Or(o.AffinityMax, DefaultAffinityMax)
	o.DatagramsMax = cmp.Or(o.DatagramsMax, DefaultDatagramsMax)
	o.ConntrackMax = cmp.Or(o.ConntrackMax, conntrackMaxForMemory())
	o.Timeouts.TCPEstablished = cmp.Or(o.Timeouts.TCPEstablished, 24*time.Hour)
	o.Timeouts.TCPTransient = cmp.Or(o.Timeouts.TCPTransient, 60*time.Second)
	o.Timeouts.UDP = cmp.Or(o.Timeouts.UDP, 30*time.Second)
	o.Timeouts.UDPStream = cmp.Or(o.Timeouts.UDPStream, 180*time.Second)
	o.Timeouts.SCTP = cmp.Or(o.Timeouts.SCTP, 5*time.Minute)
	o.MasqueradePortMin = cmp.Or(o.MasqueradePortMin, defaultMasqueradePortMin)
	o.MasqueradePortMax = cmp.Or(o.MasqueradePortMax, defaultMasqueradePortMax)
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	return o
}

func conntrackMaxForMemory() int {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return 131072
	}
	n := int(uint64(info.Totalram) * uint64(info.Unit) / (64 << 10))
	return min(max(n, 16384), 1<<20)
}

// pinDir is where everything of one agent is pinned.
func (o Options) pinDir() string { return filepath.Join(o.BPFFS, "fairlead") }
