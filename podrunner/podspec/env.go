// SPDX-License-Identifier: Apache-2.0

package podspec

import (
	"context"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"

	"fairlead.dev/podrunner/objects"
)

// EnvVar is a variable of a container's environment.
type EnvVar struct{ Name, Value string }

// EnvFile reads a file of one of the Pod's volumes, for fileKeyRef.
type EnvFile func(volume, path string) ([]byte, error)

// Env returns a container's environment, each name once, sorted by name: the
// Services', overridden by envFrom, overridden by env. $(NAME) in a value
// means what was set before it. Errors are *Refused.
func Env(ctx context.Context, pod *corev1.Pod, c *corev1.Container, f *Facts, store objects.Store, file EnvFile) ([]EnvVar, error) {
	b := envBuilder{ctx: ctx, pod: pod, container: c, facts: f, store: store, file: file, vars: map[string]string{}}
	env, err := b.build()
	return env, refuse(ReasonContainerConfig, err)
}

type envBuilder struct {
	ctx       context.Context
	pod       *corev1.Pod
	container *corev1.Container
	facts     *Facts
	store     objects.Store
	file      EnvFile
	vars      map[string]string
}

func (b *envBuilder) build() ([]EnvVar, error) {
	services, err := serviceEnv(b.ctx, b.pod, b.store)
	if err != nil {
		return nil, fmt.Errorf("list services for environment variables: %w", err)
	}
	for i := range b.container.EnvFrom {
		if err := b.from(&b.container.EnvFrom[i]); err != nil {
			return nil, err
		}
	}
	for i := range b.container.Env {
		v := &b.container.Env[i]
		value, ok := Expand(v.Value, lookupIn(b.vars, services)), true
		if v.Value == "" && v.ValueFrom != nil {
			if value, ok, err = b.valueFrom(v.ValueFrom); err != nil {
				return nil, err
			}
		}
		if ok {
			b.vars[v.Name] = value
		}
	}
	for name, value := range services {
		if _, ok := b.vars[name]; !ok {
			b.vars[name] = value
		}
	}
	env := make([]EnvVar, 0, len(b.vars))
	for name, value := range b.vars {
		env = append(env, EnvVar{name, value})
	}
	slices.SortFunc(env, func(a, b EnvVar) int { return strings.Compare(a.Name, b.Name) })
	return env, nil
}

// from adds all keys of a ConfigMap or a Secret.
func (b *envBuilder) from(e *corev1.EnvFromSource) error {
	switch {
	case e.ConfigMapRef != nil:
		m, err := b.configMap(e.ConfigMapRef.Name)
		if err != nil {
			return unlessOptional(err, e.ConfigMapRef.Optional)
		}
		for k, v := range m.Data {
			b.vars[e.Prefix+k] = v
		}
	case e.SecretRef != nil:
		s, err := b.secret(e.SecretRef.Name)
		if err != nil {
			return unlessOptional(err, e.SecretRef.Optional)
		}
		for k, v := range s.Data {
			b.vars[e.Prefix+k] = string(v)
		}
	}
	return nil
}

// valueFrom resolves one source; ok is false where an optional one is not
// there and the variable is left out.
func (b *envBuilder) valueFrom(v *corev1.EnvVarSource) (value string, ok bool, err error) {
	switch {
	case v.FieldRef != nil:
		value, err = FieldValue(b.pod, v.FieldRef.FieldPath, b.facts)
		return value, err == nil, err
	case v.ResourceFieldRef != nil:
		value, err = ResourceValue(b.pod, b.container, v.ResourceFieldRef, b.facts)
		return value, err == nil, err
	case v.ConfigMapKeyRef != nil:
		r := v.ConfigMapKeyRef
		m, err := b.configMap(r.Name)
		if err != nil {
			return "", false, unlessOptional(err, r.Optional)
		}
		value, ok = m.Data[r.Key]
		return value, ok, missingKey(ok, r.Optional, r.Key, "ConfigMap", b.pod.Namespace, r.Name)
	case v.SecretKeyRef != nil:
		r := v.SecretKeyRef
		s, err := b.secret(r.Name)
		if err != nil {
			return "", false, unlessOptional(err, r.Optional)
		}
		raw, ok := s.Data[r.Key]
		return string(raw), ok, missingKey(ok, r.Optional, r.Key, "Secret", b.pod.Namespace, r.Name)
	case v.FileKeyRef != nil:
		return b.fileKey(v.FileKeyRef)
	}
	return "", true, nil
}

func (b *envBuilder) fileKey(r *corev1.FileKeySelector) (string, bool, error) {
	if b.file == nil {
		return "", false, fmt.Errorf("cannot find the volume %q referenced by FileKeyRef", r.VolumeName)
	}
	raw, err := b.file(r.VolumeName, r.Path)
	if err != nil {
		return "", false, fmt.Errorf("couldn't parse env file: %w", err)
	}
	// What is in the file is not in the message: it may be secret.
	value, found, err := envFileValue(raw, r.Key)
	switch {
	case err != nil:
		return "", false, fmt.Errorf("couldn't parse env file: %w", err)
	case found && value != "":
		return value, true, nil
	case r.Optional != nil && *r.Optional:
		return "", false, nil
	}
	return "", false, fmt.Errorf("environment variable key %q not found in file %q", r.Key, r.Path)
}

func (b *envBuilder) configMap(name string) (*corev1.ConfigMap, error) {
	return b.store.ConfigMap(b.ctx, types.NamespacedName{Namespace: b.pod.Namespace, Name: name})
}

func (b *envBuilder) secret(name string) (*corev1.Secret, error) {
	return b.store.Secret(b.ctx, types.NamespacedName{Namespace: b.pod.Namespace, Name: name})
}

func unlessOptional(err error, optional *bool) error {
	if optional != nil && *optional && apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

func missingKey(found bool, optional *bool, key, kind, namespace, name string) error {
	if found || optional != nil && *optional {
		return nil
	}
	return fmt.Errorf("couldn't find key %v in %s %v/%v", key, kind, namespace, name)
}
