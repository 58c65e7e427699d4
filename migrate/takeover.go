// SPDX-License-Identifier: Apache-2.0

package migrate

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"reflect"

	"fairlead.dev/dataplane"
	"fairlead.dev/dataplane/handover"
	"fairlead.dev/dataplane/netfilter"
)

// Options of a TakeOver.
type Options struct {
	// Report takes down what is done.
	Report *Report
	// Running is asked before anything is removed whether a kube-proxy runs; nil
	// for one that need not be asked.
	Running func() (string, error)
	// Read opens what the successor holds in the kernel.
	Read func() (dataplane.Reader, error)
	// Shared: the successor's flows are in the kernel's conntrack, too.
	Shared bool
	// Hook keeps the kernel's NAT at work without kube-proxy's rules, for flows
	// that a successor without conntrack leaves to it, and Unhook ends that.
	Hook, Unhook func() error
}

// TakeOver is a kube-proxy that has ended, whose rules are in force: the
// predecessor of a Dataplane of fairlead.
type TakeOver struct {
	handover.Netfilter
	o     Options
	found *Leftovers

	answered []asked // by kube-proxy's rules
	asked    bool
	told     bool // that it carries flows
}

var (
	_ handover.Predecessor = (*TakeOver)(nil)
	_ handover.Observer    = (*TakeOver)(nil)
)

// NewTakeOver is for what Find found.
func NewTakeOver(found *Leftovers, o Options) *TakeOver {
	t := &TakeOver{o: o, found: found}
	t.Netfilter = handover.Netfilter{Technology: "kube-proxy", Shared: o.Shared, Lasting: true, Withdraw: t.withdraw, Remove: t.remove,
		EndStale: func(rules []netfilter.FlowRule) error { return t.found.ipvs.endDatagrams(rules) }}
	return t
}

// Observe asks each Service while kube-proxy's rules alone answer.
func (t *TakeOver) Observe(ctx context.Context, table *dataplane.Table) error {
	if t.asked {
		return nil
	}
	if !t.found.ipvs.empty() {
		if err := mend(); err != nil {
			return err
		}
	}
	list, all := askable(table)
	t.answered, t.asked = ask(ctx, list, 1), true
	of := ""
	if len(list) < all {
		of = fmt.Sprintf(" (a random choice of %d)", all)
	}
	t.o.Report.Add(Checked, "%d of %d TCP ClusterIPs%s answer through kube-proxy's rules", len(t.answered), len(list), of)
	return ctx.Err()
}

// Begin implements handover.Predecessor: it checks that the kernel holds the
// Table and that each Service that answered answers still, and then removes
// kube-proxy's rules.
func (t *TakeOver) Begin(ctx context.Context, table *dataplane.Table) error {
	frontends := 0
	for _, s := range table.Services {
		frontends += len(s.Frontends)
	}
	t.o.Report.Add(Programmed, "%s of %s, beside kube-proxy's rules", plural(frontends, "Frontend"), plural(len(table.Services), "Service"))
	if err := t.holds(table.Rows()); err != nil {
		return err
	}
	if err := t.answer(ctx, "beside kube-proxy's rules"); err != nil {
		return fmt.Errorf("%w; kube-proxy's rules are left in force", err)
	}
	if t.o.Running != nil {
		switch how, err := t.o.Running(); {
		case err != nil:
			return err
		case how != "":
			return fmt.Errorf("a kube-proxy has come (%s) and would write its rules again: %s", how, Remedy)
		}
	}
	if err := t.Netfilter.Begin(ctx, table); err != nil {
		return err
	}
	if err := t.answer(ctx, "without kube-proxy's rules"); err != nil {
		t.o.Report.Add(Warning, "%v", err)
	}
	return nil
}

// holds compares the kernel with what is wanted.
func (t *TakeOver) holds(want []dataplane.Row) error {
	r, err := t.o.Read()
	if err != nil {
		return fmt.Errorf("read back what was programmed: %w", err)
	}
	defer r.Close()
	d, err := r.Table()
	if err != nil {
		return fmt.Errorf("read back what was programmed: %w", err)
	}
	if wrong := differs(want, d.Frontends); wrong != "" {
		return fmt.Errorf("the kernel does not hold what was programmed, first %s; kube-proxy's rules are left in force", wrong)
	}
	t.o.Report.Add(Checked, "the kernel holds what was programmed")
	return nil
}

// differs names the first row that the kernel has not, or has and should not;
// empty for none. A NodePort on ::1 is one that netfilter cannot have.
func differs(want, have []dataplane.Row) string {
	for len(want) > 0 || len(have) > 0 {
		switch {
		case len(want) > 0 && len(have) > 0 && reflect.DeepEqual(want[0], have[0]):
			want, have = want[1:], have[1:]
		case len(want) > 0 && want[0].Kind == dataplane.NodePort.String() && want[0].Address == netip.IPv6Loopback():
			want = want[1:]
		case len(want) > 0:
			return nameOf(want[0])
		default:
			return nameOf(have[0])
		}
	}
	return ""
}

func nameOf(r dataplane.Row) string {
	return fmt.Sprintf("%s %s/%s, %s", r.Service, netip.AddrPortFrom(r.Address, r.Port), r.Protocol, r.Scope)
}

// answer asks again what answered before.
func (t *TakeOver) answer(ctx context.Context, when string) error {
	if len(t.answered) == 0 {
		return nil
	}
	now := ask(ctx, t.answered, askAgain)
	if mute := silent(t.answered, now); len(mute) > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		return fmt.Errorf("%d of %d TCP ClusterIPs that answered through kube-proxy's rules do not answer %s, first %s", len(mute), len(t.answered), when, mute[0])
	}
	t.o.Report.Add(Checked, "%d of %d answer %s", len(now), len(t.answered), when)
	return nil
}

// withdraw removes the rules. What came since is removed, too.
func (t *TakeOver) withdraw() error {
	if t.o.Hook != nil && !t.Shared {
		if err := t.o.Hook(); err != nil {
			return fmt.Errorf("keep conntrack at work for established flows: %w", err)
		}
	}
	ctx := context.Background()
	found, err := Find(ctx)
	if err != nil {
		return err
	}
	t.found = found
	warnings := found.Warnings()
	removed, err := found.Withdraw(ctx)
	for _, line := range removed {
		t.o.Report.Add(Removed, "%s", line)
	}
	for _, line := range warnings {
		t.o.Report.Add(Warning, "%s", line)
	}
	return err
}

// Carries implements handover.Predecessor.
func (t *TakeOver) Carries() (bool, error) {
	flows, err := t.Netfilter.Carries()
	servers, serr := t.found.Carries()
	if (flows || servers) && !t.told {
		t.o.Report.Add(Left, "established connections of kube-proxy's time go on")
		t.told = true
	}
	return flows || servers, errors.Join(err, serr)
}

func (t *TakeOver) remove() error {
	removed, err := t.found.Remove()
	for _, line := range removed {
		t.o.Report.Add(Removed, "%s", line)
	}
	if err == nil {
		_, err = Cleanup()
	}
	if t.o.Unhook != nil && !t.Shared {
		err = errors.Join(err, t.o.Unhook())
	}
	return err
}
