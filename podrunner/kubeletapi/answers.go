// SPDX-License-Identifier: Apache-2.0

package kubeletapi

import (
	"context"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"
)

// maxAnswers bounds what is remembered of those who ask.
const maxAnswers = 4096

// answers remembers what the API server answered, each for its time. Like
// questions that come while one is asked share its answer. Errors are not
// remembered.
type answers[T any] struct {
	now    func() time.Time
	flight singleflight.Group

	mu   sync.Mutex
	kept map[string]answer[T]
}

type answer[T any] struct {
	value T
	until time.Time
}

func newAnswers[T any]() *answers[T] {
	return &answers[T]{now: time.Now, kept: map[string]answer[T]{}}
}

// ask gives the remembered answer, or asks and remembers for as long as the
// question says.
func (a *answers[T]) ask(ctx context.Context, key string, question func(context.Context) (T, time.Duration, error)) (T, error) {
	if v, ok := a.get(key); ok {
		return v, nil
	}
	// One asker that leaves must not fail the others.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	got, err, _ := a.flight.Do(key, func() (any, error) {
		v, ttl, err := question(ctx)
		if err == nil {
			a.put(key, v, ttl)
		}
		return v, err
	})
	return got.(T), err
}

func (a *answers[T]) get(key string) (T, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	v, ok := a.kept[key]
	return v.value, ok && a.now().Before(v.until)
}

func (a *answers[T]) put(key string, v T, ttl time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.kept) >= maxAnswers {
		for k, old := range a.kept {
			if !a.now().Before(old.until) {
				delete(a.kept, k)
			}
		}
	}
	for k := range a.kept { // whoever floods it has others asked for again
		if len(a.kept) < maxAnswers {
			break
		}
		delete(a.kept, k)
	}
	a.kept[key] = answer[T]{v, a.now().Add(ttl)}
}
