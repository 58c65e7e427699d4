// SPDX-License-Identifier: Apache-2.0

package ebpf

import (
	"fmt"
	"os"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/features"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"

	"fairlead.dev/dataplane"
)

// Check probes what this machine has, by feature and not by kernel version.
func Check(o Options) []dataplane.CheckResult {
	o = o.withDefaults()
	_ = rlimit.RemoveMemlock()
	return append([]dataplane.CheckResult{
		dataplane.Checked("bpffs", o.BPFFS, prepareCheck(o), "nothing survives the agent", true),
		checkCgroup(o),
		dataplane.Checked("BTF", "/sys/kernel/btf/vmlinux", haveBTF(), "the programs can't be fitted to the kernel", true),
		dataplane.Checked("socket hooks", "BPF_PROG_TYPE_CGROUP_SOCK_ADDR", features.HaveProgramType(ebpf.CGroupSockAddr), "no load balancing at the socket", true),
		dataplane.Checked("tc programs", "BPF_PROG_TYPE_SCHED_CLS", features.HaveProgramType(ebpf.SchedCLS), "no packet path", true),
		dataplane.Checked("tcx", "kernel 6.6", haveTCX(), "the packet path is attached with clsact filters", false),
		dataplane.Checked("bpf_set_retval", "kernel 5.18", features.HaveProgramHelper(ebpf.CGroupSockAddr, asm.FnSetRetval), "connect() to a Service without Backends is refused by the packet path, sendto() fails with EPERM", false),
		dataplane.Checked("bpf_sock_destroy", "kernel 6.5", haveKfunc("bpf_sock_destroy"), "sockets connected to a removed Backend are not ended", false),
		dataplane.Checked("netns cookie", "kernel 5.14", haveNetnsCookie(), "no NodePorts on loopback addresses; a client whose sockets and packets are both balanced has an affinity for each", false),
		dataplane.Checked("path MTU", "kernel 5.12", features.HaveProgramHelper(ebpf.SchedCLS, asm.FnCheckMtu), "a packet that does not fit its path is answered with the next smaller usual MTU", false),
		dataplane.Checked("coarse clock", "kernel 5.11", features.HaveProgramHelper(ebpf.SchedCLS, asm.FnKtimeGetCoarseNs), "some nanoseconds per packet", false),
		checkPorts(o),
	}, dataplane.CheckForwarding()...)
}

// prepareCheck is prepareBPFFS without making anything.
func prepareCheck(o Options) error {
	var fs unix.Statfs_t
	if err := unix.Statfs(o.BPFFS, &fs); err != nil {
		return fmt.Errorf("%s: %w", o.BPFFS, err)
	}
	if fs.Type != unix.BPF_FS_MAGIC {
		return fmt.Errorf("%s is not a bpffs: mount -t bpf bpf %s", o.BPFFS, o.BPFFS)
	}
	return nil
}

func checkCgroup(o Options) dataplane.CheckResult {
	root, _, err := cgroupRoot(o)
	return dataplane.Checked("cgroup2", root, err, "no load balancing at the socket", true)
}

func haveBTF() error {
	_, err := btf.LoadKernelSpec()
	return err
}

func haveKfunc(name string) error {
	spec, err := btf.LoadKernelSpec()
	if err != nil {
		return err
	}
	var f *btf.Func
	return spec.TypeByName(name, &f)
}

func haveNetnsCookie() error {
	_, err := netnsCookie()
	return err
}

// haveTCX asks whether the kernel knows the link type: an enum in its BTF.
func haveTCX() error {
	spec, err := btf.LoadKernelSpec()
	if err != nil {
		return err
	}
	var e *btf.Enum
	if err := spec.TypeByName("bpf_attach_type", &e); err != nil {
		return err
	}
	for _, v := range e.Values {
		if v.Name == "BPF_TCX_INGRESS" {
			return nil
		}
	}
	return ebpf.ErrNotSupported
}

// checkPorts: a masqueraded flow must not take a port that a process of the
// node connects from.
func checkPorts(o Options) dataplane.CheckResult {
	const key = "net.ipv4.ip_local_port_range"
	ours := fmt.Sprintf("masquerade ports %d to %d", o.MasqueradePortMin, o.MasqueradePortMax)
	b, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
	var low, high uint16
	if err == nil {
		_, err = fmt.Sscan(string(b), &low, &high)
	}
	if err == nil && low <= o.MasqueradePortMax && o.MasqueradePortMin <= high {
		err = fmt.Errorf("%s overlap %s %d to %d", ours, key, low, high)
	}
	return dataplane.Checked("masquerade ports", ours, err, "a masqueraded flow may take the port of a process on the node", false)
}
