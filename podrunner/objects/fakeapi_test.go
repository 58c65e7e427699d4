// SPDX-License-Identifier: Apache-2.0

package objects

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"fairlead.dev/podrunner/apiclient"
)

// fakeAPI answers as an API server does, and fails as the test wants it. What
// a real one does is tested in test/e2e.
type fakeAPI struct {
	t      *testing.T
	mu     sync.Mutex
	secret map[string]*corev1.Secret // of namespace ns, by name
	// version counts changes; it is the resourceVersion.
	version int
	watches map[chan string]string // by what is sent to them; the object's name
	// fail is the status that all is answered with; 0 for none.
	fail     int
	asked    map[string]int // by verb and path
	services []corev1.Service
	life     time.Duration // of tokens
	now      time.Time     // there; zero: the real time
}

func newFakeAPI(t *testing.T) (*fakeAPI, *API) {
	f := &fakeAPI{t: t, secret: map[string]*corev1.Secret{}, watches: map[chan string]string{}, asked: map[string]int{}, life: time.Hour}
	server := httptest.NewServer(f)
	client, err := apiclient.New(&rest.Config{Host: server.URL, QPS: -1, ContentConfig: rest.ContentConfig{ContentType: "application/json"}})
	if err != nil {
		t.Fatal(err)
	}
	a := NewAPI(APIOptions{
		Client: client, BackoffMin: 5 * time.Millisecond, BackoffMax: 40 * time.Millisecond,
		Logger: slog.New(slog.NewTextHandler(io.Discard, nil)), MaxAge: time.Nanosecond,
	})
	t.Cleanup(func() {
		a.Close()
		f.endWatches()
		server.Close()
	})
	return f, a
}

func (f *fakeAPI) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path := strings.TrimPrefix(r.URL.Path, "/api/v1/namespaces/")
	name, _ := strings.CutPrefix(r.URL.Query().Get("fieldSelector"), "metadata.name=")
	verb := "get"
	switch {
	case r.URL.Query().Get("watch") != "":
		verb = "watch"
	case name != "":
		verb = "list"
	}
	f.mu.Lock()
	f.asked[strings.TrimRight(verb+" "+path+" "+name, " ")]++
	fail := f.fail
	f.mu.Unlock()
	switch {
	case fail != 0:
		f.status(w, fail, metav1.StatusReason(http.StatusText(fail)))
	case verb == "watch":
		f.watch(w, r, name)
	case r.Method == http.MethodPost:
		f.token(w, r)
	case strings.HasSuffix(path, "/services"):
		f.answer(w, corev1.ServiceList{TypeMeta: metav1.TypeMeta{Kind: "ServiceList", APIVersion: "v1"}, Items: f.services})
	case verb == "list":
		f.list(w, name)
	default:
		f.get(w, path[strings.LastIndex(path, "/")+1:])
	}
}

func (f *fakeAPI) answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(v); err != nil {
		f.t.Log(err)
	}
}

func (f *fakeAPI) status(w http.ResponseWriter, code int, reason metav1.StatusReason) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	f.answer(w, metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: "Failure", Code: int32(code), Reason: reason, Message: string(reason)})
}

func (f *fakeAPI) get(w http.ResponseWriter, name string) {
	f.mu.Lock()
	s := f.secret[name]
	f.mu.Unlock()
	if s == nil {
		f.status(w, http.StatusNotFound, metav1.StatusReasonNotFound)
		return
	}
	f.answer(w, s)
}

func (f *fakeAPI) list(w http.ResponseWriter, name string) {
	f.mu.Lock()
	l := corev1.SecretList{TypeMeta: metav1.TypeMeta{Kind: "SecretList", APIVersion: "v1"}, ListMeta: metav1.ListMeta{ResourceVersion: fmt.Sprint(f.version)}}
	if s := f.secret[name]; s != nil {
		l.Items = append(l.Items, *s)
	}
	f.mu.Unlock()
	f.answer(w, l)
}

