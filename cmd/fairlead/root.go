// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
)

// The exit statuses of every command.
const (
	exitOK      = 0
	exitFailure = 1
	exitUsage   = 2
)

// usageError is a command line that cannot be meant.
type usageError struct{ error }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// execute runs one command line. Errors become one line on stderr.
func execute(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	root, started := newRoot()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return exitOK
	}
	var status exitStatus
	if errors.As(err, &status) {
		return status.code // the command in the container has said why
	}
	line := strings.Join(strings.Fields(err.Error()), " ")
	var usage usageError
	if *started && !errors.As(err, &usage) {
		fmt.Fprintf(stderr, "fairlead: %s\n", line)
		return exitFailure
	}
	fmt.Fprintf(stderr, "fairlead: %s (see `%s --help`)\n", line, cmd.CommandPath())
	return exitUsage
}

// newRoot makes the commands. started is set once a command line was
// understood and its command begins: errors before that are usage errors.
func newRoot() (root *cobra.Command, started *bool) {
	started = new(bool)
	root = &cobra.Command{
		Use:           "fairlead",
		Short:         "Routes a Kubernetes node's Service traffic, in place of kube-proxy, and runs its Pods when asked",
		SilenceUsage:  true,
		SilenceErrors: true,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return nil
			}
			msg := fmt.Sprintf("unknown command %q", args[0])
			if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
				msg += ", did you mean " + strings.Join(near, " or ") + "?"
			}
			return errors.New(msg)
		},
		RunE:             func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		PersistentPreRun: func(*cobra.Command, []string) { *started = true },
	}
	// SuggestionsFor is used before cobra sets this default.
	root.SuggestionsMinimumDistance = 2
	root.AddCommand(newRunCommand(), newDumpCommand(), newStatusCommand(), newExplainCommand(), newTraceCommand(), newCheckCommand(), newCleanupCommand(), newMigrateCommand(), newVersionCommand(),
		newPodsCommand(), newLogsCommand(), newExecCommand())
	return root, started
}

// noArgs refuses arguments.
func noArgs(_ *cobra.Command, args []string) error {
	if len(args) > 0 {
		return fmt.Errorf("unexpected argument %q", args[0])
	}
	return nil
}
