// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
)

// packet runs the benchmark of the packet path, which lives beside the programs.
func (b *bench) packet(ctx context.Context) error {
	say("packet: go test -run '^$' -bench NorthSouth fairlead.dev/bpf")
	out, err := exec.CommandContext(ctx, "go", "test", "-run", "^$", "-bench", "NorthSouth", "fairlead.dev/bpf").CombinedOutput()
	if err != nil {
		return fmt.Errorf("benchmark of the packet path: %w\n%s", err, out)
	}
	b.report.Packet = packetRows(string(out))
	if len(b.report.Packet) == 0 {
		return fmt.Errorf("benchmark of the packet path printed no figures:\n%s", out)
	}
	return nil
}

// packetRows reads what testing.B.ReportMetric printed: pairs of a value and a
// unit, here NAME-ns/packet and NAME-x/bounce.
func packetRows(out string) (rows []packetRow) {
	for line := range strings.Lines(out) {
		if !strings.HasPrefix(line, "Benchmark") {
			continue
		}
		f := strings.Fields(line)
		ratios := map[string]float64{}
		for i := 1; i < len(f); i++ {
			v, err := strconv.ParseFloat(f[i-1], 64)
			if name, ok := strings.CutSuffix(f[i], "-ns/packet"); ok && err == nil {
				rows = append(rows, packetRow{Name: name, NsPerPacket: v})
			}
			if name, ok := strings.CutSuffix(f[i], "-x/bounce"); ok && err == nil {
				ratios[name] = v
			}
		}
		for i := range rows {
			rows[i].Ratio = ratios[rows[i].Name]
		}
	}
	return rows
}