func (f *fakeAPI) watch(w http.ResponseWriter, r *http.Request, name string) {
	events := make(chan string, 100)
	f.mu.Lock()
	stale := r.URL.Query().Get("resourceVersion") != fmt.Sprint(f.version)
	f.watches[events] = name
	f.mu.Unlock()
	if stale { // something changed between list and watch: a real one replays
		f.endWatches()
	}
	w.Header().Set("Content-Type", "application/json")
	w.(http.Flusher).Flush()
	for {
		select {
		case <-r.Context().Done():
			f.mu.Lock()
			delete(f.watches, events)
			f.mu.Unlock()
			return
		case e, ok := <-events:
			if !ok {
				return
			}
			io.WriteString(w, e+"\n")
			w.(http.Flusher).Flush()
		}
	}
}

func (f *fakeAPI) token(w http.ResponseWriter, r *http.Request) {
	var t authenticationv1.TokenRequest
	if err := json.NewDecoder(r.Body).Decode(&t); err != nil {
		f.t.Error(err)
	}
	f.mu.Lock()
	f.version++
	t.Status.Token = fmt.Sprintf("token-%d for %v of %s", f.version, t.Spec.Audiences, t.Spec.BoundObjectRef.Name)
	life := f.life
	f.mu.Unlock()
	if t.Spec.ExpirationSeconds != nil {
		life = time.Duration(*t.Spec.ExpirationSeconds) * time.Second
	}
	t.Status.ExpirationTimestamp = metav1.NewTime(f.clock().Add(life))
	f.answer(w, t)
}

// clock is the time there.
func (f *fakeAPI) clock() time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.now.IsZero() {
		return time.Now()
	}
	return f.now
}

// pass has time pass.
func (f *fakeAPI) pass(d time.Duration) {
	now := f.clock()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.now = now.Add(d)
}

// set makes or changes a Secret; immutable ones are so from then on.
func (f *fakeAPI) set(name, value string, immutable bool) {
	f.mu.Lock()
	f.version++
	kind := "MODIFIED"
	if f.secret[name] == nil {
		kind = "ADDED"
	}
	s := &corev1.Secret{TypeMeta: metav1.TypeMeta{Kind: "Secret", APIVersion: "v1"},
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, ResourceVersion: fmt.Sprint(f.version), ManagedFields: []metav1.ManagedFieldsEntry{{Manager: "m"}},
			Annotations: map[string]string{corev1.LastAppliedConfigAnnotation: "long"}},
		Data: map[string][]byte{"k": []byte(value)}}
	if immutable {
		s.Immutable = &immutable
	}
	f.secret[name] = s
	f.mu.Unlock()
	f.send(kind, s)
}

func (f *fakeAPI) delete(name string) {
	f.mu.Lock()
	f.version++
	s := f.secret[name]
	delete(f.secret, name)
	f.mu.Unlock()
	f.send("DELETED", s)
}

func (f *fakeAPI) send(kind string, s *corev1.Secret) {
	raw, err := json.Marshal(map[string]any{"type": kind, "object": s})
	if err != nil {
		f.t.Error(err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for c, name := range f.watches {
		if name == s.Name {
			c <- string(raw)
		}
	}
}

// sendError ends all watches with an error that the API server sends.
func (f *fakeAPI) sendError(code int, reason metav1.StatusReason) {
	raw, err := json.Marshal(map[string]any{"type": "ERROR", "object": metav1.Status{
		TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: "Failure", Code: int32(code), Reason: reason}})
	if err != nil {
		f.t.Error(err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for c := range f.watches {
		c <- string(raw)
	}
}

func (f *fakeAPI) endWatches() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for c := range f.watches {
		close(c)
		delete(f.watches, c)
	}
}

func (f *fakeAPI) setFail(code int) {
	f.mu.Lock()
	f.fail = code
	f.mu.Unlock()
	if code != 0 {
		f.endWatches()
	}
}

func (f *fakeAPI) count(what string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.asked[what]
}

func (f *fakeAPI) watching() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.watches)
}
