// SPDX-License-Identifier: Apache-2.0

package config

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"
	yamlv3 "sigs.k8s.io/yaml/goyaml.v3"
)

// The kinds of file that are understood.
const (
	Kind       = "FairleadConfiguration"
	APIVersion = "fairlead.dev/v1alpha1"

	kubeProxyKind       = "KubeProxyConfiguration"
	kubeProxyAPIVersion = "kubeproxy.config.k8s.io/v1alpha1"
)

// maxFileBytes is the most a ConfigMap can hold.
const maxFileBytes = 1 << 20

// Warning is a key that is set in a file and does not apply to fairlead.
type Warning struct {
	Key    string
	Advice string
}

func (w Warning) String() string { return w.Key + " (" + w.Advice + ")" }

// Load reads a file, see Parse. The error names it.
func Load(path string) (Configuration, []Warning, error) {
	f, err := os.Open(path)
	if err != nil {
		return Configuration{}, nil, fmt.Errorf("--config: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFileBytes+1))
	if err != nil {
		return Configuration{}, nil, fmt.Errorf("--config: %w", err)
	}
	c, warnings, err := Parse(data)
	if err != nil {
		return Configuration{}, nil, fmt.Errorf("--config %s: %w", path, err)
	}
	return c, warnings, nil
}

// Parse reads a FairleadConfiguration or a KubeProxyConfiguration, in YAML or
// JSON, on top of the defaults. Unknown and repeated keys are errors. What it
// returns is valid.
func Parse(data []byte) (Configuration, []Warning, error) {
	d, err := newDocument(data)
	if err != nil {
		return Configuration{}, nil, err
	}
	c, keyOf, warnings := Default(), Key, []Warning(nil)
	switch {
	case d.kind == Kind && d.apiVersion == APIVersion:
		err = d.decode(&struct {
			metav1.TypeMeta
			*Configuration
		}{Configuration: &c})
	case d.kind == kubeProxyKind && d.apiVersion == kubeProxyAPIVersion:
		keyOf = kubeProxyKeyOf
		warnings, err = d.kubeProxy(&c)
	default:
		return Configuration{}, nil, fmt.Errorf("kind %q of %q is not understood; want %s of %s, or %s of %s",
			d.kind, d.apiVersion, Kind, APIVersion, kubeProxyKind, kubeProxyAPIVersion)
	}
	if err != nil {
		return Configuration{}, nil, err
	}
	if c.Kubeconfig != "" && c.Manifests != "" {
		return Configuration{}, nil, errors.New("kubeconfig and manifests are both set; objects come from one of them, remove the other")
	}
	if err := c.Validate(); err != nil {
		var bad *InvalidError
		if errors.As(err, &bad) {
			err = errors.New(bad.message(keyOf(bad.Flag)))
		}
		return Configuration{}, nil, err
	}
	return c, warnings, nil
}

// document is one YAML document: as JSON, and as nodes that know their line.
type document struct {
	json             []byte
	root             *yamlv3.Node
	kind, apiVersion string
}

func newDocument(data []byte) (*document, error) {
	if len(data) > maxFileBytes {
		return nil, fmt.Errorf("larger than %d bytes", maxFileBytes)
	}
	dec := yamlv3.NewDecoder(bytes.NewReader(data))
	var root, second yamlv3.Node
	if err := dec.Decode(&root); errors.Is(err, io.EOF) {
		return nil, errors.New("the file is empty")
	} else if err != nil {
		return nil, oneLine(err)
	}
	if err := dec.Decode(&second); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("line %d: a second document starts here; want one", max(second.Line, 1))
	}
	j, err := yaml.YAMLToJSONStrict(data)
	if err != nil {
		return nil, oneLine(err)
	}
	d := &document{json: j, root: &root}
	var meta map[string]json.RawMessage
	if err := json.Unmarshal(j, &meta); err != nil {
		return nil, errors.New("want an object with apiVersion and kind at the top")
	}
	for key, into := range map[string]*string{"kind": &d.kind, "apiVersion": &d.apiVersion} {
		if v, ok := meta[key]; ok {
			if err := json.Unmarshal(v, into); err != nil {
				return nil, fmt.Errorf("%s: want a string", key)
			}
		}
	}
	return d, nil
}

// decode is strict: the error names each unknown or repeated key and its line.
func (d *document) decode(into any) error {
	strict, err := kjson.UnmarshalStrict(d.json, into)
	var typeErr *json.UnmarshalTypeError
	switch {
	case errors.As(err, &typeErr):
		return fmt.Errorf("%s: cannot be a %s, want %s", d.at(strings.TrimPrefix(typeErr.Field, "Configuration.")), typeErr.Value, typeErr.Type)
	case err != nil:
		return oneLine(err)
	case len(strict) == 0:
		return nil
	}
	var bad []string
	for _, e := range strict {
		var field kjson.FieldError
		if errors.As(e, &field) && strings.HasPrefix(e.Error(), "unknown field") {
			bad = append(bad, fmt.Sprintf("unknown key %s", d.at(field.FieldPath())))
			continue
		}
		bad = append(bad, e.Error())
	}
	return errors.New(strings.Join(bad, ", "))
}

// at gives "conntrack.min (line 7)", or the path alone where it is not found.
func (d *document) at(path string) string {
	n, line := d.root, 0
	if n.Kind == yamlv3.DocumentNode && len(n.Content) > 0 {
		n = n.Content[0]
	}
	for part := range strings.SplitSeq(path, ".") {
		found := false
		for i := 0; n.Kind == yamlv3.MappingNode && i+1 < len(n.Content) && !found; i += 2 {
			if n.Content[i].Value == part {
				line, n, found = n.Content[i].Line, n.Content[i+1], true
			}
		}
		if !found {
			break
		}
	}
	if line == 0 {
		return path
	}
	return fmt.Sprintf("%s (line %d)", path, line)
}

// oneLine keeps what a YAML parser says, without its line breaks.
func oneLine(err error) error {
	return errors.New(strings.Join(strings.Fields(err.Error()), " "))
}
