// SPDX-License-Identifier: Apache-2.0

package cri

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net"
	"path"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Keyring has the credentials of pull secrets by registry.
type Keyring struct {
	// entries are sorted so that the more special location comes first.
	entries []keyringEntry
}

type keyringEntry struct {
	// location is "host[:port][/path]"; labels of host may have wildcards.
	location string
	auth     *runtimeapi.AuthConfig
}

type dockerAuth struct {
	Username      string `json:"username"`
	Password      string `json:"password"`
	Auth          string `json:"auth"`
	IdentityToken string `json:"identitytoken"`
	RegistryToken string `json:"registrytoken"`
}

// NewKeyring reads secrets of the types kubernetes.io/dockerconfigjson and
// kubernetes.io/dockercfg; others, and empty ones, hold no credentials. The
// error names the Secret that cannot be read; never what is in it.
func NewKeyring(secrets []*corev1.Secret) (*Keyring, error) {
	k := &Keyring{}
	for _, s := range secrets {
		var auths map[string]dockerAuth
		var err error
		if data, ok := s.Data[corev1.DockerConfigJsonKey]; s.Type == corev1.SecretTypeDockerConfigJson && ok && len(data) > 0 {
			var config struct {
				Auths map[string]dockerAuth `json:"auths"`
			}
			err = json.Unmarshal(data, &config)
			auths = config.Auths
		} else if data, ok := s.Data[corev1.DockerConfigKey]; s.Type == corev1.SecretTypeDockercfg && ok && len(data) > 0 {
			err = json.Unmarshal(data, &auths)
		}
		if err != nil {
			return nil, fmt.Errorf("pull secret %s/%s: not a docker configuration", s.Namespace, s.Name)
		}
		for location, a := range auths {
			auth, err := a.config()
			if err != nil {
				return nil, fmt.Errorf("pull secret %s/%s: %s: %w", s.Namespace, s.Name, location, err)
			}
			k.entries = append(k.entries, keyringEntry{normalLocation(location), auth})
		}
	}
	slices.SortStableFunc(k.entries, func(a, b keyringEntry) int { return strings.Compare(b.location, a.location) })
	return k, nil
}

func (a dockerAuth) config() (*runtimeapi.AuthConfig, error) {
	c := &runtimeapi.AuthConfig{Username: a.Username, Password: a.Password, IdentityToken: a.IdentityToken, RegistryToken: a.RegistryToken}
	if a.Auth == "" {
		return c, nil
	}
	b, err := base64.StdEncoding.DecodeString(a.Auth)
	if err != nil {
		b, err = base64.RawStdEncoding.DecodeString(a.Auth)
	}
	user, password, ok := strings.Cut(string(b), ":")
	if err != nil || !ok {
		return nil, fmt.Errorf("auth is not base64 of user:password")
	}
	c.Username, c.Password = user, strings.TrimRight(password, "\x00")
	return c, nil
}

// normalLocation takes "https://host/v1/" to "host", as docker login writes it.
func normalLocation(l string) string {
	l = strings.TrimPrefix(strings.TrimPrefix(l, "https://"), "http://")
	host, rest, _ := strings.Cut(l, "/")
	rest = strings.Trim(rest, "/")
	for _, version := range []string{"v1", "v2"} {
		if rest == version || strings.HasPrefix(rest, version+"/") {
			rest = strings.Trim(rest[len(version):], "/")
			break
		}
	}
	if host == "index.docker.io" || host == "registry-1.docker.io" {
		host = "docker.io"
	}
	if rest == "" {
		return host
	}
	return host + "/" + rest
}

// Lookup gives the credentials that may be for the image, the most special ones
// first.
func (k *Keyring) Lookup(image string) (auths []*runtimeapi.AuthConfig) {
	r, err := parseReference(image)
	if err != nil {
		return nil
	}
	for _, e := range k.entries {
		if matches(e.location, r) {
			auths = append(auths, e.auth)
		}
	}
	return auths
}

func matches(location string, r reference) bool {
	host, prefix, _ := strings.Cut(location, "/")
	if prefix != "" && r.path != prefix && !strings.HasPrefix(r.path, prefix) {
		return false
	}
	name, port := splitPort(host)
	imageName, imagePort := splitPort(r.host)
	if port != imagePort {
		return false
	}
	want, have := strings.Split(name, "."), strings.Split(imageName, ".")
	if len(want) != len(have) {
		return false
	}
	for i := range want {
		if ok, err := path.Match(want[i], have[i]); err != nil || !ok {
			return false
		}
	}
	return true
}

func splitPort(host string) (name, port string) {
	if n, p, err := net.SplitHostPort(host); err == nil {
		return n, p
	}
	return host, ""
}
