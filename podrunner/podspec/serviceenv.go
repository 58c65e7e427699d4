// SPDX-License-Identifier: Apache-2.0

package podspec

import (
	"context"
	"net"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"fairlead.dev/podrunner/objects"
)

// serviceEnv returns the variables that name Services: the API server's
// always, and those of the Pod's namespace unless enableServiceLinks is false.
func serviceEnv(ctx context.Context, pod *corev1.Pod, store objects.Store) (map[string]string, error) {
	chosen := map[string]*corev1.Service{}
	links := pod.Spec.EnableServiceLinks == nil || *pod.Spec.EnableServiceLinks
	master, err := store.Services(ctx, corev1.NamespaceDefault)
	if err != nil {
		return nil, err
	}
	for _, s := range master {
		if s.Name == "kubernetes" && hasClusterIP(s) {
			chosen[s.Name] = s
		}
	}
	if links {
		own := master
		if pod.Namespace != corev1.NamespaceDefault {
			if own, err = store.Services(ctx, pod.Namespace); err != nil {
				return nil, err
			}
		}
		for _, s := range own {
			if hasClusterIP(s) {
				chosen[s.Name] = s
			}
		}
	}
	env := map[string]string{}
	for _, s := range chosen {
		addServiceEnv(env, s)
	}
	return env, nil
}

func hasClusterIP(s *corev1.Service) bool {
	return s.Spec.ClusterIP != "" && s.Spec.ClusterIP != corev1.ClusterIPNone && len(s.Spec.Ports) > 0
}

// addServiceEnv adds what kubernetes.io/docs "Environment variables" lists
// for one Service: {NAME}_SERVICE_HOST and _PORT, and the links that Docker
// once made ({NAME}_PORT_...).
func addServiceEnv(env map[string]string, s *corev1.Service) {
	name, ip := envName(s.Name), s.Spec.ClusterIP
	env[name+"_SERVICE_HOST"] = ip
	for i, p := range s.Spec.Ports {
		port := strconv.Itoa(int(p.Port))
		proto := string(p.Protocol)
		if proto == "" {
			proto = string(corev1.ProtocolTCP)
		}
		upper, lower := strings.ToUpper(proto), strings.ToLower(proto)
		url := lower + "://" + net.JoinHostPort(ip, port)
		if i == 0 {
			env[name+"_SERVICE_PORT"] = port
			env[name+"_PORT"] = url
		}
		if p.Name != "" {
			env[name+"_SERVICE_PORT_"+envName(p.Name)] = port
		}
		link := name + "_PORT_" + port + "_" + upper
		env[link] = url
		env[link+"_PROTO"] = lower
		env[link+"_PORT"] = port
		env[link+"_ADDR"] = ip
	}
}

func envName(s string) string { return strings.ToUpper(strings.ReplaceAll(s, "-", "_")) }
