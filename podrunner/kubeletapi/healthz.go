// SPDX-License-Identifier: Apache-2.0

package kubeletapi

import (
	"fmt"
	"net/http"
)

// healthz is /healthz, with the checks that the kubelet has by name: that it
// answers at all (ping), and that its loop goes on (syncloop).
func (s *Server) healthz(w http.ResponseWriter, r *http.Request) {
	err := s.healthy()
	switch _, verbose := r.URL.Query()["verbose"]; {
	case err != nil:
		http.Error(w, "[+]ping ok\n[-]syncloop failed: "+err.Error()+"\nhealthz check failed", http.StatusInternalServerError)
	case verbose:
		fmt.Fprint(w, "[+]ping ok\n[+]syncloop ok\nhealthz check passed\n")
	default:
		fmt.Fprint(w, "ok")
	}
}

func (s *Server) ping(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "ok") }

func (s *Server) syncloop(w http.ResponseWriter, _ *http.Request) {
	if err := s.healthy(); err != nil {
		http.Error(w, "internal server error: "+err.Error(), http.StatusInternalServerError)
		return
	}
	fmt.Fprint(w, "ok")
}

func (s *Server) healthy() error {
	if s.o.Healthy == nil {
		return nil
	}
	return s.o.Healthy()
}
