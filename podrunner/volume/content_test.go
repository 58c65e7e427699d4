// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"pgregory.net/rapid"

	"fairlead.dev/podrunner/objects"
)

func local(name string) corev1.LocalObjectReference { return corev1.LocalObjectReference{Name: name} }

func configMapVolume(name string, c corev1.ConfigMapVolumeSource) corev1.Volume {
	return volumeOf(name, corev1.VolumeSource{ConfigMap: &c})
}

// shown are the files of a volume as a container sees them, by path, without
// what begins with two dots.
func shown(t *testing.T, dir string) map[string]string {
	t.Helper()
	got := map[string]string{}
	var walk func(string)
	walk = func(rel string) {
		entries, err := os.ReadDir(filepath.Join(dir, rel))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			path := filepath.Join(rel, e.Name())
			info, err := os.Stat(filepath.Join(dir, path))
			switch {
			case len(e.Name()) > 1 && e.Name()[:2] == "..":
			case err != nil:
				t.Errorf("%s: %v", path, err)
			case info.IsDir():
				walk(path)
			default:
				got[path] = read(t, filepath.Join(dir, path))
			}
		}
	}
	walk("")
	return got
}

// shows compares what a volume shows.
func (b *bench) shows(pod *corev1.Pod, volume string, want map[string]string) {
	b.t.Helper()
	if d := cmp.Diff(want, shown(b.t, b.dir(pod, volume))); d != "" {
		b.t.Errorf("volume %s (-want +got):\n%s", volume, d)
	}
}

func TestConfigMapsAndSecretsBecomeFiles(t *testing.T) {
	b := newBench(t)
	b.store.SetConfigMap(&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "web", Name: "conf"},
		Data: map[string]string{"a.conf": "1", "b": "", ".hidden": "h"}, BinaryData: map[string][]byte{"raw": {0, 255}}})
	b.secret("cred", map[string]string{"key": "s3cr3t"})
	pod := testPod(
		configMapVolume("all", corev1.ConfigMapVolumeSource{LocalObjectReference: local("conf")}),
		configMapVolume("some", corev1.ConfigMapVolumeSource{LocalObjectReference: local("conf"), DefaultMode: ptr.To[int32](0o400),
			Items: []corev1.KeyToPath{{Key: "a.conf", Path: "x/y/a", Mode: ptr.To[int32](0o755)}, {Key: "b", Path: "x/b"}}}),
		volumeOf("sec", corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "cred", DefaultUser: ptr.To[int64](99)}}),
		configMapVolume("gone", corev1.ConfigMapVolumeSource{LocalObjectReference: local("gone"), Optional: ptr.To(true)}),
		configMapVolume("nokey", corev1.ConfigMapVolumeSource{LocalObjectReference: local("conf"), Optional: ptr.To(true), Items: []corev1.KeyToPath{{Key: "no", Path: "no"}, {Key: "b", Path: "b"}}}),
	)
	b.setUp(pod)
	b.shows(pod, "all", map[string]string{"a.conf": "1", "b": "", ".hidden": "h", "raw": "\x00\xff"})
	b.shows(pod, "some", map[string]string{"x/y/a": "1", "x/b": ""})
	b.shows(pod, "sec", map[string]string{"key": "s3cr3t"})
	b.shows(pod, "gone", map[string]string{})
	b.shows(pod, "nokey", map[string]string{"b": ""})
	for path, want := range map[string]stat{
		b.dir(pod, "all"): {0o755, 0, 0}, b.dir(pod, "all") + "/b": {0o644, 0, 0}, b.dir(pod, "some") + "/x/y": {0o755, 0, 0},
		b.dir(pod, "some") + "/x/y/a": {0o755, 0, 0}, b.dir(pod, "some") + "/x/b": {0o400, 0, 0}, b.dir(pod, "sec") + "/key": {0o644, 99, 0},
	} {
		if got := statOf(t, path); got != want {
			t.Errorf("%s is %v, want %v", path, got, want)
		}
	}
	if !mounted(t, b.dir(pod, "sec")) || mounted(t, b.dir(pod, "all")) {
		t.Error("the secret is not in memory, or the ConfigMap is")
	}
	if link, _ := os.Readlink(filepath.Join(b.dir(pod, "some"), "x")); link != "..data/x" {
		t.Errorf("x leads to %q, want ..data/x", link)
	}
}

