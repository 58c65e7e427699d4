// SPDX-License-Identifier: Apache-2.0

// Command workload is what runs in the Pods of the cluster tests, and as a
// client on nodes and outside of the cluster: a server that says who it is, and
// a client that asks others for who they are, told what to ask over HTTP.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"fairlead.dev/podrunner/containerdtest/pause"
)

func main() {
	log.SetFlags(0)
	args := os.Args[1:]
	if len(args) == 0 {
		args = []string{"pause"}
	}
	run, ok := map[string]func([]string) error{
		"pause": func([]string) error { pause.Run(); return nil }, "serve": serve, "control": control, "echo": echo, "cat": cat, "lines": lines,
		"probe": probe, "api": api, "burn": burn, "resolve": resolve, "exit": func([]string) error { os.Exit(7); return nil },
	}[args[0]]
	if !ok {
		log.Fatalf("workload: no command %q", args[0])
	}
	if err := run(args[1:]); err != nil {
		log.Fatalf("workload: %v", err)
	}
}

// terminated ends when the process is told to end.
func terminated() context.Context {
	ctx, _ := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	return ctx
}

// control ADDRESS serves nothing but the control API.
func control(args []string) error {
	if len(args) != 1 {
		return errors.New("want the address of the control API")
	}
	return listen(terminated(), args[0], newControl())
}

// listen serves until ctx ends, and answers what it had accepted by then.
func listen(ctx context.Context, address string, h http.Handler) error {
	s := &http.Server{Addr: address, Handler: h, ReadHeaderTimeout: 10 * time.Second}
	done := make(chan struct{})
	go func() {
		defer close(done)
		<-ctx.Done()
		// As HTTP servers do on SIGTERM: no new connections, and the end of those
		// that are idle.
		within, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		_ = s.Shutdown(within)
	}()
	err := s.ListenAndServe()
	if !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	<-done
	return nil
}

func echo(args []string) error {
	if len(args) > 0 && args[0] == "-" {
		_, err := io.Copy(os.Stdout, os.Stdin)
		return err
	}
	_, err := fmt.Println(strings.Join(args, " "))
	return err
}

func cat(args []string) error {
	for _, name := range args {
		b, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		if _, err := os.Stdout.Write(b); err != nil {
			return err
		}
	}
	return nil
}

// lines prints a line every 100 ms, numbered from 0.
func lines([]string) error {
	ctx := terminated()
	for i := 0; ctx.Err() == nil; i++ {
		fmt.Println("line", i)
		select {
		case <-ctx.Done():
		case <-time.After(100 * time.Millisecond):
		}
	}
	return nil
}

// burn MIB holds that much memory and takes all the CPU it gets, of one core.
func burn(args []string) error {
	mib, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	held := make([]byte, mib<<20)
	for ctx := terminated(); ctx.Err() == nil; {
		for i := 0; i < len(held); i += os.Getpagesize() {
			held[i]++
		}
	}
	return nil
}
