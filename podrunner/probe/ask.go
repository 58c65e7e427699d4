// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"fairlead.dev/podrunner/cri"
)

// answer to one try.
type answer struct {
	ok, warn bool
	// output says why, for an Event.
	output string
}

// ask makes one try. An error means that it could not be made.
func (p *Prober) ask(ctx context.Context, t *Target, spec *corev1.Probe) (answer, error) {
	timeout := time.Duration(max(spec.TimeoutSeconds, 1)) * time.Second
	switch {
	case spec.Exec != nil:
		return p.askExec(ctx, t, spec.Exec, timeout)
	case spec.HTTPGet != nil:
		req, err := Request(ctx, spec.HTTPGet, t.Container, t.Host, "kube-probe/1.37")
		if err != nil {
			return answer{}, err
		}
		return askHTTP(req, timeout), nil
	case spec.TCPSocket != nil:
		port, err := Port(spec.TCPSocket.Port, t.Container)
		if err != nil {
			return answer{}, err
		}
		host := spec.TCPSocket.Host
		if host == "" {
			host = t.Host
		}
		return askTCP(ctx, net.JoinHostPort(host, strconv.Itoa(port)), timeout), nil
	case spec.GRPC != nil:
		return askGRPC(ctx, t.Host, spec.GRPC, timeout), nil
	}
	return answer{}, errors.New("missing probe handler")
}

func (p *Prober) askExec(ctx context.Context, t *Target, e *corev1.ExecAction, timeout time.Duration) (answer, error) {
	output, exit, err := p.o.Exec(ctx, t.ContainerID, expand(e.Command, t.Container.Env), timeout)
	switch {
	case errors.Is(err, cri.ErrTimeout):
		return answer{output: err.Error()}, nil
	case cri.Unavailable(err):
		return answer{}, err // says nothing about the container
	case err != nil:
		return answer{}, err
	case exit != 0:
		return answer{output: string(output)}, nil
	}
	return answer{ok: true}, nil
}

func askTCP(ctx context.Context, address string, timeout time.Duration) answer {
	d := net.Dialer{Timeout: timeout}
	c, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return answer{output: err.Error()}
	}
	_ = c.Close()
	return answer{ok: true}
}

// Port finds the number of a port that may be one of the container's names.
func Port(p intstr.IntOrString, c *corev1.Container) (int, error) {
	n := p.IntValue()
	if p.Type == intstr.String {
		for i := range c.Ports {
			if c.Ports[i].Name == p.StrVal {
				n = int(c.Ports[i].ContainerPort)
			}
		}
		if n == 0 {
			return 0, fmt.Errorf("couldn't find port: %q in container %s", p.StrVal, c.Name)
		}
	}
	if n < 1 || n > 65535 {
		return 0, fmt.Errorf("invalid port number: %d", n)
	}
	return n, nil
}

// expand replaces $(NAME) by the container's own plain variables, $$ by $, and
// leaves what it does not know, as the kubelet does for commands of probes.
func expand(command []string, env []corev1.EnvVar) []string {
	values := make(map[string]string, len(env))
	for _, e := range env {
		if e.ValueFrom == nil {
			values[e.Name] = e.Value
		}
	}
	out := make([]string, len(command))
	for i, s := range command {
		out[i] = expandOne(s, values)
	}
	return out
}

func expandOne(s string, values map[string]string) string {
	var b []byte
	for i := 0; i < len(s); i++ {
		if s[i] != '$' || i+1 == len(s) {
			b = append(b, s[i])
			continue
		}
		if s[i+1] == '$' {
			b = append(b, '$')
			i++
			continue
		}
		name, length, ok := variable(s[i+1:])
		if v, known := values[name]; ok && known {
			b = append(b, v...)
			i += length
			continue
		}
		b = append(b, '$')
	}
	return string(b)
}

// variable reads "(NAME)" at the beginning of s.
func variable(s string) (name string, length int, ok bool) {
	if s[0] != '(' {
		return "", 0, false
	}
	for i := 1; i < len(s); i++ {
		if s[i] == ')' {
			return s[1:i], i + 1, true
		}
	}
	return "", 0, false
}
