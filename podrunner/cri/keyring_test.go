// SPDX-License-Identifier: Apache-2.0

package cri

import (
	"encoding/base64"
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestImageNamesAreReadAsTheyAreWritten(t *testing.T) {
	digest := "@sha256:" + strings.Repeat("0", 64)
	for name, want := range map[string]reference{
		"busybox":                       {"docker.io", "library/busybox", "latest", ""},
		"busybox:1.36":                  {"docker.io", "library/busybox", "1.36", ""},
		"user/app":                      {"docker.io", "user/app", "latest", ""},
		"index.docker.io/app":           {"docker.io", "library/app", "latest", ""},
		"localhost/app:1":               {"localhost", "app", "1", ""},
		"registry.test:5000/a/b/c:v1.2": {"registry.test:5000", "a/b/c", "v1.2", ""},
		"registry.test/a" + digest:      {"registry.test", "a", "", digest[1:]},
		"registry.test/a:1" + digest:    {"registry.test", "a", "1", digest[1:]},
		"[::1]:5000/a":                  {"[::1]:5000", "a", "latest", ""},
	} {
		if got, err := parseReference(name); err != nil || got != want {
			t.Errorf("%s: %+v, %v, want %+v", name, got, err, want)
		}
	}
	for _, bad := range []string{"", "UPPER", "a b", "a:", "a@sha256:0", "registry.test/", "/a", "a//b", "-a", "a:" + strings.Repeat("x", 129), "registry.test/" + strings.Repeat("a", 256)} {
		if got, err := parseReference(bad); err == nil {
			t.Errorf("%q is read as %+v", bad, got)
		}
	}
	for name, want := range map[string]string{"a": "a:latest", "a:1": "a:1", "a:latest": "a:latest", "a" + digest: "a" + digest, "r.test:5000/a": "r.test:5000/a:latest"} {
		if got, err := withTag(name); err != nil || got != want {
			t.Errorf("%s: %q, %v, want %q", name, got, err, want)
		}
	}
}

func FuzzReference(f *testing.F) {
	for _, s := range []string{"a", "a:1", "r:5/a@sha256:x", "[::1]/a", "/", "@", ":"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := parseReference(s)
		if err != nil {
			return
		}
		again, err := parseReference(r.repository())
		if err != nil || again.repository() != r.repository() {
			t.Errorf("%q is %+v, whose repository is read as %+v, %v", s, r, again, err)
		}
	})
}

func secret(t corev1.SecretType, key, data string) *corev1.Secret {
	return &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "s"}, Type: t, Data: map[string][]byte{key: []byte(data)}}
}

func TestCredentialsAreFoundByWhereTheImageIs(t *testing.T) {
	basic := func(user string) string {
		return fmt.Sprintf(`{"auth": %q}`, base64.StdEncoding.EncodeToString([]byte(user+":p:w")))
	}
	k, err := NewKeyring([]*corev1.Secret{
		secret(corev1.SecretTypeDockerConfigJson, ".dockerconfigjson", `{"auths": {
			"https://index.docker.io/v1/": `+basic("hub")+`,
			"registry.test": `+basic("host")+`,
			"registry.test/team": `+basic("team")+`,
			"*.wild.test:5000": {"username": "wild", "password": "x"}}}`),
		secret(corev1.SecretTypeDockercfg, ".dockercfg", `{"http://old.test/v2/sub": {"username": "old", "password": "x"}}`),
		secret(corev1.SecretTypeOpaque, ".dockerconfigjson", `not looked at`),
	})
	if err != nil {
		t.Fatal(err)
	}
	for image, want := range map[string]string{
		"busybox": "hub", "docker.io/user/app:1": "hub", "registry.test/app": "host", "registry.test/team/app": "team host",
		"registry.test:5000/app": "", "a.wild.test:5000/x": "wild", "a.b.wild.test:5000/x": "", "a.wild.test/x": "", "old.test/sub/x": "old", "old.test/x": "", "BAD": "",
	} {
		var got []string
		for _, a := range k.Lookup(image) {
			got = append(got, a.Username)
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%s: %v, want %q", image, got, want)
		}
	}
	if a := k.Lookup("busybox")[0]; a.Password != "p:w" {
		t.Errorf("password %q", a.Password)
	}
}

func TestASecretThatCannotBeReadIsNamedAndNotShown(t *testing.T) {
	for _, data := range []string{`{"auths": {"x": {"auth": "hunter2"}}}`, `hunter2`, `{"auths": {"x": {"auth": "aHVudGVyMg=="}}}`} {
		_, err := NewKeyring([]*corev1.Secret{secret(corev1.SecretTypeDockerConfigJson, ".dockerconfigjson", data)})
		if err == nil || !strings.Contains(err.Error(), "ns/s") || strings.Contains(err.Error(), "hunter2") || strings.Contains(err.Error(), "aHVudGVyMg") {
			t.Errorf("%s: %v", data, err)
		}
	}
}
