// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"fairlead.dev/controller/config"
	"fairlead.dev/dataplane"
)

var dumpSubjects = []string{"services", "backends", "conntrack", "affinity", "counters"}

func newDumpCommand() *cobra.Command {
	var filter serviceFilter
	output, c := "table", config.Default()
	cmd := &cobra.Command{
		Use:       "dump [services|backends|conntrack|affinity|counters]",
		Short:     "Print what the kernel holds; works with the agent dead",
		ValidArgs: dumpSubjects,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 1 {
				return fmt.Errorf("unexpected argument %q", args[1])
			}
			if len(args) == 1 && !slices.Contains(dumpSubjects, args[0]) {
				return fmt.Errorf("cannot dump %q: want %s", args[0], strings.Join(dumpSubjects, ", "))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkOutput(output, dumpFormats...); err != nil {
				return err
			}
			if err := filter.check(); err != nil {
				return err
			}
			r, err := openReader(&c)
			if err != nil {
				return err
			}
			defer r.Close()
			subject := dumpSubjects[0]
			if len(args) == 1 {
				subject = args[0]
			}
			return dump(cmd.OutOrStdout(), r, r.name, subject, output, filter)
		},
	}
	addOutputFlag(cmd, &output, dumpFormats...)
	f := cmd.Flags()
	filter.addFlags(f)
	f.StringVar(&c.BPFFS, "bpffs", c.BPFFS, "mount of bpffs in which the agent pins its maps")
	f.StringVar(&c.Dataplane, "dataplane", c.Dataplane, "whose state to read: auto (what is in force), ebpf, nftables, iptables or ipvs")
	return cmd
}

// dump reads one subject and writes it. name is the technology's.
func dump(w io.Writer, r dataplane.Reader, name, subject, format string, filter serviceFilter) error {
	switch subject {
	case "services", "backends":
		d, err := r.Table()
		if err != nil {
			return err
		}
		rows := keep(d.Frontends, filter, func(r *dataplane.Row) string { return r.Service })
		for i := range rows {
			if rows[i].Backends == nil {
				rows[i].Backends = []dataplane.BackendRow{} // [] in JSON, never null
			}
		}
		switch {
		case subject == "backends":
			return writeDump(w, format, d.Dataplane, backendsListing(backendRows(rows)))
		case format == "wide":
			return writeDump(w, format, d.Dataplane, wideServicesListing(rows))
		}
		return writeDump(w, format, d.Dataplane, servicesListing(rows))
	case "conntrack":
		rows, err := r.Conntrack()
		if err != nil {
			return err
		}
		return writeDump(w, format, name, conntrackListing(keep(rows, filter, func(r *dataplane.ConntrackRow) string { return r.Service })))
	case "affinity":
		rows, err := r.Affinity()
		if err != nil {
			return err
		}
		return writeDump(w, format, name, affinityListing(keep(rows, filter, func(r *dataplane.AffinityRow) string { return r.Service })))
	case "counters":
		rows, drops, err := r.Counters()
		if err != nil {
			return err
		}
		sections := []section{countersListing(keep(rows, filter, func(r *dataplane.CounterRow) string { return r.Service }))}
		// Drops are the node's, not a Service's.
		if filter == (serviceFilter{}) {
			sections = append(sections, dropsListing(drops))
		}
		return writeDump(w, format, name, sections...)
	}
	return fmt.Errorf("cannot dump %q", subject)
}

// serviceFilter chooses rows by their Service. The zero value takes all.
type serviceFilter struct{ namespace, name string }

func (f *serviceFilter) addFlags(flags *pflag.FlagSet) {
	flags.StringVarP(&f.namespace, "namespace", "n", "", "Services of this namespace only")
	flags.StringVar(&f.name, "service", "", "this Service only, NAME or NAMESPACE/NAME")
}

// check splits NAMESPACE/NAME.
func (f *serviceFilter) check() error {
	ns, name, ok := strings.Cut(f.name, "/")
	if !ok {
		return nil
	}
	if ns == "" || name == "" || strings.Contains(name, "/") {
		return usagef("--service %q: want NAME or NAMESPACE/NAME", f.name)
	}
	if f.namespace != "" && f.namespace != ns {
		return usagef("--service %s and --namespace %s contradict each other", f.name, f.namespace)
	}
	f.namespace, f.name = ns, name
	return nil
}

// takes decides for a Service as namespace/name.
func (f serviceFilter) takes(service string) bool {
	ns, name, _ := strings.Cut(service, "/")
	return (f.namespace == "" || f.namespace == ns) && (f.name == "" || f.name == name)
}

// keep gives the rows that the filter takes. It uses the slice that it is given.
func keep[T any](rows []T, f serviceFilter, service func(*T) string) []T {
	return slices.DeleteFunc(rows, func(r T) bool { return !f.takes(service(&r)) })
}
