// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"fairlead.dev/controller/compile"
)

func TestAFailureIsLoggedOnceAndItsEndOnce(t *testing.T) {
	var out bytes.Buffer
	log, r := slog.New(slog.NewTextHandler(&out, nil)), reports{}
	for range 100 {
		r.outcome(log, errors.New("map is full"), false)
	}
	r.outcome(log, nil, false) // a change of another Service passed
	r.outcome(log, nil, true)
	r.outcome(log, nil, true)
	if got := strings.Count(out.String(), "map is full"); got != 1 {
		t.Errorf("failure logged %d times, want once", got)
	}
	if got := strings.Count(out.String(), "takes changes again"); got != 1 {
		t.Errorf("recovery logged %d times, want once:\n%s", got, &out)
	}
}

func TestAProblemIsLoggedOnceAndManyAreFewLines(t *testing.T) {
	var out bytes.Buffer
	log, r := slog.New(slog.NewTextHandler(&out, nil)), reports{}
	one := compile.Problem{Object: "Service default/web", Reason: "port 80 is taken"}
	r.problems(log, []compile.Problem{one})
	many := []compile.Problem{one}
	for i := range 1000 {
		many = append(many, compile.Problem{Object: fmt.Sprint("Service default/s", i), Reason: "x"})
	}
	r.problems(log, many)
	if got := strings.Count(out.String(), "default/web"); got != 1 {
		t.Errorf("logged %d times, want once", got)
	}
	if got := strings.Count(out.String(), "\n"); got > maxReports+1 || !strings.Contains(out.String(), "count=991") {
		t.Errorf("%d lines for 1001 Problems, want at most %d that say how many more there are:\n%s", got, maxReports+1, &out)
	}
}
