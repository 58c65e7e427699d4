// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"fairlead.dev/controller/config"
)

func newCleanupCommand() *cobra.Command {
	c := config.Default()
	kubeProxy := false
	cmd := &cobra.Command{
		Use:   "cleanup",
		Short: "Remove all that fairlead left in the kernel",
		Long: "Remove all that fairlead left in the kernel, of whatever dataplane: programs, maps and their pins,\n" +
			"tables, chains, virtual servers. Traffic to Services stops being routed. The agent must not run.",
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if kubeProxy {
				return usagef("--kube-proxy is not built yet: run `kube-proxy --cleanup` to remove what kube-proxy left")
			}
			lock, err := lockKernel(cmd.Context(), c.BPFFS, false)
			if err != nil {
				return err
			}
			defer lock.Close()
			removed, err := cleanupKernel(&c)
			for _, r := range removed {
				fmt.Fprintf(cmd.OutOrStdout(), "removed %s\n", r)
			}
			if err != nil {
				return err
			}
			if len(removed) == 0 {
				fmt.Fprintln(cmd.OutOrStdout(), "nothing to remove")
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&c.BPFFS, "bpffs", c.BPFFS, "`DIR` in a mounted bpffs, as given to run")
	f.StringVar(&c.CgroupRoot, "cgroup-root", c.CgroupRoot, "cgroup2 `DIR`, as given to run")
	f.BoolVar(&kubeProxy, "kube-proxy", false, "remove what kube-proxy left (not built yet)")
	return cmd
}
