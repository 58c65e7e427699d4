// SPDX-License-Identifier: Apache-2.0

package objects

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// showing is a Pod with a volume of each Secret.
func showing(uid types.UID, secrets ...string) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: string(uid), UID: uid}}
	for _, s := range secrets {
		p.Spec.Volumes = append(p.Spec.Volumes, corev1.Volume{Name: s, VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: s}}})
	}
	return p
}

// starting is a Pod with each Secret in its environment.
func starting(uid types.UID, secrets ...string) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: string(uid), UID: uid}, Spec: corev1.PodSpec{Containers: make([]corev1.Container, 1)}}
	for _, s := range secrets {
		p.Spec.Containers[0].EnvFrom = append(p.Spec.Containers[0].EnvFrom, corev1.EnvFromSource{SecretRef: &corev1.SecretEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: s}}})
	}
	return p
}

func secretKey(name string) types.NamespacedName {
	return types.NamespacedName{Namespace: "ns", Name: name}
}

// value is what the Store has in a Secret, or its error.
func value(t *testing.T, a *API, name string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	s, err := a.Secret(ctx, secretKey(name))
	if err != nil {
		return "error: " + err.Error()
	}
	if s.ManagedFields != nil || len(s.Annotations) > 0 {
		t.Errorf("kept what nobody reads: %v", s.ObjectMeta)
	}
	return string(s.Data["k"])
}

