// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes/scheme"

	"fairlead.dev/test/internal/namespace"
)

// apiServer stands in for a kube-apiserver towards one agent: it lists and
// watches the objects of the benchmark, in protobuf where the agent asks for
// it, and takes no part in what is measured: no storage, no admission. All
// agents that are compared get the same objects in the same encoding.
type apiServer struct {
	http *http.Server
	url  string

	mu       sync.Mutex
	version  int
	kinds    map[string]*apiKind // by the last element of the path
	watchers map[chan apiEvent]string
}

// apiKind is one resource. Its objects are of group and version gv.
type apiKind struct {
	gv      schema.GroupVersion
	objects []runtime.Object
	list    func(metav1.ListMeta, []runtime.Object) runtime.Object
	empty   func() runtime.Object
}

type apiEvent struct {
	kind   watch.EventType
	object runtime.Object
}

// startAPIServer serves n Services on the loopback of a namespace.
func startAPIServer(ns *namespace.Namespace, n int, nodeAddresses ...string) (s *apiServer, err error) {
	err = ns.Do(func() error {
		listener, err := net.Listen("tcp4", "127.0.0.1:0")
		if err == nil {
			s = serveAPI(listener, n, nodeAddresses...)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("listen for agents: %w", err)
	}
	return s, nil
}

func serveAPI(listener net.Listener, n int, nodeAddresses ...string) *apiServer {
	s := &apiServer{version: 1, url: "http://" + listener.Addr().String(), watchers: map[chan apiEvent]string{}}
	s.kinds = apiKinds()
	for i := range n {
		s.add("services", newService(i))
		for _, slice := range newSlices(i, firstBefore) {
			s.add("endpointslices", slice)
		}
	}
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: nodeName}}
	for _, a := range nodeAddresses {
		node.Status.Addresses = append(node.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: a})
	}
	s.add("nodes", node)
	s.http = &http.Server{Handler: s}
	go func() { _ = s.http.Serve(listener) }() // ends with close
	return s
}

func (s *apiServer) close() { s.http.Close() }

func apiKinds() map[string]*apiKind {
	return map[string]*apiKind{
		"services": {
			gv: corev1.SchemeGroupVersion, empty: func() runtime.Object { return &corev1.Service{} },
			list: func(m metav1.ListMeta, all []runtime.Object) runtime.Object {
				return &corev1.ServiceList{ListMeta: m, Items: items[corev1.Service](all)}
			},
		},
		"endpointslices": {
			gv: discoveryv1.SchemeGroupVersion, empty: func() runtime.Object { return &discoveryv1.EndpointSlice{} },
			list: func(m metav1.ListMeta, all []runtime.Object) runtime.Object {
				return &discoveryv1.EndpointSliceList{ListMeta: m, Items: items[discoveryv1.EndpointSlice](all)}
			},
		},
		"nodes": {
			gv: corev1.SchemeGroupVersion, empty: func() runtime.Object { return &corev1.Node{} },
			list: func(m metav1.ListMeta, all []runtime.Object) runtime.Object {
				return &corev1.NodeList{ListMeta: m, Items: items[corev1.Node](all)}
			},
		},
		"servicecidrs": {
			gv: networkingv1.SchemeGroupVersion, empty: func() runtime.Object { return &networkingv1.ServiceCIDR{} },
			list: func(m metav1.ListMeta, all []runtime.Object) runtime.Object {
				return &networkingv1.ServiceCIDRList{ListMeta: m, Items: items[networkingv1.ServiceCIDR](all)}
			},
		},
	}
}

func items[T any, P interface {
	*T
	runtime.Object
}](all []runtime.Object) []T {
	list := make([]T, len(all))
	for i, o := range all {
		list[i] = *o.(P)
	}
	return list
}

// add is for before anybody asks.
func (s *apiServer) add(kind string, o runtime.Object) {
	s.version++
	o.(metav1.Object).SetResourceVersion(strconv.Itoa(s.version))
	s.kinds[kind].objects = append(s.kinds[kind].objects, o)
}

