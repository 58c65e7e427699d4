// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"fairlead.dev/controller/config"
	"fairlead.dev/migrate"
	"fairlead.dev/podrunner/podnetwork"
)

func newCleanupCommand() *cobra.Command {
	c := config.Default()
	kubeProxy := false
	cmd := &cobra.Command{
		Use:   "cleanup",
		Short: "Remove all that fairlead left in the kernel",
		Long: "Remove all that fairlead left in the kernel, of whatever dataplane: programs, maps and their pins,\n" +
			"tables, chains, virtual servers; of --pod-network its routes, rules and CNI configuration. Traffic to\n" +
			"Services stops being routed. Pods run on. The agent must not run.",
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if kubeProxy {
				return cleanupKubeProxy(cmd.Context(), cmd.OutOrStdout())
			}
			lock, err := lockKernel(cmd.Context(), c.BPFFS, false)
			if err != nil {
				return err
			}
			defer lock.Close()
			removed, err := cleanupKernel(&c)
			// Options of a Network that was: what it left says whose it is.
			ofPods, podErr := podnetwork.Cleanup(podnetwork.Options{})
			halfway, halfErr := migrate.Cleanup()
			removed, err = slices.Concat(removed, halfway, ofPods), errors.Join(err, halfErr, podErr)
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
	f.BoolVar(&kubeProxy, "kube-proxy", false, "remove what kube-proxy left instead; to take over from it see migrate")
	return cmd
}