// soon waits until what becomes want.
func soon[T comparable](t *testing.T, what string, want T, got func() T) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for got() != want {
		if time.Now().After(deadline) {
			t.Fatalf("%s is %v, want %v", what, got(), want)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

func TestShownObjectsAreWatchedByNameWhileAPodUsesThem(t *testing.T) {
	f, a := newFakeAPI(t)
	f.set("a", "1", false)
	changes := make(chan Key, 10)
	a.OnChange(func(k Key) { changes <- k })
	next := func() Key {
		t.Helper()
		select {
		case k := <-changes:
			return k
		case <-time.After(20 * time.Second):
			t.Fatal("no change was told")
			return Key{}
		}
	}
	a.Use(showing("p", "a", "b"))
	a.Use(showing("q", "a"))
	if got := value(t, a, "a"); got != "1" {
		t.Errorf("a is %q", got)
	}
	if got := value(t, a, "b"); got != `error: secret "b" not found` {
		t.Errorf("b is %q", got)
	}
	soon(t, "watches", 2, f.watching)
	f.set("a", "2", false)
	if k := next(); k != key(KindSecret, "a") || value(t, a, "a") != "2" {
		t.Errorf("%v changed, a is %q", k, value(t, a, "a"))
	}
	f.set("b", "1", false)
	if k := next(); k != key(KindSecret, "b") || value(t, a, "b") != "1" {
		t.Errorf("%v came, b is %q", k, value(t, a, "b"))
	}
	f.delete("a")
	if k := next(); k != key(KindSecret, "a") || value(t, a, "a") != `error: secret "a" not found` {
		t.Errorf("%v went, a is %q", k, value(t, a, "a"))
	}
	if n := f.count("get ns/secrets/a") + f.count("get ns/secrets/b"); n != 0 {
		t.Errorf("watched objects were asked for %d times", n)
	}
	if n := f.count("list ns/secrets a"); n != 1 {
		t.Errorf("two Pods use a: listed %d times, want once", n)
	}
	a.Release("p")
	soon(t, "watches after one Pod went", 1, f.watching)
	if got := value(t, a, "a"); got != `error: secret "a" not found` {
		t.Errorf("a is %q while q uses it", got)
	}
	a.Use(showing("q")) // its volumes are fewer now
	soon(t, "watches after the other needs none", 0, f.watching)
	if len(a.entries) != 0 {
		t.Errorf("kept: %v", a.entries)
	}
	if len(changes) != 0 {
		t.Errorf("told of more: %v", <-changes)
	}
}

func TestObjectsOfStartingContainersAreAskedForThen(t *testing.T) {
	f, a := newFakeAPI(t)
	f.set("a", "1", false)
	a.Use(starting("p", "a"))
	if got := value(t, a, "a"); got != "1" || f.watching() != 0 {
		t.Errorf("a is %q, %d watches", got, f.watching())
	}
	f.set("a", "2", false)
	if got := value(t, a, "a"); got != "2" {
		t.Errorf("a is %q at the next start", got)
	}
	f.setFail(http.StatusServiceUnavailable) // the API server is away: the last serves
	if got := value(t, a, "a"); got != "2" {
		t.Errorf("a is %q without an API server", got)
	}
	f.setFail(http.StatusForbidden) // it says no: then no
	if got := value(t, a, "a"); !strings.HasPrefix(got, "error: ") {
		t.Errorf("a is %q though it is forbidden", got)
	}
	f.setFail(0)
	f.delete("a")
	if got := value(t, a, "a"); got != `error: secret "a" not found` {
		t.Errorf("a is %q after its deletion", got)
	}
	f.setFail(http.StatusServiceUnavailable)
	if got := value(t, a, "a"); !strings.HasPrefix(got, "error: ") {
		t.Errorf("a is %q: the deleted one came back", got)
	}
	f.setFail(0)
	f.set("a", "3", false)
	a.Use(showing("q", "a")) // another Pod's volume shows it: now it is watched
	soon(t, "a", "3", func() string { return value(t, a, "a") })
	soon(t, "watches", 1, f.watching)
}

func TestManyContainersThatStartAtOnceAskOnce(t *testing.T) {
	f, a := newFakeAPI(t)
	a.o.MaxAge = time.Hour
	f.set("a", "1", false)
	done := make(chan string)
	for i := range 20 {
		a.Use(starting(types.UID(fmt.Sprint(i)), "a"))
	}
	for range 20 {
		go func() { done <- value(t, a, "a") }()
	}
	for range 20 {
		if got := <-done; got != "1" {
			t.Errorf("a is %q", got)
		}
	}
	if n := f.count("get ns/secrets/a"); n != 1 {
		t.Errorf("asked %d times", n)
	}
}

func TestUnusedObjectsAreAnsweredAndNotKept(t *testing.T) {
	f, a := newFakeAPI(t)
	f.set("a", "1", false)
	if got := value(t, a, "a"); got != "1" || len(a.entries) != 0 {
		t.Errorf("a is %q, kept %v", got, a.entries)
	}
	if got := value(t, a, "b"); got != `error: secret "b" not found` {
		t.Errorf("b is %q", got)
	}
}

func TestImmutableObjectsAreNotWatched(t *testing.T) {
	f, a := newFakeAPI(t)
	f.set("a", "1", true)
	f.set("b", "1", false)
	a.Use(showing("p", "a", "b"))
	if got := value(t, a, "a"); got != "1" {
		t.Errorf("a is %q", got)
	}
	soon(t, "watches", 1, f.watching)
	f.set("b", "2", true) // it becomes immutable
	soon(t, "b", "2", func() string { return value(t, a, "b") })
	soon(t, "watches of immutable objects", 0, f.watching)
	if got := value(t, a, "a"); got != "1" || f.count("watch ns/secrets a") != 0 {
		t.Errorf("a is %q, watched %d times", got, f.count("watch ns/secrets a"))
	}
}

func TestTheLastStateHoldsWhileTheAPIServerIsAway(t *testing.T) {
	f, a := newFakeAPI(t)
	f.set("a", "1", false)
	a.Use(showing("p", "a", "b"))
	if value(t, a, "a") != "1" || value(t, a, "b") != `error: secret "b" not found` {
		t.Fatal("not as it was set")
	}
	soon(t, "watches", 2, f.watching)
	f.setFail(http.StatusInternalServerError)
	lists := f.count("list ns/secrets a")
	soon(t, "an attempt to list again", true, func() bool { return f.count("list ns/secrets a") > lists+2 })
	if a1, b1 := value(t, a, "a"), value(t, a, "b"); a1 != "1" || b1 != `error: secret "b" not found` {
		t.Errorf("a is %q, b is %q without an API server", a1, b1)
	}
	a.Use(showing("q", "c")) // what was never known is an error, not an endless wait
	if got := value(t, a, "c"); !strings.HasPrefix(got, "error: get: ") {
		t.Errorf("c is %q", got)
	}
	f.set("a", "2", false)
	f.set("c", "1", false)
	f.setFail(0)
	soon(t, "a after the API server is back", "2", func() string { return value(t, a, "a") })
	soon(t, "c after the API server is back", "1", func() string { return value(t, a, "c") })
}

func TestWatchesThatEndAreBegunAgain(t *testing.T) {
	f, a := newFakeAPI(t)
	f.set("a", "1", false)
	a.Use(showing("p", "a"))
	soon(t, "watches", 1, f.watching)
	for i, end := range []func(){
		f.endWatches,
		func() { f.sendError(http.StatusGone, metav1.StatusReasonExpired) },
		func() { f.sendError(http.StatusInternalServerError, metav1.StatusReasonInternalError) },
	} {
		lists := f.count("list ns/secrets a")
		end()
		soon(t, "lists", true, func() bool { return f.count("list ns/secrets a") > lists })
		soon(t, "watches", 1, f.watching)
		want := fmt.Sprint("after ", i)
		f.set("a", want, false)
		soon(t, "a", want, func() string { return value(t, a, "a") })
	}
}

// A proxy that ends each watch at once must not be asked without pause.
func TestWatchesThatEndAtOnceAreSpaced(t *testing.T) {
	f, a := newFakeAPI(t)
	f.set("a", "1", false)
	a.o.BackoffMin, a.o.BackoffMax = 50*time.Millisecond, 200*time.Millisecond
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		for {
			select {
			case <-stop:
				return
			default:
				f.endWatches()
				time.Sleep(time.Millisecond)
			}
		}
	}()
	began := time.Now()
	a.Use(showing("p", "a"))
	soon(t, "eight watches", true, func() bool { return f.count("watch ns/secrets a") >= 8 })
	// The pauses are 575 ms at least, or 50 ms each where the server itself takes
	// as long for a list and a watch.
	if took := time.Since(began); took < 300*time.Millisecond {
		t.Errorf("watched 8 times in %v", took)
	}
	if got := value(t, a, "a"); got != "1" {
		t.Errorf("a is %q", got)
	}
}

func TestAGetEndsWithItsContextAndCloseEndsAll(t *testing.T) {
	before := runtime.NumGoroutine()
	f, a := newFakeAPI(t)
	f.setFail(http.StatusTooManyRequests) // never an answer within the test
	a.Use(showing("p", "a"))
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := a.Secret(ctx, secretKey("a")); err == nil || !errors.Is(err, context.DeadlineExceeded) && !apierrors.IsTooManyRequests(err) {
		t.Errorf("got %v", err)
	}
	f.setFail(0)
	for i := range 30 {
		a.Use(showing(types.UID(fmt.Sprint("x", i)), fmt.Sprint("s", i)))
	}
	a.Close()
	a.Use(showing("late", "z"))
	if len(a.entries) != 0 {
		t.Errorf("after Close: %v", a.entries)
	}
	// Idle connections are the only goroutines left.
	soon(t, "goroutines left", true, func() bool { return runtime.NumGoroutine() < before+20 })
}

func TestServicesAreListedWhenAContainerStarts(t *testing.T) {
	f, a := newFakeAPI(t)
	f.services = []corev1.Service{{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "db", Labels: map[string]string{"x": "y"}},
		Spec: corev1.ServiceSpec{ClusterIP: "10.0.0.1", Selector: map[string]string{"x": "y"}, Ports: []corev1.ServicePort{{Port: 1}}}}}
	a.Use(starting("p"))
	got, err := a.Services(t.Context(), "ns")
	if err != nil || len(got) != 1 || got[0].Name != "db" || got[0].Spec.ClusterIP != "10.0.0.1" || got[0].Spec.Ports[0].Port != 1 || got[0].Labels != nil {
		t.Errorf("got %v, %v", got, err)
	}
	f.setFail(http.StatusServiceUnavailable)
	if got, err := a.Services(t.Context(), "ns"); err != nil || len(got) != 1 {
		t.Errorf("without an API server: %v, %v", got, err)
	}
	if _, err := a.Services(t.Context(), "other"); err == nil {
		t.Error("Services that were never listed are known")
	}
	a.Release("p")
	if _, err := a.Services(t.Context(), "ns"); err == nil {
		t.Error("Services of a namespace without Pods were kept")
	}
}

