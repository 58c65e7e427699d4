// SPDX-License-Identifier: Apache-2.0

package podspec

import (
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// fieldsOf are the API's names of a type's own fields.
func fieldsOf(v any) (names []string) {
	t := reflect.TypeOf(v)
	for i := range t.NumField() {
		if n := jsonName(t.Field(i)); n != "" {
			names = append(names, n)
		}
	}
	return names
}

func TestDocsNameEveryFieldAndWhatIsDoneWithIt(t *testing.T) {
	page, err := os.ReadFile("../../docs/pods-spec.md")
	if err != nil {
		t.Fatal(err)
	}
	sections := map[string]string{}
	for _, s := range strings.Split(string(page), "\n## ")[1:] {
		title, text, _ := strings.Cut(s, "\n")
		sections[title] = text
	}
	row := regexp.MustCompile(`(?m)^\| ([a-zA-Z]+) \| (done|ignored|refused|partly) \| .*\|$`)
	for _, v := range []any{
		corev1.PodSpec{}, corev1.Container{}, corev1.EphemeralContainer{}, corev1.SecurityContext{}, corev1.PodSecurityContext{},
		corev1.VolumeSource{}, corev1.EmptyDirVolumeSource{}, corev1.VolumeProjection{}, corev1.VolumeMount{},
		corev1.EnvVarSource{}, corev1.Lifecycle{}, corev1.ContainerPort{},
	} {
		title := reflect.TypeOf(v).Name()
		var named []string
		for _, m := range row.FindAllStringSubmatch(sections[title], -1) {
			named = append(named, m[1])
		}
		fields := fieldsOf(v)
		for _, f := range fields {
			if !slices.Contains(named, f) {
				t.Errorf("%s.%s is in the API and not in the table", title, f)
			}
		}
		for i, n := range named {
			if !slices.Contains(fields, n) || slices.Contains(named[:i], n) {
				t.Errorf("%s.%s is in the table, and not in the API or twice", title, n)
			}
		}
		delete(sections, title)
	}
	for title := range sections {
		t.Errorf("section %q is held against nothing", title)
	}
}

// The table of volumes is what the code does.
func TestDocsRefuseTheVolumesThatAreRefused(t *testing.T) {
	page, err := os.ReadFile("../../docs/pods-spec.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(string(page), "## VolumeSource")
	table, _, _ = strings.Cut(table, "\n## ")
	var made []string
	for _, m := range regexp.MustCompile(`(?m)^\| ([a-zA-Z]+) \| (done|partly) `).FindAllStringSubmatch(table, -1) {
		made = append(made, m[1])
	}
	want := []string{"hostPath", "emptyDir", "secret", "downwardAPI", "configMap", "projected"}
	if !slices.Equal(made, want) {
		t.Errorf("the table says that %v are made, the code makes %v", made, want)
	}
}
