// SPDX-License-Identifier: Apache-2.0

// Responder answers HTTP and UDP requests with its name and the client address
// that it sees. It stands in for an application in the demo.
package main

import (
	"flag"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"strings"
	"time"
)

func main() {
	name := flag.String("name", "", "`NAME` to answer with")
	listen := flag.String("listen", ":8080", "`ADDRESS` for TCP and UDP")
	message := flag.String("message", "", "`FILE` with a message to answer with too, read for each request")
	flag.Parse()
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
	log.Fatal(server.ListenAndServe())
}

type writerTo struct {
	net.PacketConn
	to net.Addr
}

func (w writerTo) Write(b []byte) (int, error) { return w.WriteTo(b, w.to) }
