// SPDX-License-Identifier: Apache-2.0

package source

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"k8s.io/client-go/rest"
)

func TestAnErrorOfTheConfigurationNamesTheRemedy(t *testing.T) {
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	dir := t.TempDir()
	write := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	broken := write("broken", "clusters: [")
	noContext := write("nocontext", "apiVersion: v1\nkind: Config\ncurrent-context: gone\n")
	for _, test := range []struct {
		name, path string
		want       []string
	}{
		{"no file and no pod", "", []string{"--kubeconfig", "--manifests"}},
		{"missing file", filepath.Join(dir, "missing"), []string{dir + "/missing", "no such file", "--kubeconfig"}},
		{"broken file", broken, []string{broken, "kubectl --kubeconfig"}},
		{"missing context", noContext, []string{noContext, "gone"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := LoadRESTConfig(test.path)
			if err == nil {
				t.Fatal("no error")
			}
			for _, want := range test.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("the error does not say %q: %v", want, err)
				}
			}
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("the error has several lines: %q", err)
			}
		})
	}
}

func TestANewAPIServerRefusesWhatCannotWork(t *testing.T) {
	ok := &rest.Config{Host: "https://127.0.0.1:1"}
	for _, test := range []struct {
		name    string
		options APIServerOptions
		want    string
	}{
		{"no connection", APIServerOptions{NodeName: "n"}, "--kubeconfig"},
		{"no node name", APIServerOptions{Config: ok}, "--node-name"},
		{"no address", APIServerOptions{Config: &rest.Config{Host: "https://:::"}, NodeName: "n"}, "https://:::"},
		{"missing CA file", APIServerOptions{
			Config:   &rest.Config{Host: ok.Host, TLSClientConfig: rest.TLSClientConfig{CAFile: "/nonexistent/ca.crt"}},
			NodeName: "n",
		}, "/nonexistent/ca.crt"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := NewAPIServer(test.options)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v, want one that says %q", err, test.want)
			}
		})
	}
	a, err := NewAPIServer(APIServerOptions{Config: ok, NodeName: "n"})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := a.Name(), "apiserver https://127.0.0.1:1"; got != want {
		t.Errorf("Name is %q, want %q", got, want)
	}
}
