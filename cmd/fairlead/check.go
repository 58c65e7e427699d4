// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"fairlead.dev/controller/config"
)

// checkRow is one thing that fairlead would like to find.
type checkRow struct {
	Name string `json:"name"`
	OK   bool   `json:"ok"`
	// Detail is what was found.
	Detail string `json:"detail"`
	// Cost is what goes without it; empty where it is there.
	Cost string `json:"cost"`
	// Required: without it `fairlead run` cannot work.
	Required bool `json:"required"`
}

func newCheckCommand() *cobra.Command {
	c := config.Default()
	output := "table"
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Say what this machine has and lacks, and what each lack costs",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkOutput(output, "table", "json"); err != nil {
				return err
			}
			if err := c.Validate(); err != nil {
				return usageError{err}
			}
			rows := append(checkKernel(&c), checkOtherProxies()...)
			if err := writeChecks(cmd.OutOrStdout(), output, rows); err != nil {
				return err
			}
			return missing(rows)
		},
	}
	addOutputFlag(cmd, &output, "table", "json")
	f := cmd.Flags()
	f.StringVar(&c.Dataplane, "dataplane", c.Dataplane, "auto, ebpf, nftables, iptables or ipvs, as given to run")
	f.StringVar(&c.BPFFS, "bpffs", c.BPFFS, "`DIR` in a mounted bpffs, as given to run")
	f.StringVar(&c.CgroupRoot, "cgroup-root", c.CgroupRoot, "cgroup2 `DIR`, as given to run")
	f.Var(listFlag{&c.Devices}, "devices", "`NAMES` of devices, as given to run")
	return cmd
}

func writeChecks(w io.Writer, output string, rows []checkRow) error {
	if output == "json" {
		if rows == nil {
			rows = []checkRow{}
		}
		return json.NewEncoder(w).Encode(struct {
			Checks []checkRow `json:"checks"`
		}{rows})
	}
	return writeDump(w, "table", "", checksListing(rows))
}

func checksListing(rows []checkRow) listing[checkRow] {
	return listing[checkRow]{name: "checks", rows: rows, columns: []column[checkRow]{
		{head: "CHECK", cell: func(r *checkRow) string { return r.Name }},
		{head: "RESULT", cell: func(r *checkRow) string {
			switch {
			case r.OK:
				return "ok"
			case r.Required:
				return "FAILED"
			}
			return "missing"
		}},
		{head: "DETAIL", cell: func(r *checkRow) string { return r.Detail }},
		{head: "COST", cell: func(r *checkRow) string { return r.Cost }},
	}}
}

// missing is the error for checks without which run cannot work.
func missing(rows []checkRow) error {
	n, first := 0, ""
	for _, r := range rows {
		if r.Required && !r.OK {
			if n++; n == 1 {
				first = r.Name
			}
		}
	}
	switch n {
	case 0:
		return nil
	case 1:
		return fmt.Errorf("check %s failed, and fairlead cannot run without it", first)
	}
	return fmt.Errorf("check %s and %d more failed, and fairlead cannot run without them", first, n-1)
}
