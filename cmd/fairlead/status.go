// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"io"
	"time"

	"github.com/spf13/cobra"

	"fairlead.dev/controller/config"
	"fairlead.dev/controller/status"
	"fairlead.dev/dataplane"
)

func newStatusCommand() *cobra.Command {
	output, c := "text", config.Default()
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show this node on one screen: what is in force, how the agent keeps up, drops, Services with traffic",
		Long: "Show this node on one screen: what is in force, how the agent keeps up, drops, Services with traffic.\n\n" +
			"What is in force is read from the kernel, the rest is asked of the agent in this network namespace.\n" +
			"It works with the agent dead.",
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkOutput(output, "text", "json"); err != nil {
				return err
			}
			if err := c.Validate(); err != nil {
				return usageError{err}
			}
			r, err := openReader(&c)
			if err != nil {
				return err
			}
			defer r.Close()
			s, err := readStatus(cmd.Context(), r, agentSocket)
			if err != nil {
				return err
			}
			return writeStatus(cmd.OutOrStdout(), output, s, time.Now())
		},
	}
	addOutputFlag(cmd, &output, "text", "json")
	f := cmd.Flags()
	f.StringVar(&c.BPFFS, "bpffs", c.BPFFS, "mount of bpffs in which the agent pins its maps")
	f.StringVar(&c.Dataplane, "dataplane", c.Dataplane, "whose state to read: auto (what is in force), ebpf, nftables, iptables or ipvs")
	return cmd
}

// readStatus reads the kernel and, where one answers, asks the agent.
func readStatus(ctx context.Context, r dataplane.Reader, socket string) (*status.Status, error) {
	table, err := r.Table()
	if err != nil {
		return nil, err
	}
	counters, drops, err := r.Counters()
	if err != nil {
		return nil, err
	}
	s := status.FromKernel(table, counters, drops)
	said, err := askForStatus(ctx, socket)
	if err != nil {
		s.AgentError = err.Error()
		return s, nil
	}
	s.Agent = said.Agent
	return s, nil
}

func writeStatus(w io.Writer, output string, s *status.Status, now time.Time) error {
	if output == "json" {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(s)
	}
	return s.WriteText(w, now)
}
