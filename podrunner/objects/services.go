// SPDX-License-Identifier: Apache-2.0

package objects

import (
	"context"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"fairlead.dev/podrunner/apiclient"
)

// serviceCache has the Services of the namespaces of used Pods, as they were
// when a container last started there.
type serviceCache struct {
	client apiclient.Interface
	now    func() time.Time
	maxAge time.Duration

	mu    sync.Mutex
	lists map[string]*serviceList
}

type serviceList struct {
	sync.Mutex // one asks at a time
	services   []*corev1.Service
	at         time.Time
}

// list asks the API server, which answers from its cache. While that is away,
// its last answer serves.
func (c *serviceCache) list(ctx context.Context, namespace string) ([]*corev1.Service, error) {
	c.mu.Lock()
	l := c.lists[namespace]
	if l == nil {
		l = new(serviceList)
		c.lists[namespace] = l
	}
	c.mu.Unlock()
	l.Lock()
	defer l.Unlock()
	now := c.now()
	if !l.at.IsZero() && now.Sub(l.at) < c.maxAge {
		return l.services, nil
	}
	answer, err := c.client.Services(namespace).List(ctx, metav1.ListOptions{ResourceVersion: "0"})
	if err != nil {
		if !l.at.IsZero() && unreachable(err) {
			return l.services, nil
		}
		return nil, err
	}
	l.at, l.services = now, make([]*corev1.Service, 0, len(answer.Items))
	for i := range answer.Items {
		s := &answer.Items[i]
		l.services = append(l.services, &corev1.Service{ // what the environment names
			ObjectMeta: metav1.ObjectMeta{Namespace: s.Namespace, Name: s.Name},
			Spec:       corev1.ServiceSpec{Type: s.Spec.Type, ClusterIP: s.Spec.ClusterIP, ClusterIPs: s.Spec.ClusterIPs, Ports: s.Spec.Ports},
		})
	}
	return l.services, nil
}

// keep forgets the Services of other namespaces.
func (c *serviceCache) keep(namespaces map[string]bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for n := range c.lists {
		if !namespaces[n] {
			delete(c.lists, n)
		}
	}
}
