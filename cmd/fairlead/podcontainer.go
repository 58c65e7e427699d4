// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/util/exec"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"fairlead.dev/controller/config"
	"fairlead.dev/podrunner/cri"
	"fairlead.dev/podrunner/kubeletapi"
	"fairlead.dev/podrunner/podspec"
)

// which names a container of a Pod, as the flags of logs and exec do.
type which struct {
	socket, namespace, pod, container string
}

func (w *which) addFlags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&w.socket, "cri-socket", config.Default().CRISocket, "`SOCKET` of the container runtime, as given to run")
	f.StringVarP(&w.namespace, "namespace", "n", "default", "the Pod's namespace")
	f.StringVarP(&w.container, "container", "c", "", "`NAME` of the container (default: the only one, or the first)")
}

// runtimeWithin bounds how long the runtime is waited for.
const runtimeWithin = 10 * time.Second

// open connects to the runtime and finds the container there. The caller closes
// the client.
func (w *which) open(ctx context.Context, previous bool) (*cri.Client, *runtimeapi.Container, error) {
	client, err := cri.Open(ctx, w.socket, runtimeWithin)
	if err != nil {
		return nil, nil, err
	}
	container, err := w.find(ctx, client, previous)
	if err != nil {
		client.Close()
		return nil, nil, err
	}
	return client, container, nil
}

// find asks the runtime for the newest container of the name, running or not;
// with previous for the one before it.
func (w *which) find(ctx context.Context, client *cri.Client, previous bool) (*runtimeapi.Container, error) {
	labels := map[string]string{podspec.LabelPodNamespace: w.namespace, podspec.LabelPodName: w.pod}
	if w.container != "" {
		labels[podspec.LabelContainerName] = w.container
	}
	all, err := client.Runtime.ListContainers(cri.Quiet(ctx), &runtimeapi.ContainerFilter{LabelSelector: labels})
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", err)
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("no container %sof Pod %s/%s on this node: see `fairlead pods`", named(w.container), w.namespace, w.pod)
	}
	// The newest first; without a name the container that was made first.
	slices.SortFunc(all, func(a, b *runtimeapi.Container) int { return cmp.Compare(b.CreatedAt, a.CreatedAt) })
	name := all[len(all)-1].Labels[podspec.LabelContainerName]
	all = slices.DeleteFunc(all, func(c *runtimeapi.Container) bool { return c.Labels[podspec.LabelContainerName] != name })
	if !previous {
		return all[0], nil
	}
	if len(all) < 2 {
		return nil, fmt.Errorf("container %s of Pod %s/%s has no previous one", name, w.namespace, w.pod)
	}
	return all[1], nil
}

func named(container string) string {
	if container == "" {
		return ""
	}
	return container + " "
}

func newLogsCommand() *cobra.Command {
	w, o, previous := &which{}, kubeletapi.AllLogs, false
	since := time.Duration(0)
	cmd := &cobra.Command{
		Use:   "logs POD",
		Short: "Print the log of a container of this node; works with the agent dead",
		Args:  oneArg("POD"),
		RunE: func(cmd *cobra.Command, args []string) error {
			w.pod = args[0]
			ctx := cmd.Context()
			client, container, err := w.open(ctx, previous)
			if err != nil {
				return err
			}
			defer client.Close()
			s, err := client.Runtime.ContainerStatus(cri.Quiet(ctx), container.Id, false)
			if err != nil {
				return fmt.Errorf("ask for the container: %w", err)
			}
			if since > 0 {
				o.Since = time.Now().Add(-since)
			}
			running := func(ctx context.Context) (bool, error) {
				s, err := client.Runtime.ContainerStatus(cri.Quiet(ctx), container.Id, false)
				if err != nil {
					return false, err
				}
				return s.GetStatus().GetState() == runtimeapi.ContainerState_CONTAINER_RUNNING, nil
			}
			err = kubeletapi.ReadLog(ctx, s.GetStatus().GetLogPath(), o, cmd.OutOrStdout(), func() {}, running)
			return stopped(ctx, err)
		},
	}
	w.addFlags(cmd)
	f := cmd.Flags()
	f.BoolVarP(&o.Follow, "follow", "f", false, "go on until the container ends")
	f.BoolVarP(&previous, "previous", "p", false, "of the container before the present one")
	f.BoolVar(&o.Timestamps, "timestamps", false, "begin each line with its time")
	f.Int64Var(&o.Tail, "tail", -1, "this many lines of the end only")
	f.DurationVar(&since, "since", 0, "lines that are not older than this only")
	return cmd
}

func newExecCommand() *cobra.Command {
	w := &which{}
	var stdin, tty bool
	cmd := &cobra.Command{
		Use:   "exec POD -- COMMAND [ARG...]",
		Short: "Run a command in a container of this node; works with the agent dead",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) < 2 || cmd.ArgsLenAtDash() > 1 || cmd.ArgsLenAtDash() == 0 {
				return errors.New("want POD -- COMMAND [ARG...]")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			w.pod = args[0]
			ctx := cmd.Context()
			client, container, err := w.open(ctx, false)
			if err != nil {
				return err
			}
			defer client.Close()
			resp, err := client.Runtime.Exec(cri.Quiet(ctx), &runtimeapi.ExecRequest{
				ContainerId: container.Id, Cmd: args[1:], Stdin: stdin, Tty: tty, Stdout: true, Stderr: !tty,
			})
			if err != nil {
				return fmt.Errorf("ask the runtime to run %s: %s", strings.Join(args[1:], " "), cri.Message(err))
			}
			return stream(ctx, resp.Url, cmd, stdin, tty)
		},
	}
	w.addFlags(cmd)
	cmd.Flags().BoolVarP(&stdin, "stdin", "i", false, "pass this command's input on")
	cmd.Flags().BoolVarP(&tty, "tty", "t", false, "the command gets a terminal")
	return cmd
}

// exitStatus ends the program with the status of a command in a container.
type exitStatus struct{ code int }

func (e exitStatus) Error() string { return fmt.Sprintf("command ended with status %d", e.code) }

// stream joins this process's streams with those of the command.
func stream(ctx context.Context, at string, cmd *cobra.Command, stdin, tty bool) error {
	u, err := url.Parse(at)
	if err != nil {
		return fmt.Errorf("the runtime's address for the streams: %w", err)
	}
	e, err := remotecommand.NewSPDYExecutor(&rest.Config{}, "POST", u)
	if err != nil {
		return err
	}
	o := remotecommand.StreamOptions{Stdout: cmd.OutOrStdout(), Stderr: cmd.ErrOrStderr(), Tty: tty}
	if stdin {
		o.Stdin = cmd.InOrStdin()
	}
	if tty {
		o.Stderr = nil
		restore := rawTerminal(cmd.InOrStdin())
		defer restore()
	}
	err = e.StreamWithContext(ctx, o)
	var code exec.CodeExitError
	if errors.As(err, &code) {
		return exitStatus{code.Code}
	}
	if err != nil {
		return fmt.Errorf("run the command: %w", err)
	}
	return nil
}

// rawTerminal gives every key to the command in the container, where in is a
// terminal.
func rawTerminal(in io.Reader) (restore func()) {
	f, ok := in.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return func() {}
	}
	state, err := term.MakeRaw(int(f.Fd()))
	if err != nil {
		return func() {}
	}
	return func() { _ = term.Restore(int(f.Fd()), state) }
}

func oneArg(name string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		if len(args) != 1 {
			return fmt.Errorf("want one argument, %s", name)
		}
		return nil
	}
}
