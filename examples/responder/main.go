// SPDX-License-Identifier: Apache-2.0

// Responder answers HTTP and UDP requests with its name and the client address
// that it sees. It stands in for an application in the demo. With -get it is a
// client instead.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

func main() {
	name := flag.String("name", "", "`NAME` to answer with")
	listen := flag.String("listen", ":8080", "`ADDRESS` for TCP and UDP")
	message := flag.String("message", "", "`FILE` with a message to answer with too, read for each request")
	url := flag.String("get", "", "ask this `URL`, print the answer and exit")
	pause := flag.Bool("pause", false, "do nothing until told to stop, as a Pod's first process does")
	flag.Parse()
	log.SetFlags(0)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	if *pause {
		<-ctx.Done()
		return
	}
	if *url != "" {
		if err := get(*url); err != nil {
			log.Fatal(err)
		}
		return
	}
	udp, err := net.ListenPacket("udp", *listen)
	if err != nil {
		log.Fatal(err)
	}
	go func() {
		buf := make([]byte, 2048)
		for {
			_, from, err := udp.ReadFrom(buf)
			if err != nil {
				log.Fatal(err)
			}
			if _, err := fmt.Fprintf(writerTo{udp, from}, "%s saw %s\n", *name, from); err != nil {
				log.Print(err)
			}
		}
	}()
	server := http.Server{
		Addr: *listen, ReadHeaderTimeout: 5 * time.Second,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, "%s saw %s", *name, r.RemoteAddr)
			if *message != "" {
				text, err := os.ReadFile(*message)
				if err != nil {
					log.Print(err)
				}
				fmt.Fprintf(w, " and says %s", strings.TrimSpace(string(text)))
			}
			fmt.Fprintln(w)
		}),
	}
	ended := make(chan error, 1)
	context.AfterFunc(ctx, func() {
		// Who asks now, asks because it has not heard yet that this one ends.
		time.Sleep(200 * time.Millisecond)
		within, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		ended <- server.Shutdown(within)
	})
	log.Printf("%s listens on %s", *name, *listen)
	if err := server.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		log.Fatal(err)
	}
	if err := <-ended; err != nil {
		log.Fatal(err)
	}
}

func get(url string) error {
	client := http.Client{Timeout: 5 * time.Second}
	resp, err := client.Get(url)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.Copy(os.Stdout, resp.Body)
	return err
}

type writerTo struct {
	net.PacketConn
	to net.Addr
}

func (w writerTo) Write(b []byte) (int, error) { return w.WriteTo(b, w.to) }
