// SPDX-License-Identifier: Apache-2.0

package ipvs

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"fairlead.dev/dataplane"
	"fairlead.dev/dataplane/nsthread"
)

// haveIPVS asks for the netlink family that IPVS is spoken to by. Before Linux
// 6.2 asking loads no module, so it is tried here.
func haveIPVS() error {
	_, err := netlink.GenlFamilyGet("IPVS")
	if !errors.Is(err, unix.ENOENT) {
		return err
	}
	_ = exec.Command("modprobe", "ip_vs").Run()
	if _, err = netlink.GenlFamilyGet("IPVS"); errors.Is(err, unix.ENOENT) {
		return errors.New("this kernel has no IPVS: load module ip_vs")
	}
	return err
}

// Check probes what this machine has, by trying it in a network namespace of
// its own, and not by kernel version.
func Check(o Options) []dataplane.CheckResult {
	o = o.withDefaults()
	ipvsErr := haveIPVS()
	out := []dataplane.CheckResult{dataplane.Checked("IPVS", "netlink family IPVS", ipvsErr, "this dataplane can't work", true)}
	var scheduler, dummy, rules error
	err := nsthread.InNew(func() error {
		if ipvsErr == nil {
			scheduler = tryScheduler(o)
		}
		dummy = tryDevice()
		rules = tryTable(o)
		return nil
	})
	if err != nil {
		return append(out, dataplane.Checked("network namespace", "made for a trial", err, "the rest can't be told", true))
	}
	if ipvsErr == nil {
		out = append(out, dataplane.Checked("IPVS scheduler", o.Scheduler, scheduler, "no load balancing with it", true))
	}
	out = append(out,
		dataplane.Checked("dummy device", deviceName, dummy, "addresses of Services can't be delivered to IPVS", true),
		dataplane.Checked("nf_tables", "table "+tableName, rules, "no masquerading, refusals and scopes", true))
	if ipvsErr == nil {
		for _, s := range o.sysctls() {
			out = append(out, checkSysctl(s))
		}
	}
	return append(out, dataplane.CheckForwarding()...)
}

func tryScheduler(o Options) error {
	k, err := openKernel(o.marks())
	if err != nil {
		return err
	}
	defer k.close()
	return k.add(o.marks().sentinel(), ipv4, o.Scheduler)
}

func tryDevice() error {
	r, err := openRoutes()
	if err != nil {
		return err
	}
	defer r.close()
	_, err = r.device()
	return err
}

// tryTable makes the whole table as it will be.
func tryTable(o Options) error {
	t, err := openTable(o.AffinityMax)
	if err != nil {
		return err
	}
	defer t.close()
	if err := t.create(); err != nil {
		return err
	}
	t.queueRules(ruleset{marks: o.marks(), primary: map[*family]netip.Addr{ipv4: ipv4.loopback, ipv6: ipv6.loopback}, timeouts: []uint32{1}})
	if err := t.commit(); err != nil {
		return err
	}
	_, err = t.conn.ListTablesOfFamily(nftables.TableFamilyINet)
	return err
}

func checkSysctl(s sysctl) dataplane.CheckResult {
	name := "net." + strings.ReplaceAll(s.key, "/", ".")
	v, err := readSysctl(s.key)
	switch {
	case err != nil && s.optional && errors.Is(err, os.ErrNotExist):
		err = nil
		v = "this kernel behaves so"
	case err == nil && v != s.value && unix.Access(sysctlPath(s.key), unix.W_OK) != nil:
		err = fmt.Errorf("%s, and can't be written: set it to %s", v, s.value)
	case err == nil && v != s.value:
		v = fmt.Sprintf("%s; fairlead run sets it to %s", v, s.value)
	}
	return dataplane.Checked(name, v, err, s.cost, s.key == "ipv4/vs/conntrack")
}