func TestContentBelongsToTheFSGroup(t *testing.T) {
	b := newBench(t)
	b.configMap("conf", map[string]string{"a": "1"})
	pod := testPod(configMapVolume("c", corev1.ConfigMapVolumeSource{LocalObjectReference: local("conf"), DefaultMode: ptr.To[int32](0o600), Items: []corev1.KeyToPath{{Key: "a", Path: "d/a"}}}))
	pod.Spec.SecurityContext = &corev1.PodSecurityContext{FSGroup: ptr.To[int64](1234)}
	b.setUp(pod)
	for path, want := range map[string]stat{"": {0o755 | fs.ModeSetgid, 0, 1234}, "d": {0o755 | fs.ModeSetgid, 0, 1234}, "d/a": {0o640, 0, 1234}} {
		if got := statOf(t, filepath.Join(b.dir(pod, "c"), path)); got != want {
			t.Errorf("%q is %v, want %v", path, got, want)
		}
	}
}

func TestContentThatIsNotThereSaysSoInTheKubeletsWords(t *testing.T) {
	b := newBench(t)
	b.configMap("conf", map[string]string{"a": "1"})
	b.secret("cred", nil)
	projected := func(s ...corev1.VolumeProjection) corev1.VolumeSource {
		return corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: s}}
	}
	keys := []corev1.KeyToPath{{Key: "no", Path: "no"}}
	for want, source := range map[string]corev1.VolumeSource{
		`configmap "gone" not found`:                       {ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: local("gone")}},
		`secret "gone" not found`:                          {Secret: &corev1.SecretVolumeSource{SecretName: "gone"}},
		"configmap references non-existent config key: no": {ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: local("conf"), Items: keys}},
		"references non-existent secret key: no":           {Secret: &corev1.SecretVolumeSource{SecretName: "cred", Items: keys}},
		`[configmap "gone" not found, secret "gone" not found]`: projected(corev1.VolumeProjection{ConfigMap: &corev1.ConfigMapProjection{LocalObjectReference: local("gone")}},
			corev1.VolumeProjection{Secret: &corev1.SecretProjection{LocalObjectReference: local("gone")}}),
		"failed to fetch token: cannot use TokenManager when kubelet is in standalone mode": projected(corev1.VolumeProjection{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: "t"}}),
		"ClusterTrustBundle projection is not supported":                                    projected(corev1.VolumeProjection{ClusterTrustBundle: &corev1.ClusterTrustBundleProjection{}}),
		"PodCertificate projection is not supported":                                        projected(corev1.VolumeProjection{PodCertificate: &corev1.PodCertificateProjection{}}),
		"invalid path: must not contain '..': a/../../b":                                    {ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: local("conf"), Items: []corev1.KeyToPath{{Key: "a", Path: "a/../../b"}}}},
		"invalid path: must not start with '..': ..data/b":                                  {ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: local("conf"), Items: []corev1.KeyToPath{{Key: "a", Path: "..data/b"}}}},
		"invalid path: must be relative path: /etc/x":                                       {ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: local("conf"), Items: []corev1.KeyToPath{{Key: "a", Path: "/etc/x"}}}},
	} {
		pod := testPod(volumeOf("v", source))
		err := b.SetUp(t.Context(), pod, b.facts)
		if err == nil || err.Error() != `MountVolume.SetUp failed for volume "v" : `+want {
			t.Errorf("got %v\nwant %s", err, want)
		}
	}
	pod := testPod(configMapVolume("v", corev1.ConfigMapVolumeSource{LocalObjectReference: local("gone")}))
	var e *MountError
	if err := b.SetUp(t.Context(), pod, b.facts); !errors.As(err, &e) || e.Volume != "v" || !apierrors.IsNotFound(e.Err) {
		t.Errorf("got %#v", err)
	}
	b.configMap("gone", map[string]string{"a": "2"}) // it comes
	b.setUp(pod)
	b.shows(pod, "v", map[string]string{"a": "2"})
}

