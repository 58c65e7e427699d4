// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// version is set with -ldflags "-X main.version=v1.2.3". Without it the module
// version of the build counts.
var version string

// buildInfo is what `fairlead version -o json` prints.
type buildInfo struct {
	Version string `json:"version"`
	// Revision is the commit, with +dirty for a changed tree; empty: unknown.
	Revision string `json:"revision"`
	Go       string `json:"go"`
	Platform string `json:"platform"`
	// BPFLayout is the layout of the pinned maps that this build reads and writes.
	BPFLayout int `json:"bpfLayout"`
}

func readBuildInfo() buildInfo {
	b := buildInfo{Version: version, Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH, BPFLayout: bpfLayout}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		info = &debug.BuildInfo{}
	}
	settings := map[string]string{}
	for _, s := range info.Settings {
		settings[s.Key] = s.Value
	}
	b.Revision = settings["vcs.revision"]
	if b.Revision != "" && settings["vcs.modified"] == "true" {
		b.Revision += "+dirty"
	}
	if b.Version == "" {
		b.Version = info.Main.Version
	}
	if b.Version == "" || b.Version == "(devel)" {
		b.Version = "devel"
	}
	return b
}

func newVersionCommand() *cobra.Command {
	output := "text"
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Print the version of this binary and of the kernel state it speaks",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkOutput(output, "text", "json"); err != nil {
				return err
			}
			b := readBuildInfo()
			if output == "json" {
				return json.NewEncoder(cmd.OutOrStdout()).Encode(b)
			}
			revision := b.Revision
			if revision == "" {
				revision = "unknown"
			}
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "fairlead %s\nrevision %s\n%s %s\nBPF layout %d\n",
				b.Version, revision, b.Go, b.Platform, b.BPFLayout)
			return err
		},
	}
	addOutputFlag(cmd, &output, "text", "json")
	return cmd
}