// change tells the watchers of a new state of an object that is there, and
// gives the time just before.
func (s *apiServer) change(kind string, o runtime.Object) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.version++
	o.(metav1.Object).SetResourceVersion(strconv.Itoa(s.version))
	objects := s.kinds[kind].objects
	objects[slices.IndexFunc(objects, func(old runtime.Object) bool {
		return keyOf(old.(metav1.Object)) == keyOf(o.(metav1.Object))
	})] = o
	at := monotonic()
	for w, of := range s.watchers {
		if of == kind {
			w <- apiEvent{watch.Modified, o}
		}
	}
	return at
}

// all gives the objects of now and their version.
func (s *apiServer) all(k *apiKind) ([]runtime.Object, string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(k.objects), strconv.Itoa(s.version)
}

// ServeHTTP answers list and watch of whole resources, and takes Events.
func (s *apiServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet {
		_, _ = io.Copy(io.Discard, r.Body)
		w.WriteHeader(http.StatusCreated)
		return
	}
	kind := path.Base(r.URL.Path)
	k, ok := s.kinds[kind]
	if !ok {
		http.NotFound(w, r)
		return
	}
	q := r.URL.Query()
	if q.Get("watch") == "" || q.Get("watch") == "false" {
		objects, version := s.all(k)
		s.write(w, r, k.gv, k.list(metav1.ListMeta{ResourceVersion: version}, objects))
		return
	}
	s.watch(w, r, kind, q.Get("sendInitialEvents") == "true")
}

// watch streams events until the agent goes.
func (s *apiServer) watch(w http.ResponseWriter, r *http.Request, kind string, initial bool) {
	k := s.kinds[kind]
	events := make(chan apiEvent, 1024)
	s.mu.Lock()
	s.watchers[events] = kind
	objects, version := slices.Clone(k.objects), strconv.Itoa(s.version)
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.watchers, events)
		s.mu.Unlock()
	}()
	info := encodingOf(r)
	w.Header().Set("Content-Type", info.MediaType+map[bool]string{true: ";stream=watch"}[info.MediaType == runtime.ContentTypeProtobuf])
	w.WriteHeader(http.StatusOK)
	out := info.StreamSerializer.Framer.NewFrameWriter(w)
	embedded := scheme.Codecs.EncoderForVersion(info.Serializer, k.gv)
	framed := scheme.Codecs.EncoderForVersion(info.StreamSerializer.Serializer, k.gv)
	send := func(e apiEvent) error {
		var b bytes.Buffer
		if err := embedded.Encode(e.object, &b); err != nil {
			return err
		}
		return framed.Encode(&metav1.WatchEvent{Type: string(e.kind), Object: runtime.RawExtension{Raw: b.Bytes()}}, out)
	}
	if initial {
		for _, o := range objects {
			if send(apiEvent{watch.Added, o}) != nil {
				return
			}
		}
		last := k.empty()
		last.(metav1.Object).SetResourceVersion(version)
		last.(metav1.Object).SetAnnotations(map[string]string{metav1.InitialEventsAnnotationKey: "true"})
		if send(apiEvent{watch.Bookmark, last}) != nil {
			return
		}
	}
	flush := http.NewResponseController(w)
	for {
		if flush.Flush() != nil {
			return
		}
		select {
		case <-r.Context().Done():
			return
		case e := <-events:
			if send(e) != nil {
				return
			}
		}
	}
}

func (s *apiServer) write(w http.ResponseWriter, r *http.Request, gv schema.GroupVersion, o runtime.Object) {
	info := encodingOf(r)
	w.Header().Set("Content-Type", info.MediaType)
	if err := scheme.Codecs.EncoderForVersion(info.Serializer, gv).Encode(o, w); err != nil {
		say("API server: %s: %v", r.URL, err)
	}
}

// encodingOf is protobuf where the agent takes it, else JSON.
func encodingOf(r *http.Request) runtime.SerializerInfo {
	media := runtime.ContentTypeJSON
	if strings.Contains(r.Header.Get("Accept"), runtime.ContentTypeProtobuf) {
		media = runtime.ContentTypeProtobuf
	}
	info, _ := runtime.SerializerInfoForMediaType(scheme.Codecs.SupportedMediaTypes(), media)
	return info
}

// kubeconfig names this server.
func (s *apiServer) kubeconfig() []byte {
	return fmt.Appendf(nil, `apiVersion: v1
kind: Config
clusters: [{name: bench, cluster: {server: %q}}]
contexts: [{name: bench, context: {cluster: bench, user: bench}}]
current-context: bench
users: [{name: bench}]
`, s.url)
}
