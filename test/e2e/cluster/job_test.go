// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"fmt"
	"testing"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// A Job that replaces only what has failed waits for a phase that the node
// writes: also of a Pod that is deleted before any container of it began.
func TestAJobReplacesAPodThatWasDeletedBeforeItStarted(t *testing.T) {
	k := newCase(t)
	jobs, pods := k.client.BatchV1().Jobs(k.namespace), k.client.CoreV1().Pods(k.namespace)
	_, err := jobs.Create(t.Context(), &batchv1.Job{ObjectMeta: metav1.ObjectMeta{Name: "job"}, Spec: batchv1.JobSpec{
		PodReplacementPolicy: new(batchv1.Failed),
		Template: corev1.PodTemplateSpec{Spec: corev1.PodSpec{
			RestartPolicy: corev1.RestartPolicyNever, DNSPolicy: corev1.DNSDefault,
			Containers: []corev1.Container{{Name: "c", Image: "fairlead.test/none:1", ImagePullPolicy: corev1.PullNever}},
		}},
	}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	waiting := func(not types.UID) (found *corev1.Pod) {
		k.eventually(func() error {
			list, err := pods.List(t.Context(), metav1.ListOptions{LabelSelector: "batch.kubernetes.io/job-name=job"})
			if err != nil {
				return err
			}
			if len(list.Items) != 1 || list.Items[0].UID == not {
				return fmt.Errorf("Pods: %v; want one that was not deleted", tell(list.Items))
			}
			found = &list.Items[0]
			if s := found.Status.ContainerStatuses; len(s) != 1 || s[0].State.Waiting == nil || s[0].State.Waiting.Reason != "ErrImageNeverPull" {
				return fmt.Errorf("containers %+v, want one that waits for its image", s)
			}
			return nil
		})
		return found
	}
	first := waiting("")
	if err := pods.Delete(t.Context(), first.Name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	waiting(first.UID)
	job, err := jobs.Get(t.Context(), "job", metav1.GetOptions{})
	if err != nil || job.Status.Failed != 1 {
		t.Errorf("the Job: %v, %+v; want one Pod that failed", err, job.Status)
	}
}

func tell(pods []corev1.Pod) (all []string) {
	for _, p := range pods {
		all = append(all, fmt.Sprintf("%s: %s %v deleted %v", p.Name, p.Status.Phase, p.Finalizers, p.DeletionTimestamp))
	}
	return all
}
