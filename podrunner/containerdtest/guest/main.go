// SPDX-License-Identifier: Apache-2.0

// Command guest is what runs in the containers of tests: one static binary with
// a subcommand for each thing that a test wants a container to do. As "true",
// "false", "sh" and so on there is nothing else in the image.
package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"fairlead.dev/podrunner/containerdtest/pause"
)

func main() {
	args := os.Args[1:]
	if len(args) == 0 {
		args = []string{"pause"}
	}
	run, ok := commands[args[0]]
	if !ok {
		fatal(fmt.Errorf("no command %q", args[0]))
	}
	if err := run(args[1:]); err != nil {
		fatal(err)
	}
}

// commands are told in the package containerdtest.
var commands map[string]func(args []string) error

func init() {
	commands = map[string]func([]string) error{
		"pause":    func([]string) error { pause.Run(); return nil },
		"exit":     exit,
		"sleep":    sleep,
		"stubborn": stubborn,
		"serve":    serve,
		"echo":     func(a []string) error { _, err := fmt.Println(strings.Join(a, " ")); return err },
		"err":      func(a []string) error { _, err := fmt.Fprintln(os.Stderr, strings.Join(a, " ")); return err },
		"env":      env,
		"cat":      cat,
		"write":    write,
		"rm":       func(a []string) error { return os.Remove(a[0]) },
		"exists":   func(a []string) error { _, err := os.Stat(a[0]); return err },
		"oom":      oom,
		"id":       id,
		"ls":       ls,
		"kill":     kill,
		"then":     then,
		"once":     once,
		"wait":     waitFor,
		"spin": func([]string) error {
			for {
				_ = 0
			}
		},
		"get":        get,
		"cgroup":     func([]string) error { return cat([]string{"/proc/self/cgroup"}) },
		"dial":       dial,
		"lines":      lines,
		"hostname":   func([]string) error { n, err := os.Hostname(); fmt.Println(n); return err },
		"terminated": terminated,
	}
}

func fatal(err error) {
	fmt.Fprintln(os.Stderr, "guest:", err)
	os.Exit(1)
}

func exit(args []string) error {
	code := number(args, 0)
	os.Exit(code)
	return nil
}

// sleep SECONDS ends at SIGTERM with code 143 as a shell would say it; without
// seconds it never ends by itself.
func sleep(args []string) error {
	c := signals()
	var end <-chan time.Time
	if len(args) > 0 {
		seconds, err := strconv.ParseFloat(args[0], 64)
		if err != nil {
			return err
		}
		end = time.After(time.Duration(seconds * float64(time.Second)))
	}
	select {
	case <-c:
		os.Exit(143)
	case <-end:
	}
	return nil
}

// terminated MESSAGE-FILE TEXT [CODE] writes when SIGTERM comes, then ends.
func terminated(args []string) error {
	c := signals()
	<-c
	f, err := os.OpenFile(args[0], os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	fmt.Fprintln(f, args[1])
	f.Close()
	os.Exit(number(args, 2))
	return nil
}

// signals hears SIGTERM from now on.
func signals() <-chan os.Signal {
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGTERM)
	listening()
	return c
}

// listening makes /listening, where the root may be written to: a container runs
// before its process has come to hear signals, and Go's own answer is code 2.
func listening() {
	if f, err := os.Create("/listening"); err == nil {
		f.Close()
	}
}

// stubborn ends at SIGKILL only.
func stubborn([]string) error {
	signal.Ignore(syscall.SIGTERM, syscall.SIGINT)
	listening()
	for {
		time.Sleep(time.Hour)
	}
}

