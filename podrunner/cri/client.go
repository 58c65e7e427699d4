// SPDX-License-Identifier: Apache-2.0

// Package cri speaks to a container runtime (CRI v1) about Pods: it lists what
// there is of each, calls with a time limit, tells of changes and gets images.
// It is responsible for that no call hangs for ever, and refuses to know what
// should run.
package cri

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/go-logr/logr"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/experimental"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
	internalapi "k8s.io/cri-api/pkg/apis"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	crierrors "k8s.io/cri-api/pkg/errors"
	remote "k8s.io/cri-client/pkg"
	"k8s.io/klog/v2"
	utilexec "k8s.io/utils/exec"
)

// Answers are read into buffers that gRPC keeps, of the next size there is. Its
// own sizes have nothing between 32 KiB and 1 MiB, where the lists of a node are:
// 100 Pods had 2.3 MiB of these buffers.
func init() {
	pool, err := mem.NewBinaryTieredBufferPool(8, 12, 14, 15, 16, 17, 18, 19, 20)
	if err != nil {
		panic(err) // exponents are constants
	}
	experimental.SetDefaultBufferPool(pool)
}

// DefaultTimeout of one call, as the kubelet's runtimeRequestTimeout.
const DefaultTimeout = 2 * time.Minute

// ErrTimeout is what a command in a container ends with that took too long.
var ErrTimeout = errors.New("command timed out")

// Client calls one runtime. All methods may be called at once.
type Client struct {
	// Runtime and Images are the plain services, for calls that need no more
	// than a time limit. The log of cri-client is kept silent where ctx comes
	// from Quiet: it would print commands and errors of every try.
	Runtime internalapi.RuntimeService
	Images  internalapi.ImageManagerService

	name    string
	version string
}

// Quiet silences what cri-client logs by itself.
func Quiet(ctx context.Context) context.Context {
	return klog.NewContext(ctx, logr.Discard())
}

// Open connects to the socket, "/path" or "unix:///path". It fails where the
// runtime does not answer within timeout; once open, the connection is made
// again by itself. timeout is also that of each call; 0: DefaultTimeout.
func Open(ctx context.Context, socket string, timeout time.Duration) (*Client, error) {
	if timeout == 0 {
		timeout = DefaultTimeout
	}
	if strings.HasPrefix(socket, "/") {
		socket = "unix://" + socket
	}
	ctx = Quiet(ctx)
	r, err := remote.NewRemoteRuntimeServiceBuilder().WithEndpoint(socket).WithConnectionTimeout(timeout).WithTracerProvider(nil).Build(ctx)
	if err != nil {
		return nil, fmt.Errorf("connect to the container runtime at %s: %w: is it running, and is --cri-socket its socket?", socket, err)
	}
	i, err := remote.NewRemoteImageServiceBuilder().WithEndpoint(socket).WithConnectionTimeout(timeout).WithTracerProvider(nil).Build(ctx)
	if err != nil {
		_ = r.Close(ctx)
		return nil, fmt.Errorf("connect to the image service at %s: %w", socket, err)
	}
	c := &Client{Runtime: r, Images: i}
	v, err := r.Version(ctx, "")
	if err != nil {
		_ = c.Close()
		return nil, fmt.Errorf("ask the container runtime at %s for its version: %w", socket, err)
	}
	c.name, c.version = v.RuntimeName, v.RuntimeVersion
	return c, nil
}

// Close ends the connections.
func (c *Client) Close() error {
	ctx := Quiet(context.Background())
	return errors.Join(c.Runtime.Close(ctx), c.Images.Close(ctx))
}

// Name is the runtime's ("containerd"), the scheme of container IDs in status.
func (c *Client) Name() string { return c.name }

// Version is the runtime's.
func (c *Client) Version() string { return c.version }

// Exec runs a command in a container, and gives what it wrote to both outputs,
// cut to 10 KiB each. exit is its code where err is nil; err is ErrTimeout
// where it took longer than timeout (0: no limit but ctx).
func (c *Client) Exec(ctx context.Context, id string, command []string, timeout time.Duration) (output []byte, exit int, err error) {
	stdout, stderr, err := c.Runtime.ExecSync(Quiet(ctx), id, command, timeout)
	output = append(head(stdout), head(stderr)...)
	var code utilexec.CodeExitError
	switch {
	case errors.As(err, &code):
		return output, code.Code, nil
	case errors.Is(err, remote.ErrCommandTimedOut), status.Code(err) == codes.DeadlineExceeded:
		return output, 0, fmt.Errorf("%w after %v", ErrTimeout, timeout)
	case err != nil && timeout > 0 && strings.Contains(err.Error(), "timeout "):
		// containerd 1.6 answers with code Unknown.
		return output, 0, fmt.Errorf("%w after %v", ErrTimeout, timeout)
	}
	return output, 0, err
}

func head(b []byte) []byte { return b[:min(len(b), 10<<10)] }

// Message is what a runtime's error says, without gRPC's wrapping.
func Message(err error) string {
	if err == nil {
		return ""
	}
	if s, ok := status.FromError(err); ok {
		return s.Message()
	}
	return err.Error()
}

// IsNotFound: the runtime says that there is no such sandbox or container.
func IsNotFound(err error) bool { return crierrors.IsNotFound(err) }

// Unavailable: the runtime was not reached, or did not answer in time. Nothing
// follows from it about what exists.
func Unavailable(err error) bool {
	switch status.Code(err) {
	case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled:
		return true
	}
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled)
}

// StopSandbox stops a sandbox and all in it; one that is gone is stopped.
func (c *Client) StopSandbox(ctx context.Context, id string) error {
	if err := c.Runtime.StopPodSandbox(Quiet(ctx), id); err != nil && !IsNotFound(err) {
		return fmt.Errorf("stop sandbox %s: %w", short(id), err)
	}
	return nil
}

// RemoveSandbox removes a sandbox and all in it; one that is gone is removed.
func (c *Client) RemoveSandbox(ctx context.Context, id string) error {
	if err := c.Runtime.RemovePodSandbox(Quiet(ctx), id); err != nil && !IsNotFound(err) {
		return fmt.Errorf("remove sandbox %s: %w", short(id), err)
	}
	return nil
}

// StopContainer stops a container, by force after grace; one that is gone is
// stopped. It takes as long as the container does.
func (c *Client) StopContainer(ctx context.Context, id string, grace time.Duration) error {
	seconds := int64((grace + time.Second - 1) / time.Second)
	if err := c.Runtime.StopContainer(Quiet(ctx), id, seconds); err != nil && !IsNotFound(err) {
		return fmt.Errorf("stop container %s: %w", short(id), err)
	}
	return nil
}

// RemoveContainer removes a container; one that is gone is removed.
func (c *Client) RemoveContainer(ctx context.Context, id string) error {
	if err := c.Runtime.RemoveContainer(Quiet(ctx), id); err != nil && !IsNotFound(err) {
		return fmt.Errorf("remove container %s: %w", short(id), err)
	}
	return nil
}

// UpdateResources changes a running container's limits.
func (c *Client) UpdateResources(ctx context.Context, id string, r *runtimeapi.LinuxContainerResources) error {
	if err := c.Runtime.UpdateContainerResources(Quiet(ctx), id, &runtimeapi.ContainerResources{Linux: r}); err != nil {
		return fmt.Errorf("update the resources of container %s: %w", short(id), err)
	}
	return nil
}

func short(id string) string { return id[:min(len(id), 13)] }
