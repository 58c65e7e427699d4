// SPDX-License-Identifier: Apache-2.0

package podspec

import (
	"reflect"

	corev1 "k8s.io/api/core/v1"
)

// sources counts the kinds of volume that a source says it is; a valid one
// says one, or none for an emptyDir.
func sources(s *corev1.VolumeSource) int {
	v, n := reflect.ValueOf(s).Elem(), 0
	for i := range v.NumField() {
		if !v.Field(i).IsNil() {
			n++
		}
	}
	return n
}

// SourceName returns the name of the kind of a volume as its API field has
// it, such as "nfs"; "emptyDir" for a volume that says none.
func SourceName(s *corev1.VolumeSource) string {
	v := reflect.ValueOf(s).Elem()
	for i := range v.NumField() {
		if !v.Field(i).IsNil() {
			return jsonName(v.Type().Field(i))
		}
	}
	return "emptyDir"
}

func jsonName(f reflect.StructField) string {
	tag := f.Tag.Get("json")
	for i := range len(tag) {
		if tag[i] == ',' {
			return tag[:i]
		}
	}
	return tag
}