func TestDownwardAPIVolumeFollowsThePod(t *testing.T) {
	b := newBench(t)
	field := func(path, field string) corev1.DownwardAPIVolumeFile {
		return corev1.DownwardAPIVolumeFile{Path: path, FieldRef: &corev1.ObjectFieldSelector{FieldPath: field}}
	}
	pod := testPod(volumeOf("d", corev1.VolumeSource{DownwardAPI: &corev1.DownwardAPIVolumeSource{Items: []corev1.DownwardAPIVolumeFile{
		field("labels", "metadata.labels"), field("who/name", "metadata.name"),
		{Path: "mem", ResourceFieldRef: &corev1.ResourceFieldSelector{ContainerName: "main", Resource: "limits.memory", Divisor: resource.MustParse("1Mi")}, Mode: ptr.To[int32](0o400)},
	}}}))
	pod.Spec.Containers[0].Resources.Limits = corev1.ResourceList{"memory": resource.MustParse("64Mi")}
	b.setUp(pod)
	b.shows(pod, "d", map[string]string{"labels": `app="x"`, "who/name": "front", "mem": "64"})
	if got := statOf(t, filepath.Join(b.dir(pod, "d"), "mem")).Mode; got != 0o400 {
		t.Errorf("mem is %v", got)
	}
	pod.Labels = map[string]string{"app": "y", "b": "c"}
	pod.Spec.Containers[0].Resources.Limits = corev1.ResourceList{"memory": resource.MustParse("65Mi")}
	if err := b.Refresh(t.Context(), pod, b.facts); err != nil {
		t.Fatal(err)
	}
	b.shows(pod, "d", map[string]string{"labels": "app=\"y\"\nb=\"c\"", "who/name": "front", "mem": "65"})
}

// tokens is a Store whose tokens the test gives.
type tokens struct {
	*objects.Static
	asked []objects.TokenRequest
	value string
	err   error
}

func (s *tokens) Token(_ context.Context, r objects.TokenRequest) (*objects.Token, error) {
	s.asked = append(s.asked, r)
	return &objects.Token{Value: s.value}, s.err
}

