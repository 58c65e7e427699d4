// SPDX-License-Identifier: Apache-2.0

package kubeletapi

import (
	"bytes"
	"errors"
	"time"
)

// logLine is an entry of a log as the runtime writes it (CRI, "Log format"):
//
//	2016-10-06T00:17:09.669794202Z stdout F what the container said
type logLine struct {
	time    time.Time
	stderr  bool
	partial bool // the container's line goes on in the stream's next entry
	content []byte
}

var errLogLine = errors.New("not an entry of a container's log")

// parseLogLine parses an entry without its newline; content is a part of it.
func parseLogLine(b []byte) (l logLine, err error) {
	stamp, rest, ok := bytes.Cut(b, []byte(" "))
	if !ok || len(stamp) > len(time.RFC3339Nano)+8 {
		return logLine{}, errLogLine
	}
	if l.time, err = time.Parse(time.RFC3339Nano, string(stamp)); err != nil {
		return logLine{}, errLogLine
	}
	stream, rest, ok := bytes.Cut(rest, []byte(" "))
	switch string(stream) {
	case "stdout":
	case "stderr":
		l.stderr = true
	default:
		return logLine{}, errLogLine
	}
	tags, content, found := bytes.Cut(rest, []byte(" "))
	if !ok || !found {
		return logLine{}, errLogLine
	}
	// Tags are separated by colons; more than this one may come.
	tag, _, _ := bytes.Cut(tags, []byte(":"))
	l.partial, l.content = string(tag) == "P", content
	return l, nil
}
