// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"fairlead.dev/controller/config"
	"fairlead.dev/dataplane"
	"fairlead.dev/explain"
	"fairlead.dev/explain/kernel"
)

var explainFormats = []string{"text", "json"}

func newExplainCommand() *cobra.Command {
	output, from, path, c := "text", "", "", config.Default()
	var q explain.Question
	cmd := &cobra.Command{
		Use:   "explain " + explain.Form,
		Short: "Say where a connection to an address goes and why, from what the kernel holds",
		Long: `Says what becomes of a connection: which Frontend it meets, in which scope, which
Backends it can reach and with which source address, or why it is refused,
dropped, or no Service's. All of it is read from the kernel of this node and
network namespace: the agent may be dead.

Without CLIENT a process of this node asks. CLIENT may have a port: then a flow
that conntrack has of it decides.`,
		Example: `  fairlead explain "10.244.1.5 -> 10.96.0.10:80"
  fairlead explain 10.244.1.5 10.96.0.10:53/UDP
  fairlead explain "2001:db8::7 -> [2001:db8::1:10]:443/TCP" --from outside -o json`,
		Args: func(_ *cobra.Command, args []string) (err error) {
			if len(args) == 0 {
				return fmt.Errorf("nothing is asked: want %s", explain.Form)
			}
			q, err = explain.ParseQuestion(args)
			return err
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkOutput(output, explainFormats...); err != nil {
				return err
			}
			o, err := explainOptions(from, path)
			if err != nil {
				return err
			}
			if !q.Client.IsValid() && o.From != "" && o.From != explain.FromNode {
				return usagef("--from %s needs a client: want %s", o.From, explain.Form)
			}
			r, err := openReader(&c)
			if err != nil {
				return err
			}
			defer r.Close()
			inspector, ok := r.Reader.(dataplane.Inspector)
			if !ok {
				return fmt.Errorf("dataplane %s can't be asked", r.name)
			}
			a, err := kernel.Explain(inspector, q, o)
			if err != nil {
				return err
			}
			return writeAnswer(cmd.OutOrStdout(), output, &a)
		},
	}
	addOutputFlag(cmd, &output, explainFormats...)
	f := cmd.Flags()
	f.StringVar(&from, "from", "", "the side CLIENT comes from: pod, node or outside (default: what this node's route to it says)")
	f.StringVar(&path, "path", "", "packet: CLIENT's sockets pass no hook, as those of virtual machines (default: socket, where there are hooks)")
	f.StringVar(&c.BPFFS, "bpffs", c.BPFFS, "mount of bpffs in which the agent pins its maps")
	f.StringVar(&c.Dataplane, "dataplane", c.Dataplane, "whose state to read: auto (what is in force), ebpf, nftables, iptables or ipvs")
	// An arrow of its own looks like a flag: "->" is one, which says nothing.
	f.BoolP("arrow", ">", false, "")
	_ = f.MarkHidden("arrow") // it is there
	for name, words := range map[string][]string{"from": {"pod", "node", "outside"}, "path": {"socket", "packet"}} {
		_ = cmd.RegisterFlagCompletionFunc(name, cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp))
	}
	return cmd
}

func explainOptions(from, path string) (o kernel.Options, err error) {
	switch o.From = explain.Origin(from); o.From {
	case "", explain.FromPod, explain.FromNode, explain.FromOutside:
	default:
		return o, usagef("--from %q: want pod, node or outside", from)
	}
	switch path {
	case "", "socket":
	case "packet":
		o.PacketPath = true
	default:
		return o, usagef("--path %q: want socket or packet", path)
	}
	return o, nil
}

func writeAnswer(w io.Writer, format string, a *explain.Answer) error {
	if format == "json" {
		text, err := json.MarshalIndent(a, "", "  ")
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(w, "%s\n", text)
		return err
	}
	return printAnswer(w, a)
}