func TestProjectedVolumeJoinsItsSourcesAndRenewsTheToken(t *testing.T) {
	b := newBench(t)
	store := &tokens{Static: b.store, value: "jwt-1"}
	b.Manager.store = store
	b.configMap("kube-root-ca.crt", map[string]string{"ca.crt": "CA"})
	b.secret("cred", map[string]string{"key": "s"})
	pod := testPod(volumeOf("kube-api-access", corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{
		{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: "token", ExpirationSeconds: ptr.To[int64](3607), Audience: "vault"}},
		{ConfigMap: &corev1.ConfigMapProjection{LocalObjectReference: local("kube-root-ca.crt"), Items: []corev1.KeyToPath{{Key: "ca.crt", Path: "ca.crt"}}}},
		{DownwardAPI: &corev1.DownwardAPIProjection{Items: []corev1.DownwardAPIVolumeFile{{Path: "namespace", FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.namespace"}}}}},
		{Secret: &corev1.SecretProjection{LocalObjectReference: local("cred")}},
		{Secret: &corev1.SecretProjection{LocalObjectReference: local("gone"), Optional: ptr.To(true)}},
	}}}))
	pod.Spec.ServiceAccountName = "sa"
	b.setUp(pod)
	b.shows(pod, "kube-api-access", map[string]string{"token": "jwt-1", "ca.crt": "CA", "namespace": "web", "key": "s"})
	want := objects.TokenRequest{Namespace: "web", ServiceAccount: "sa", PodName: "front", PodUID: "0b1c-2d", Audience: "vault", ExpirationSeconds: 3607}
	if len(store.asked) != 1 || store.asked[0] != want {
		t.Errorf("asked for %v, want %v", store.asked, want)
	}
	dir := b.dir(pod, "kube-api-access")
	if got := statOf(t, filepath.Join(dir, "token")); got != (stat{0o644, 0, 0}) || !mounted(t, dir) {
		t.Errorf("the token is %v, in memory: %v", got, mounted(t, dir))
	}
	store.value = "jwt-2"
	if err := b.Refresh(t.Context(), pod, b.facts); err != nil {
		t.Fatal(err)
	}
	b.shows(pod, "kube-api-access", map[string]string{"token": "jwt-2", "ca.crt": "CA", "namespace": "web", "key": "s"})
	store.err = errors.New("API server away") // what is there stays
	if err := b.Refresh(t.Context(), pod, b.facts); err == nil {
		t.Error("a failed renewal is no error")
	}
	b.shows(pod, "kube-api-access", map[string]string{"token": "jwt-2", "ca.crt": "CA", "namespace": "web", "key": "s"})
}

func TestTokenIsForWhoThePodRunsAs(t *testing.T) {
	user := func(u int64) *corev1.SecurityContext { return &corev1.SecurityContext{RunAsUser: &u} }
	for name, c := range map[string]struct {
		change func(*corev1.Pod)
		want   stat
	}{
		"anyone":   {func(p *corev1.Pod) {}, stat{0o644, 0, 0}},
		"one user": {func(p *corev1.Pod) { p.Spec.SecurityContext = &corev1.PodSecurityContext{RunAsUser: ptr.To[int64](7)} }, stat{0o600, 7, 0}},
		"the same user": {func(p *corev1.Pod) {
			p.Spec.Containers[0].SecurityContext = user(7)
			p.Spec.InitContainers = []corev1.Container{{Name: "i", SecurityContext: user(7)}}
		}, stat{0o600, 7, 0}},
		"different users": {func(p *corev1.Pod) {
			p.Spec.Containers[0].SecurityContext = user(7)
			p.Spec.InitContainers = []corev1.Container{{Name: "i", SecurityContext: user(8)}}
		}, stat{0o644, 0, 0}},
		"one of no user": {func(p *corev1.Pod) {
			p.Spec.Containers[0].SecurityContext = user(7)
			p.Spec.InitContainers = []corev1.Container{{Name: "i"}}
		}, stat{0o644, 0, 0}},
		"a group": {func(p *corev1.Pod) { p.Spec.SecurityContext = &corev1.PodSecurityContext{FSGroup: ptr.To[int64](9)} }, stat{0o640, 0, 9}},
		"a user, a group": {func(p *corev1.Pod) {
			p.Spec.SecurityContext = &corev1.PodSecurityContext{FSGroup: ptr.To[int64](9), RunAsUser: ptr.To[int64](7)}
		}, stat{0o640, 7, 9}},
		"whom it is given": {func(p *corev1.Pod) {
			p.Spec.Volumes[0].Projected.Sources[0].ServiceAccountToken.User = ptr.To[int64](5)
		}, stat{0o600, 5, 0}},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			b.Manager.store = &tokens{Static: b.store, value: "jwt"}
			pod := testPod(volumeOf("t", corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: "token"}}}}}))
			c.change(pod)
			b.setUp(pod)
			if got := statOf(t, filepath.Join(b.dir(pod, "t"), "token")); got != c.want {
				t.Errorf("got %v, want %v", got, c.want)
			}
		})
	}
}

