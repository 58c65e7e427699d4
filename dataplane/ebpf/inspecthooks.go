// SPDX-License-Identifier: Apache-2.0

package ebpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"fairlead.dev/dataplane"
)

// fromUplink begins the name of the program on devices that lead out, as the
// kernel keeps it: 15 bytes.
const fromUplink = "fairlead_from_u"

// inspectDevices asks which program is attached to the ingress of each device
// of the calling thread's network namespace, as a link or as a filter.
func (r *Reader) inspectDevices(in *dataplane.Inspection) error {
	rules := &in.Rules
	links, err := netlink.LinkList()
	if err != nil {
		return fmt.Errorf("list devices: %w", err)
	}
	rules.Attached = []string{}
	for _, l := range links {
		program, err := r.ingress(l)
		if errors.Is(err, fs.ErrPermission) {
			program, err = "unknown", nil
			if _, said := in.Unreadable(dataplane.UnreadUplinks); !said {
				in.Unread = append(in.Unread, dataplane.Unread{Part: dataplane.UnreadUplinks,
					Why: "not readable without CAP_SYS_ADMIN: which devices lead out"})
			}
		}
		if err != nil {
			return fmt.Errorf("read the program of device %s: %w", l.Attrs().Name, err)
		}
		if program == "" {
			continue
		}
		rules.Attached = append(rules.Attached, l.Attrs().Name)
		if strings.HasPrefix(program, fromUplink) {
			rules.Uplinks = append(rules.Uplinks, l.Attrs().Name)
		}
	}
	slices.Sort(rules.Attached)
	slices.Sort(rules.Uplinks)
	return nil
}

// ingress is the name of our program there, empty where there is none.
func (r *Reader) ingress(l netlink.Link) (name string, err error) {
	index := l.Attrs().Index
	pinned, err := link.LoadPinnedLink(filepath.Join(r.pinDir, "links", fmt.Sprintf("tcx-%d-ingress", index)), nil)
	if err == nil {
		defer pinned.Close()
		info, err := pinned.Info()
		if err != nil {
			return "", err
		}
		if t := info.TCX(); t == nil || int(t.Ifindex) != index {
			return "", nil // the device went, and another has its number
		}
		return programName(info.Program)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	filters, err := netlink.FilterList(l, clsactParents["ingress"])
	if err != nil {
		return "", nil // no clsact here
	}
	for _, f := range filters {
		if b, ok := f.(*netlink.BpfFilter); ok && b.Name == "fairlead_ingress" {
			return programName(ebpf.ProgramID(b.Id))
		}
	}
	return "", nil
}

func programName(id ebpf.ProgramID) (string, error) {
	p, err := ebpf.NewProgramFromID(id)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil // replaced meanwhile
	}
	if err != nil {
		return "", err
	}
	defer p.Close()
	info, err := p.Info()
	if err != nil {
		return "", err
	}
	return info.Name, nil
}

// inspectCgroup asks where the socket hooks are attached. Without the link there
// are none.
func (r *Reader) inspectCgroup(in *dataplane.Inspection) error {
	pinned, err := link.LoadPinnedLink(filepath.Join(r.pinDir, "links", "connect4"), nil)
	if errors.Is(err, fs.ErrNotExist) {
		in.Rules.Hooks.Socket = ""
		return nil
	}
	if err != nil {
		return fmt.Errorf("open pinned link connect4: %w", err)
	}
	defer pinned.Close()
	info, err := pinned.Info()
	if err != nil {
		return fmt.Errorf("read pinned link connect4: %w", err)
	}
	c := info.Cgroup()
	if c == nil || c.CgroupId == 0 { // the cgroup is gone
		in.Rules.Hooks.Socket = ""
		return nil
	}
	if in.Rules.CgroupRoot, err = cgroupPath(c.CgroupId); err != nil {
		in.Rules.CgroupRoot = fmt.Sprintf("cgroup %d", c.CgroupId)
		in.Unread = append(in.Unread, dataplane.Unread{
			Part: dataplane.UnreadCgroup, Why: fmt.Sprintf("the path of %s, which has the socket hooks: %v", in.Rules.CgroupRoot, err),
		})
	}
	return nil
}

// cgroupPath finds a cgroup by its number, which is what a file handle of
// kernfs holds (FILEID_KERNFS, 0xfe). It takes CAP_DAC_READ_SEARCH.
func cgroupPath(id uint64) (string, error) {
	mount, err := findCgroup2()
	if err != nil {
		return "", err
	}
	at, err := unix.Open(mount, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", fmt.Errorf("open %s: %w", mount, err)
	}
	defer unix.Close(at)
	const kernfs = 0xfe
	fd, err := unix.OpenByHandleAt(at, unix.NewFileHandle(kernfs, binary.NativeEndian.AppendUint64(nil, id)), unix.O_PATH|unix.O_CLOEXEC)
	if err != nil {
		return "", fmt.Errorf("open it by its number: %w", err)
	}
	defer unix.Close(fd)
	return os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
}
