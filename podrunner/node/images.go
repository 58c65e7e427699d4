// SPDX-License-Identifier: Apache-2.0

package node

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// ListImages makes Options.Images of cri-client's ImageManagerService.ListImages.
func ListImages(list func(context.Context, *runtimeapi.ImageFilter) ([]*runtimeapi.Image, error)) func(context.Context) ([]corev1.ContainerImage, error) {
	return func(ctx context.Context) ([]corev1.ContainerImage, error) {
		images, err := list(ctx, nil)
		if err != nil {
			return nil, fmt.Errorf("list images: %w", err)
		}
		var out []corev1.ContainerImage
		for _, i := range images {
			out = append(out, corev1.ContainerImage{Names: append(slices.Clone(i.GetRepoDigests()), i.GetRepoTags()...), SizeBytes: int64(i.GetSize())})
		}
		// The same order each time, or the status would change with it.
		slices.SortFunc(out, func(a, b corev1.ContainerImage) int {
			return cmp.Or(cmp.Compare(b.SizeBytes, a.SizeBytes), slices.Compare(a.Names, b.Names))
		})
		return out, nil
	}
}