func TestRefreshWritesOnlyWhatChangedAndKeepsTheLastOfWhatIsGone(t *testing.T) {
	b := newBench(t)
	b.configMap("conf", map[string]string{"a": "1", "b": "1"})
	pod := testPod(configMapVolume("c", corev1.ConfigMapVolumeSource{LocalObjectReference: local("conf")}))
	b.setUp(pod)
	dir := b.dir(pod, "c")
	data := func() string {
		link, err := os.Readlink(filepath.Join(dir, "..data"))
		if err != nil {
			t.Fatal(err)
		}
		return link
	}
	refresh := func() {
		t.Helper()
		if err := b.Refresh(t.Context(), pod, b.facts); err != nil {
			t.Fatal(err)
		}
	}
	first := data()
	refresh()
	if err := b.restarted().SetUp(t.Context(), pod, b.facts); err != nil || data() != first {
		t.Errorf("written again though nothing changed: %v", err)
	}
	b.configMap("conf", map[string]string{"a": "2", "c": "2"})
	refresh()
	b.shows(pod, "c", map[string]string{"a": "2", "c": "2"})
	if data() == first {
		t.Error("the files were changed in place")
	}
	b.store.Delete(objects.Key{Kind: objects.KindConfigMap, NamespacedName: namespaced("conf")})
	if err := b.Refresh(t.Context(), pod, b.facts); err == nil {
		t.Error("a ConfigMap that is gone is no error")
	}
	b.shows(pod, "c", map[string]string{"a": "2", "c": "2"})
	// What a container or a person broke is repaired.
	for _, broken := range []func() error{
		func() error { return os.WriteFile(filepath.Join(dir, data(), "a"), []byte("x"), 0o644) },
		func() error { return os.Chmod(filepath.Join(dir, data(), "a"), 0o600) },
		func() error { return os.WriteFile(filepath.Join(dir, data(), "extra"), nil, 0o644) },
		func() error { return os.Remove(filepath.Join(dir, "a")) },
		func() error { return os.RemoveAll(filepath.Join(dir, data())) },
		func() error { return os.Remove(filepath.Join(dir, "..data")) },
		func() error { return os.Symlink("nowhere", filepath.Join(dir, "..data_tmp")) },
	} {
		b.configMap("conf", map[string]string{"a": "3"})
		refresh()
		if err := broken(); err != nil {
			t.Fatal(err)
		}
		refresh()
		b.shows(pod, "c", map[string]string{"a": "3"})
		if got := statOf(t, filepath.Join(dir, "a")).Mode; got != 0o644 {
			t.Errorf("a is %v", got)
		}
	}
	// Old data goes when no reader can be in it any more.
	past := time.Now().Add(-time.Minute)
	setTimes(t, filepath.Join(dir, "..data"), past)
	refresh()
	entries, _ := os.ReadDir(dir)
	if len(entries) != 3 { // ..data, its directory, a
		t.Errorf("left: %v", entries)
	}
}

// What was shown before leaves nothing behind: also the last key in the order of
// names, and all that an optional object held.
func TestWhatIsShownFollowsFromTheObjectsAlone(t *testing.T) {
	b := newBench(t)
	optional := corev1.ConfigMapVolumeSource{LocalObjectReference: local("conf"), Optional: ptr.To(true)}
	pod := testPod(configMapVolume("c", optional),
		volumeOf("p", corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{
			{ConfigMap: &corev1.ConfigMapProjection{LocalObjectReference: local("conf"), Optional: ptr.To(true)}}}}}))
	b.setUp(pod)
	contents := rapid.MapOf(rapid.SampledFrom([]string{"a", "b", "c", "d"}), rapid.SampledFrom([]string{"", "1", "22"}))
	rapid.Check(t, func(t *rapid.T) {
		want := contents.Draw(t, "data")
		if len(want) == 0 && rapid.Bool().Draw(t, "gone") {
			b.store.Delete(objects.Key{Kind: objects.KindConfigMap, NamespacedName: namespaced("conf")})
		} else {
			b.configMap("conf", want)
		}
		if err := b.Refresh(b.t.Context(), pod, b.facts); err != nil {
			t.Fatal(err)
		}
		for _, volume := range []string{"c", "p"} {
			if d := cmp.Diff(want, shown(b.t, b.dir(pod, volume)), cmpopts.EquateEmpty()); d != "" {
				t.Errorf("volume %s (-want +got):\n%s", volume, d)
			}
		}
	})
}

