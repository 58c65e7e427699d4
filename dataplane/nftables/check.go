// SPDX-License-Identifier: Apache-2.0

package nftables

import (
	"fairlead.dev/dataplane"
	"fairlead.dev/dataplane/netfilter"
)

// Check probes what this machine has, by feature and not by kernel version: it
// lets the kernel make just what the Dataplane needs, empty and for a moment.
func Check(o Options) []dataplane.CheckResult {
	o = o.withDefaults()
	results := []dataplane.CheckResult{
		dataplane.Checked("nf_tables", "netlink", checkSocket(), "no nftables dataplane", true),
		dataplane.Checked("conntrack", "netlink", checkConntrack(), "flows to removed Backends can't be ended", true),
	}
	for _, f := range families {
		results = append(results, dataplane.Checked("nftables table "+f.String(), "kernel 5.10", checkFamily(f, o), "no nftables dataplane", true))
	}
	return append(results, dataplane.CheckForwarding()...)
}

func checkSocket() error {
	k, err := openSocket()
	if err != nil {
		return err
	}
	defer k.close()
	_, err = k.generation()
	return err
}

func checkConntrack() error {
	c, err := netfilter.Open()
	if err != nil {
		return err
	}
	return c.Close()
}

// checkFamily makes the table with one sticky Frontend and removes it again. The
// error is the kernel's, with what it did not take.
func checkFamily(f *family, o Options) error {
	k, err := openSocket()
	if err != nil {
		return err
	}
	defer k.close()
	f = f.in(checkTable)
	m := newBatch()
	if err := f.addTable(m, o, dataplane.Node{InternalSources: loopbackPrefixes[:]}); err != nil {
		return err
	}
	a := newActions(f)
	a.number(pick{backends: 2})
	a.number(pick{backends: 2, affinitySeconds: 10800, scope: dataplane.External})
	if err := a.make(m); err != nil {
		return err
	}
	if err := k.commitMessages(m); err != nil {
		return err
	}
	return k.commit(func(m *messages) { removeTable(m, f, checkTable) })
}
