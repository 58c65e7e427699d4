// SPDX-License-Identifier: Apache-2.0

package podstatus

import (
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

func TestAPodThatIsOverHasFailedWhereItDidNotSucceed(t *testing.T) {
	withInits := func() *corev1.Pod {
		p := twoContainers()
		p.Spec.InitContainers = []corev1.Container{{Name: "i", Image: "x"}, {Name: "j", Image: "x"}}
		return p
	}
	for name, c := range map[string]struct {
		in   *Input
		want string
	}{
		"never started":           {input(twoContainers(), Observed{}), "Failed a=137 b=137"},
		"one was made":            {input(twoContainers(), Observed{sandbox(), []Container{is("a", Created, 0, 0)}}), "Failed a=137 b=137"},
		"one had ended well":      {input(twoContainers(), Observed{sandbox(), []Container{is("a", Exited, 0, 0)}}), "Failed a=0 b=137"},
		"both had ended well":     {input(twoContainers(), Observed{sandbox(), []Container{is("a", Exited, 0, 0), is("b", Exited, 0, 0)}}), "Succeeded a=0 b=0"},
		"no init container began": {input(withInits(), Observed{}), "Failed i=137 j=waiting a=waiting b=waiting"},
		"in its first init container": {
			input(withInits(), Observed{sandbox(), []Container{is("i", Exited, 143, 0)}}), "Failed i=143 j=waiting a=waiting b=waiting"},
		"in its last init container": {
			input(withInits(), Observed{sandbox(), []Container{is("i", Exited, 0, 0), is("j", Exited, 143, 0)}}), "Failed i=0 j=143 a=waiting b=waiting"},
		"after its init containers": {
			input(withInits(), Observed{sandbox(), []Container{is("i", Exited, 0, 0), is("j", Exited, 0, 0)}}), "Failed i=0 j=0 a=137 b=137"},
	} {
		t.Run(name, func(t *testing.T) {
			c.in.Terminal = true
			c.in.Waiting = map[string]Waiting{"a": {Reason: "ImagePullBackOff"}}
			s := Make(c.in)
			got := []string{string(s.Phase)}
			for _, all := range [][]corev1.ContainerStatus{s.InitContainerStatuses, s.ContainerStatuses} {
				for _, s := range all {
					state := "waiting"
					if s.State.Terminated != nil {
						state = fmt.Sprint(s.State.Terminated.ExitCode)
					}
					got = append(got, s.Name+"="+state)
				}
			}
			if got := strings.Join(got, " "); got != c.want {
				t.Errorf("%s, want %s", got, c.want)
			}
		})
	}
}