func TestReadersNeverSeeHalfAnUpdate(t *testing.T) {
	b := newBench(t)
	value := func(i int) map[string]string {
		v := time.Duration(i).String()
		return map[string]string{"a": v, "b": v, "sub": v}
	}
	b.configMap("conf", value(0))
	pod := testPod(configMapVolume("c", corev1.ConfigMapVolumeSource{LocalObjectReference: local("conf"), Items: []corev1.KeyToPath{
		{Key: "a", Path: "a"}, {Key: "b", Path: "b"}, {Key: "sub", Path: "d/sub"}}}))
	b.setUp(pod)
	dir := b.dir(pod, "c")
	var stop atomic.Bool
	var reads atomic.Int64
	type result struct {
		changes int
		err     error
	}
	done := make(chan result)
	go func() {
		var r result
		last := ""
		for !stop.Load() && r.err == nil {
			// A reader that opens ..data once has one state of all files.
			d, err := os.Readlink(filepath.Join(dir, "..data"))
			if err != nil {
				r.err = err
				break
			}
			var got []string
			for _, f := range []string{"a", "b", "d/sub"} {
				data, err := os.ReadFile(filepath.Join(dir, d, f))
				if err != nil {
					r.err = err
				}
				got = append(got, string(data))
				// And one that opens a file always finds it, whole.
				if data, err = os.ReadFile(filepath.Join(dir, f)); err != nil || len(data) == 0 {
					r.err = errors.Join(err, errors.New("a file by its own name is not there or empty"))
				}
			}
			if r.err == nil && (got[0] != got[1] || got[1] != got[2]) {
				r.err = errors.New("mixed: " + got[0] + " " + got[1] + " " + got[2])
			}
			if got[0] != last {
				r.changes++
			}
			last = got[0]
			reads.Add(1)
		}
		stop.Store(true)
		done <- r
	}()
	for i := 1; i <= 150; i++ {
		b.configMap("conf", value(i))
		if err := b.Refresh(t.Context(), pod, b.facts); err != nil {
			t.Error(err)
		}
		// However slow the reader is: it is at most two updates behind.
		for n := reads.Load(); reads.Load() == n && !stop.Load(); {
			time.Sleep(100 * time.Microsecond)
		}
	}
	stop.Store(true)
	r := <-done
	if r.err != nil || r.changes < 50 {
		t.Errorf("after %d reads, %d changes seen: %v", reads.Load(), r.changes, r.err)
	}
}

func TestMountPointsInReadOnlyVolumesAreMade(t *testing.T) {
	b := newBench(t)
	b.configMap("conf", map[string]string{"a": "1"})
	pod := testPod(configMapVolume("c", corev1.ConfigMapVolumeSource{LocalObjectReference: local("conf")}), emptyDir("e", corev1.EmptyDirVolumeSource{}))
	pod.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{
		{Name: "c", MountPath: "/etc/conf"}, {Name: "e", MountPath: "/etc/conf/cache/x"}, {Name: "e", MountPath: "/etc/conf/a"}, {Name: "e", MountPath: "/etc/config"}}
	b.setUp(pod)
	b.setUp(pod)
	dir := b.dir(pod, "c")
	if info, err := os.Stat(filepath.Join(dir, "cache/x")); err != nil || !info.IsDir() {
		t.Errorf("cache/x: %v", err)
	}
	b.shows(pod, "c", map[string]string{"a": "1"})
}
