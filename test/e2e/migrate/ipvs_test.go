// SPDX-License-Identifier: Apache-2.0

package migrate

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

// forgotten is more than IPVS remembers a connection whose end it did not see, 15
// minutes. Waiting costs an emulated machine little.
const forgotten = 20 * time.Minute

// needsIPVS skips where kube-proxy cannot have that mode.
func needsIPVS(t *testing.T) {
	t.Helper()
	if _, err := netlink.GenlFamilyGet("IPVS"); err != nil {
		t.Skipf("not applicable: this kernel has no IPVS (%v); test/vm plays this on one that has", err)
	}
}

// complete looks that kube-proxy's ipvs mode lacks nothing here: it goes on
// without a program or a module that its sets and rules need.
func (w *town) complete(proxy *process) {
	w.t.Helper()
	for line := range strings.Lines(proxy.log.String()) {
		if strings.Contains(line, "Failed to") {
			w.t.Errorf("kube-proxy said: %s", line)
		}
	}
	rules := w.rules()
	for _, rule := range []string{" KUBE-CLUSTER-IP dst,dst -j KUBE-MARK-MASQ", " KUBE-6-CLUSTER-IP dst,dst -j KUBE-MARK-MASQ", " KUBE-IPVS-IPS dst -j REJECT", " KUBE-6-IPVS-IPS dst -j REJECT"} {
		if !strings.Contains(rules, rule) {
			w.t.Fatalf("kube-proxy has no rule %q in:\n%s", rule, rules)
		}
	}
	if w.nothingOfIPVS() == nil {
		w.t.Fatal("nothing of kube-proxy's IPVS is seen while it runs")
	}
}

// nothingOfIPVS reports what is left of kube-proxy's ipvs mode beside its rules.
func (w *town) nothingOfIPVS() error {
	var servers, connections, devices []byte
	err := w.thread.Do(func() (err error) {
		if servers, err = os.ReadFile("/proc/thread-self/net/ip_vs"); err != nil {
			return err
		}
		if connections, err = os.ReadFile("/proc/thread-self/net/ip_vs_conn"); err != nil {
			return err
		}
		devices, err = os.ReadFile("/proc/thread-self/net/dev")
		return err
	})
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(servers)) {
		for _, protocol := range []string{"TCP ", "UDP ", "SCTP "} {
			if strings.HasPrefix(line, protocol) {
				return fmt.Errorf("virtual servers are left:\n%s%s", servers, connections)
			}
		}
	}
	if strings.Contains(string(devices), "kube-ipvs0") {
		return fmt.Errorf("device kube-ipvs0 is left")
	}
	if sets := w.output("ipset", "list", "-n"); strings.Contains(sets, "KUBE-") {
		return fmt.Errorf("ipsets are left:\n%s", sets)
	}
	return nil
}