// serve [PORT] answers /, /status/CODE, /headers, /exit/CODE, /file/PATH: 200 if
// the file exists, else 503.
func serve(args []string) error {
	port := "8080"
	if len(args) > 0 {
		port = args[0]
	}
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		name, _ := os.Hostname()
		fmt.Fprintln(w, name)
	})
	http.HandleFunc("/headers", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintln(w, "Host:", r.Host)
		r.Header.Write(w)
	})
	http.HandleFunc("/status/", func(w http.ResponseWriter, r *http.Request) {
		code, _ := strconv.Atoi(strings.TrimPrefix(r.URL.Path, "/status/"))
		w.WriteHeader(max(code, 200))
	})
	http.HandleFunc("/exit/", func(w http.ResponseWriter, r *http.Request) {
		code, _ := strconv.Atoi(strings.TrimPrefix(r.URL.Path, "/exit/"))
		os.Exit(code)
	})
	http.HandleFunc("/file/", func(w http.ResponseWriter, r *http.Request) {
		if _, err := os.Stat(strings.TrimPrefix(r.URL.Path, "/file")); err != nil {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})
	go func() {
		c := make(chan os.Signal, 1)
		signal.Notify(c, syscall.SIGTERM)
		<-c
		os.Exit(0)
	}()
	return http.ListenAndServe(":"+port, nil)
}

func env(args []string) error {
	for _, e := range os.Environ() {
		if len(args) == 0 || strings.HasPrefix(e, args[0]) {
			fmt.Println(e)
		}
	}
	return nil
}

func cat(args []string) error {
	for _, name := range args {
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		_, err = io.Copy(os.Stdout, f)
		f.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

func write(args []string) error {
	f, err := os.OpenFile(args[0], os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = fmt.Fprintln(f, strings.Join(args[1:], " "))
	return err
}

// oom takes memory until the kernel ends it.
func oom([]string) error {
	var kept [][]byte
	for {
		b := make([]byte, 1<<20)
		for i := 0; i < len(b); i += 4096 {
			b[i] = 1
		}
		kept = append(kept, b)
		if len(kept) > 16<<10 {
			return errors.New("16 GiB and still alive")
		}
	}
}

// id prints user, groups, capabilities and whether new privileges are barred.
func id([]string) error {
	groups, err := os.Getgroups()
	if err != nil {
		return err
	}
	fmt.Printf("uid=%d gid=%d groups=%v\n", os.Getuid(), os.Getgid(), groups)
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(status)) {
		if strings.HasPrefix(line, "Cap") || strings.HasPrefix(line, "NoNewPrivs") || strings.HasPrefix(line, "Seccomp:") {
			fmt.Print(line)
		}
	}
	return nil
}

func ls(args []string) error {
	entries, err := os.ReadDir(args[0])
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(args[0]+"/"+e.Name(), &st); err != nil {
			return err
		}
		fmt.Println(info.Mode(), st.Uid, st.Gid, info.Size(), e.Name())
	}
	return err
}

// kill PID [SIGNAL]
func kill(args []string) error {
	sig := syscall.SIGKILL
	if len(args) > 1 {
		sig = syscall.Signal(number(args, 1))
	}
	return syscall.Kill(number(args, 0), sig)
}

// then runs several commands, split at arguments that are ";".
func then(args []string) error {
	for len(args) > 0 {
		end := len(args)
		for i, a := range args {
			if a == ";" {
				end = i
				break
			}
		}
		run, ok := commands[args[0]]
		if !ok {
			return fmt.Errorf("no command %q", args[0])
		}
		if err := run(args[1:end]); err != nil {
			return err
		}
		args = args[min(end+1, len(args)):]
	}
	return nil
}

// once FILE CODE ends with CODE the first time, and passes afterwards.
func once(args []string) error {
	if _, err := os.Stat(args[0]); err == nil {
		return nil
	}
	if err := write([]string{args[0], "x"}); err != nil {
		return err
	}
	os.Exit(number(args, 1))
	return nil
}

// wait FILE waits until it exists.
func waitFor(args []string) error {
	for {
		if _, err := os.Stat(args[0]); err == nil {
			return nil
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func get(args []string) error {
	resp, err := http.Get(args[0])
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.Copy(os.Stdout, resp.Body)
	return err
}

func dial(args []string) error {
	c, err := net.DialTimeout("tcp", args[0], time.Second)
	if err != nil {
		return err
	}
	return c.Close()
}

// lines N prints N numbered lines.
func lines(args []string) error {
	for i := range number(args, 0) {
		fmt.Println("line", i)
	}
	return nil
}

func number(args []string, i int) int {
	if i >= len(args) {
		return 0
	}
	n, err := strconv.Atoi(args[i])
	if err != nil {
		fatal(err)
	}
	return n
}
