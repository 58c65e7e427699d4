// SPDX-License-Identifier: Apache-2.0

package podspec

import (
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"
)

// Reasons of Refused, as the kubelet words them.
const (
	// ReasonContainerConfig is the waiting reason of a container that cannot
	// be configured; tried again, since what it refers to may come.
	ReasonContainerConfig = "CreateContainerConfigError"
	// ReasonSandbox is the reason of the Event for a sandbox that cannot be
	// configured.
	ReasonSandbox = "FailedCreatePodSandBox"
	// The following end a Pod before it starts (phase Failed), see Check.
	ReasonSysctl       = "SysctlForbidden"
	ReasonOS           = "PodOSNotSupported"
	ReasonGroupsPolicy = "SupplementalGroupsPolicyNotSupported"
	// ReasonInvalid is for what an API server would not have taken.
	ReasonInvalid = "Invalid"
)

// Refused is why a Pod or a container cannot be started as it is.
type Refused struct {
	Reason, Message string
	// Err is what it came from, where that is known: so apierrors.IsNotFound
	// holds for a missing ConfigMap.
	Err error
}

// Error is the message only: it is what status shows.
func (r *Refused) Error() string { return r.Message }

// Unwrap returns Err.
func (r *Refused) Unwrap() error { return r.Err }

// refuse makes err a Refused with this reason, unless it is one already.
func refuse(reason string, err error) error {
	if err == nil {
		return nil
	}
	if r := new(Refused); errors.As(err, &r) {
		return err
	}
	return &Refused{Reason: reason, Message: err.Error(), Err: err}
}

// describe names a Pod as the kubelet's messages do.
func describe(pod *corev1.Pod) string {
	return fmt.Sprintf("%s_%s(%s)", pod.Name, pod.Namespace, pod.UID)
}
