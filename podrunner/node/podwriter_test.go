// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"fairlead.dev/podrunner/apiclient/clientset"
)

// What a real API server makes of these writes is tested in test/e2e; here is
// what happens when it does not answer.

func TestAStatusIsWrittenAgainUntilTheServerTakesItAndTheLastOneWins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		key := types.NamespacedName{Namespace: "default", Name: "web"}
		client := fake.NewClientset(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "default", UID: "u"}})
		var patches, fails atomic.Int32
		fails.Store(5)
		client.PrependReactor("patch", "pods", func(clienttesting.Action) (bool, runtime.Object, error) {
			patches.Add(1)
			return fails.Add(-1) >= 0, nil, errors.New("the server is down")
		})
		w := NewPodWriter(clientset.Clientset{Interface: client}, nil)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); _ = w.Run(ctx) }()
		for _, phase := range []corev1.PodPhase{corev1.PodPending, corev1.PodRunning} {
			w.SetPodStatus(key, "u", corev1.PodStatus{Phase: phase})
			time.Sleep(time.Second)
		}
		time.Sleep(time.Minute)
		pod, err := client.CoreV1().Pods("default").Get(ctx, "web", metav1.GetOptions{})
		if err != nil || pod.Status.Phase != corev1.PodRunning || w.Pending() != 0 {
			t.Errorf("phase %q after %d patches, %d pending, %v", pod.Status.Phase, patches.Load(), w.Pending(), err)
		}
		if n := patches.Load(); n != 6 {
			t.Errorf("%d patches, want 5 that failed and 1", n)
		}
		cancel()
		<-done
	})
}

func TestThousandStatesOfOnePodAreAFewWrites(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		key := types.NamespacedName{Namespace: "default", Name: "web"}
		client := fake.NewClientset(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "default", UID: "u"}})
		var patches atomic.Int32
		client.PrependReactor("patch", "pods", func(clienttesting.Action) (bool, runtime.Object, error) {
			patches.Add(1)
			time.Sleep(10 * time.Millisecond)
			return false, nil, nil
		})
		w := NewPodWriter(clientset.Clientset{Interface: client}, nil)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); _ = w.Run(ctx) }()
		for i := range 1000 {
			w.SetPodStatus(key, "u", corev1.PodStatus{Phase: corev1.PodRunning, ObservedGeneration: int64(i)})
		}
		time.Sleep(time.Second)
		pod, err := client.CoreV1().Pods("default").Get(ctx, "web", metav1.GetOptions{})
		if err != nil || pod.Status.ObservedGeneration != 999 {
			t.Errorf("generation %d, %v", pod.Status.ObservedGeneration, err)
		}
		if n := patches.Load(); n > 2 {
			t.Errorf("%d patches", n)
		}
		cancel()
		<-done
	})
}

func TestAStatusOfAPodThatIsGoneOrAnotherIsForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := fake.NewClientset(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "default", UID: "new"}})
		w := NewPodWriter(clientset.Clientset{Interface: client}, nil)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); _ = w.Run(ctx) }()
		w.SetPodStatus(types.NamespacedName{Namespace: "default", Name: "web"}, "old", corev1.PodStatus{Phase: corev1.PodFailed})
		w.SetPodStatus(types.NamespacedName{Namespace: "default", Name: "gone"}, "x", corev1.PodStatus{Phase: corev1.PodFailed})
		w.PodFinished(types.NamespacedName{Namespace: "default", Name: "web"}, "old")
		time.Sleep(time.Second)
		if n := w.Pending(); n != 0 {
			t.Errorf("%d pending", n)
		}
		for _, a := range client.Actions() {
			if a.GetVerb() != "get" {
				t.Errorf("%s %s", a.GetVerb(), a.GetResource().Resource)
			}
		}
		cancel()
		<-done
	})
}
