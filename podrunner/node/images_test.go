// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestTheBiggestImagesAreNamedAndAFailureKeepsTheLastOnes(t *testing.T) {
	var images []*runtimeapi.Image
	for i := range 60 {
		images = append(images, &runtimeapi.Image{RepoTags: []string{fmt.Sprintf("t%d", i), "b", "c", "d", "e"}, RepoDigests: []string{"digest"}, Size: uint64(i)})
	}
	var fail error
	n := &Node{o: Options{Images: ListImages(func(context.Context, *runtimeapi.ImageFilter) ([]*runtimeapi.Image, error) { return images, fail })}}
	var s corev1.NodeStatus
	n.fillImages(t.Context(), &s)
	if len(s.Images) != maxImages {
		t.Fatalf("%d images", len(s.Images))
	}
	want := corev1.ContainerImage{Names: []string{"digest", "t59", "b", "c", "d"}, SizeBytes: 59}
	if diff := cmp.Diff(want, s.Images[0]); diff != "" {
		t.Errorf("the first (-want +got):\n%s", diff)
	}
	before := s.DeepCopy()
	fail = errors.New("no answer")
	n.fillImages(t.Context(), &s)
	if diff := cmp.Diff(before, &s); diff != "" {
		t.Errorf("after a failure (-want +got):\n%s", diff)
	}
}
