// SPDX-License-Identifier: Apache-2.0

package objects

import (
	"context"
	"errors"
	"maps"
	"reflect"
	"slices"
	"sync"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
)

// ErrNoTokens is why a Store without an API server has no tokens.
var ErrNoTokens = errors.New("cannot use TokenManager when kubelet is in standalone mode")

// Static is a Store of what it is told: of objects from a directory. The zero
// Static is ready for use.
type Static struct {
	mu         sync.Mutex
	configMaps map[types.NamespacedName]*corev1.ConfigMap
	secrets    map[types.NamespacedName]*corev1.Secret
	services   map[types.NamespacedName]*corev1.Service
	listeners  listeners
}

// SetConfigMap keeps a ConfigMap, which is not copied and must not change.
func (s *Static) SetConfigMap(m *corev1.ConfigMap) {
	key := types.NamespacedName{Namespace: m.Namespace, Name: m.Name}
	s.mu.Lock()
	old := s.configMaps[key]
	s.configMaps = put(s.configMaps, key, m)
	s.mu.Unlock()
	if old == nil || !reflect.DeepEqual(old.Data, m.Data) || !reflect.DeepEqual(old.BinaryData, m.BinaryData) {
		s.listeners.changed(Key{KindConfigMap, key})
	}
}

// SetSecret keeps a Secret, which is not copied and must not change. Its
// stringData is part of its data already.
func (s *Static) SetSecret(m *corev1.Secret) {
	key := types.NamespacedName{Namespace: m.Namespace, Name: m.Name}
	s.mu.Lock()
	old := s.secrets[key]
	s.secrets = put(s.secrets, key, m)
	s.mu.Unlock()
	if old == nil || !reflect.DeepEqual(old.Data, m.Data) {
		s.listeners.changed(Key{KindSecret, key})
	}
}

// SetService keeps a Service, which is not copied and must not change.
func (s *Static) SetService(m *corev1.Service) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.services = put(s.services, types.NamespacedName{Namespace: m.Namespace, Name: m.Name}, m)
}

// Delete forgets a ConfigMap or a Secret.
func (s *Static) Delete(k Key) {
	s.mu.Lock()
	_, isMap := s.configMaps[k.NamespacedName]
	_, isSecret := s.secrets[k.NamespacedName]
	switch k.Kind {
	case KindConfigMap:
		delete(s.configMaps, k.NamespacedName)
	case KindSecret:
		delete(s.secrets, k.NamespacedName)
	}
	s.mu.Unlock()
	if k.Kind == KindConfigMap && isMap || k.Kind == KindSecret && isSecret {
		s.listeners.changed(k)
	}
}

// DeleteService forgets a Service.
func (s *Static) DeleteService(key types.NamespacedName) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.services, key)
}

func put[T any](m map[types.NamespacedName]T, k types.NamespacedName, v T) map[types.NamespacedName]T {
	if m == nil {
		m = map[types.NamespacedName]T{}
	}
	m[k] = v
	return m
}

// ConfigMap implements Store.
func (s *Static) ConfigMap(_ context.Context, key types.NamespacedName) (*corev1.ConfigMap, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if m := s.configMaps[key]; m != nil {
		return m, nil
	}
	return nil, apierrors.NewNotFound(corev1.Resource("configmap"), key.Name)
}

// Secret implements Store.
func (s *Static) Secret(_ context.Context, key types.NamespacedName) (*corev1.Secret, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if m := s.secrets[key]; m != nil {
		return m, nil
	}
	return nil, apierrors.NewNotFound(corev1.Resource("secret"), key.Name)
}

// Services implements Store.
func (s *Static) Services(_ context.Context, namespace string) ([]*corev1.Service, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := slices.Collect(maps.Values(s.services))
	return slices.DeleteFunc(all, func(v *corev1.Service) bool { return v.Namespace != namespace }), nil
}

// Token implements Store: there is none without an API server.
func (s *Static) Token(context.Context, TokenRequest) (*Token, error) { return nil, ErrNoTokens }

// Use implements Store. What there is, is kept whether it is used or not.
func (s *Static) Use(*corev1.Pod) {}

// Release implements Store.
func (s *Static) Release(types.UID) {}

// OnChange implements Store.
func (s *Static) OnChange(f func(Key)) (stop func()) { return s.listeners.add(f) }

var _ Store = (*Static)(nil)
