// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	utilerrors "k8s.io/apimachinery/pkg/util/errors"

	"fairlead.dev/podrunner/objects"
	"fairlead.dev/podrunner/podspec"
)

// hasContent says whether a volume is written from objects.
func hasContent(v *corev1.Volume) bool {
	return v.ConfigMap != nil || v.Secret != nil || v.DownwardAPI != nil || v.Projected != nil
}

// fill writes a volume's files. All that is secret is in memory only.
func (m *Manager) fill(ctx context.Context, pod *corev1.Pod, v *corev1.Volume, dir string, f *podspec.Facts) error {
	c := content{ctx: ctx, pod: pod, facts: f, store: m.store, files: files{}}
	if err := c.volume(v); err != nil {
		return err
	}
	if _, err := makeDir(dir); err != nil {
		return err
	}
	if v.ConfigMap == nil {
		is, err := isMountPoint(dir)
		if err != nil {
			return err
		}
		if !is {
			if err := mountTmpfs(dir, 0, unix.MS_NOSUID|unix.MS_NODEV); err != nil {
				return err
			}
		}
	}
	if err := c.files.write(dir, fsGroup(pod)); err != nil {
		return err
	}
	return makeNestedMountPoints(pod, v.Name, dir)
}

// content collects the files of one volume.
type content struct {
	ctx   context.Context
	pod   *corev1.Pod
	facts *podspec.Facts
	store objects.Store
	files files
	mode  int32  // of files that say none
	user  *int64 // likewise; nil is root
}

func (c *content) volume(v *corev1.Volume) error {
	c.mode = 0o644
	set := func(mode *int32, user *int64) {
		if mode != nil {
			c.mode = *mode
		}
		c.user = user
	}
	switch {
	case v.ConfigMap != nil:
		set(v.ConfigMap.DefaultMode, v.ConfigMap.DefaultUser)
		return c.configMap(v.ConfigMap.Name, v.ConfigMap.Items, v.ConfigMap.Optional)
	case v.Secret != nil:
		set(v.Secret.DefaultMode, v.Secret.DefaultUser)
		return c.secret(v.Secret.SecretName, v.Secret.Items, v.Secret.Optional)
	case v.DownwardAPI != nil:
		set(v.DownwardAPI.DefaultMode, v.DownwardAPI.DefaultUser)
		return c.downward(v.DownwardAPI.Items)
	}
	set(v.Projected.DefaultMode, v.Projected.DefaultUser)
	var errs []error
	for i := range v.Projected.Sources {
		errs = append(errs, c.projection(&v.Projected.Sources[i]))
	}
	return utilerrors.NewAggregate(errs)
}

func (c *content) projection(p *corev1.VolumeProjection) error {
	switch {
	case p.ConfigMap != nil:
		return c.configMap(p.ConfigMap.Name, p.ConfigMap.Items, p.ConfigMap.Optional)
	case p.Secret != nil:
		return c.secret(p.Secret.Name, p.Secret.Items, p.Secret.Optional)
	case p.DownwardAPI != nil:
		return c.downward(p.DownwardAPI.Items)
	case p.ServiceAccountToken != nil:
		return c.token(p.ServiceAccountToken)
	case p.ClusterTrustBundle != nil:
		return errors.New("ClusterTrustBundle projection is not supported")
	case p.PodCertificate != nil:
		return errors.New("PodCertificate projection is not supported")
	}
	return nil
}

func (c *content) configMap(name string, items []corev1.KeyToPath, optional *bool) error {
	m, err := c.store.ConfigMap(c.ctx, types.NamespacedName{Namespace: c.pod.Namespace, Name: name})
	if err != nil {
		return unlessOptional(err, optional)
	}
	data := make(map[string][]byte, len(m.Data)+len(m.BinaryData))
	for k, v := range m.Data {
		data[k] = []byte(v)
	}
	for k, v := range m.BinaryData {
		data[k] = v
	}
	return c.keys(data, items, optional, "configmap references non-existent config key: ")
}

func (c *content) secret(name string, items []corev1.KeyToPath, optional *bool) error {
	s, err := c.store.Secret(c.ctx, types.NamespacedName{Namespace: c.pod.Namespace, Name: name})
	if err != nil {
		return unlessOptional(err, optional)
	}
	return c.keys(s.Data, items, optional, "references non-existent secret key: ")
}

// keys adds all keys as files, or those that items name at their paths.
func (c *content) keys(data map[string][]byte, items []corev1.KeyToPath, optional *bool, missing string) error {
	if len(items) == 0 {
		for k, v := range data {
			c.add(k, v, nil, nil)
		}
		return nil
	}
	for _, i := range items {
		v, ok := data[i.Key]
		switch {
		case ok:
			c.add(i.Path, v, i.Mode, i.User)
		case optional == nil || !*optional:
			return errors.New(missing + i.Key)
		}
	}
	return nil
}

func (c *content) downward(items []corev1.DownwardAPIVolumeFile) error {
	var errs []error
	for _, i := range items {
		var value string
		var err error
		switch {
		case i.FieldRef != nil:
			value, err = podspec.FieldValue(c.pod, i.FieldRef.FieldPath, c.facts)
		case i.ResourceFieldRef != nil:
			value, err = podspec.ResourceValue(c.pod, nil, i.ResourceFieldRef, c.facts)
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		c.add(i.Path, []byte(value), i.Mode, i.User)
	}
	return utilerrors.NewAggregate(errs)
}

func (c *content) token(p *corev1.ServiceAccountTokenProjection) error {
	r := objects.TokenRequest{
		Namespace: c.pod.Namespace, ServiceAccount: c.pod.Spec.ServiceAccountName,
		PodName: c.pod.Name, PodUID: c.pod.UID, Audience: p.Audience,
	}
	if r.ServiceAccount == "" {
		r.ServiceAccount = "default"
	}
	if p.ExpirationSeconds != nil {
		r.ExpirationSeconds = *p.ExpirationSeconds
	}
	t, err := c.store.Token(c.ctx, r)
	if err != nil {
		return fmt.Errorf("failed to fetch token: %w", err)
	}
	// The token is for who the Pod runs as: the user of all its containers,
	// its group, or, where neither is said, everyone in it.
	user, mode := p.User, c.mode
	if user == nil {
		user = c.user
	}
	if user == nil {
		user = fsUser(c.pod)
	}
	if user != nil || fsGroup(c.pod) >= 0 {
		mode = 0o600
	}
	c.add(p.Path, []byte(t.Value), &mode, user)
	return nil
}

func (c *content) add(path string, data []byte, mode *int32, user *int64) {
	f := file{data: data, mode: c.mode}
	if mode != nil {
		f.mode = *mode
	}
	if user == nil {
		user = c.user
	}
	if user != nil {
		f.user = int(*user)
	}
	c.files[path] = f
}

func unlessOptional(err error, optional *bool) error {
	if optional != nil && *optional && apierrors.IsNotFound(err) {
		return nil
	}
	return err
}
