// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"strconv"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
)

// askGRPC asks by the gRPC health checking protocol, v1.
func askGRPC(ctx context.Context, host string, a *corev1.GRPCAction, timeout time.Duration) answer {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	address := net.JoinHostPort(host, strconv.Itoa(int(a.Port)))
	security := insecure.NewCredentials()
	if a.Mode != nil && *a.Mode == corev1.GRPCProbeModeTLS {
		security = credentials.NewTLS(&tls.Config{InsecureSkipVerify: true})
	}
	conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(security), grpc.WithUserAgent("kube-probe/1.37"),
		grpc.WithNoProxy(), grpc.WithDisableServiceConfig())
	if err != nil {
		return answer{output: fmt.Sprintf("error: %v", err)}
	}
	defer conn.Close()
	service := ""
	if a.Service != nil {
		service = *a.Service
	}
	ctx = metadata.AppendToOutgoingContext(ctx, "user-agent", "kube-probe/1.37")
	resp, err := grpc_health_v1.NewHealthClient(conn).Check(ctx, &grpc_health_v1.HealthCheckRequest{Service: service})
	switch code := status.Code(err); {
	case err == nil && resp.Status == grpc_health_v1.HealthCheckResponse_SERVING:
		return answer{ok: true}
	case err == nil:
		return answer{output: fmt.Sprintf("service unhealthy (responded with %q)", resp.Status)}
	case code == codes.Unimplemented:
		return answer{output: "server doesn't implement the grpc health protocol (grpc.health.v1.Health): " + status.Convert(err).Message()}
	case code == codes.DeadlineExceeded:
		return answer{output: fmt.Sprintf("timeout: failed to connect service %q within %v", address, timeout)}
	}
	return answer{output: "error: health rpc probe failed: " + err.Error()}
}