func TestTokensAreAskedForOncePerPodAndRenewedInTime(t *testing.T) {
	f, a := newFakeAPI(t)
	f.pass(0) // from here on by hand
	a.tokens.now = f.clock
	r := TokenRequest{Namespace: "ns", ServiceAccount: "sa", PodName: "p", PodUID: "p", Audience: "vault", ExpirationSeconds: 600}
	get := func(r TokenRequest) string {
		t.Helper()
		token, err := a.Token(t.Context(), r)
		if err != nil {
			return "error: " + err.Error()
		}
		return token.Value
	}
	first := get(r)
	if !strings.HasSuffix(first, " for [vault] of p") {
		t.Errorf("token %q", first)
	}
	other := r
	other.PodName, other.PodUID = "q", "q"
	if get(r) != first || get(other) == first {
		t.Error("the same token twice is another one, or another Pod has it")
	}
	if f.pass(465 * time.Second); get(r) != first { // 480 s less up to 10 s, and rounding to seconds
		t.Error("renewed before 80 % of its life")
	}
	f.pass(16 * time.Second)
	f.setFail(http.StatusServiceUnavailable)
	if get(r) != first {
		t.Error("a token that is valid and cannot be renewed is not given")
	}
	f.setFail(0)
	second := get(r)
	if second == first {
		t.Error("not renewed after 80 % of its life")
	}
	f.setFail(http.StatusServiceUnavailable)
	f.pass(time.Hour)
	if got := get(r); !strings.HasPrefix(got, "error: token of ns/sa expired and refresh failed: ") {
		t.Errorf("after it expired: %q", got)
	}
	f.setFail(0)
	a.Release("p")
	if len(a.tokens.tokens) != 1 {
		t.Errorf("%d tokens kept, want the other Pod's", len(a.tokens.tokens))
	}
}

func TestTokensAreRenewedAtFourFifthsOfTheirLifeOrAfterADay(t *testing.T) {
	issued := time.Date(2026, 11, 24, 0, 0, 0, 0, time.UTC)
	for life, want := range map[time.Duration]time.Duration{
		10 * time.Minute: 8 * time.Minute, time.Hour: 48 * time.Minute, 30 * time.Hour: 24 * time.Hour, 8760 * time.Hour: 24 * time.Hour,
	} {
		got := renewal(issued.Add(life), life).Sub(issued)
		if got > want || got < want-renewJitter {
			t.Errorf("a token of %v is renewed after %v, want %v", life, got, want)
		}
	}
}
