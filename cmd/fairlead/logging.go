// SPDX-License-Identifier: Apache-2.0

package main

import (
	"io"
	"log/slog"

	"k8s.io/klog/v2"

	"fairlead.dev/controller/config"
)

// debugVerbosity is the klog verbosity from which everything is said: in
// Kubernetes, 4 is "debug level verbosity".
const debugVerbosity = 4

// newLogger makes the agent's logger, and gives it to client-go, which logs
// through klog.
func newLogger(c *config.Configuration, w io.Writer) *slog.Logger {
	levels := map[string]slog.Level{"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError}
	o := &slog.HandlerOptions{Level: levels[c.LogLevel]}
	if c.V >= debugVerbosity {
		o.Level = slog.LevelDebug
	}
	var h slog.Handler = slog.NewTextHandler(w, o)
	if c.LogFormat == "json" {
		h = slog.NewJSONHandler(w, o)
	}
	log := slog.New(h)
	slog.SetDefault(log)
	klog.SetSlogLogger(log)
	return log
}
