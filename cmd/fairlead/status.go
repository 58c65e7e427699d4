// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"github.com/spf13/cobra"

	dto "github.com/prometheus/client_model/go"

	"fairlead.dev/controller/config"
	"fairlead.dev/controller/status"
	"fairlead.dev/dataplane"
)

// statusPatience is how long the agent may take to answer, and maxMetrics what
// it may say: 100,000 Service ports with traffic are 60 MB.
const (
	statusPatience = 10 * time.Second
	maxMetrics     = 256 << 20
)

func newStatusCommand() *cobra.Command {
	output, c := "text", config.Default()
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show this node on one screen: what is in force, how the agent keeps up, drops, Services with traffic",
		Long: "Show this node on one screen: what is in force, how the agent keeps up, drops, Services with traffic.\n\n" +
			"What is in force is read from the kernel, the rest from the agent's metrics. It works with the agent dead.",
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
			s, err := readStatus(cmd.Context(), r, c.MetricsBindAddress)
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
	f.StringVar(&c.MetricsBindAddress, "metrics-bind-address", c.MetricsBindAddress, "`IP:PORT` of the agent's metrics; empty: do not ask it")
	return cmd
}

// readStatus reads the kernel and, where one answers, the agent.
func readStatus(ctx context.Context, r dataplane.Reader, metrics string) (*status.Status, error) {
	table, err := r.Table()
	if err != nil {
		return nil, err
	}
	counters, drops, err := r.Counters()
	if err != nil {
		return nil, err
	}
	s := status.FromKernel(table, counters, drops)
	said, err := askForStatus(ctx, metrics)
	if err != nil {
		s.AgentError = err.Error()
		return s, nil
	}
	s.Agent = said.Agent
	return s, nil
}

// askForStatus asks the agent that has this metrics address.
func askForStatus(ctx context.Context, address string) (*status.Status, error) {
	if address == "" {
		return nil, errors.New("not asked")
	}
	ctx, cancel := context.WithTimeout(ctx, statusPatience)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+reachable(address)+"/metrics", nil)
	if err != nil {
		return nil, err
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	answer, err := client.Do(r)
	if err != nil {
		return nil, fmt.Errorf("none answers at %s (--metrics-bind-address)", address)
	}
	defer answer.Body.Close()
	if answer.StatusCode == http.StatusBadRequest {
		return nil, fmt.Errorf("the one at %s serves its metrics with TLS (--metrics-auth, --metrics-tls-cert-file): ask it by way of Prometheus", address)
	}
	if answer.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("the one at %s answers %s", address, answer.Status)
	}
	families, err := parseMetrics(io.LimitReader(answer.Body, maxMetrics))
	if err != nil {
		return nil, fmt.Errorf("what answers at %s is no fairlead agent: %w", address, err)
	}
	return status.FromMetrics(families)
}

// reachable is where a server can be asked that listens on all addresses.
func reachable(address string) string {
	host, port, err := net.SplitHostPort(address)
	if err == nil && (host == "" || net.ParseIP(host).IsUnspecified()) {
		return net.JoinHostPort("localhost", port)
	}
	return address
}

// parseMetrics reads the text that Prometheus reads.
func parseMetrics(r io.Reader) (out []*dto.MetricFamily, err error) {
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(r)
	if err != nil {
		return nil, err
	}
	for _, f := range families {
		out = append(out, f)
	}
	return out, nil
}

func writeStatus(w io.Writer, output string, s *status.Status, now time.Time) error {
	if output == "json" {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(s)
	}
	return s.WriteText(w, now)
}
