// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	authenticationv1 "k8s.io/api/authentication/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"fairlead.dev/test/e2e/controlplane"
)

// podsOverlay is what an operator applies for nodes whose agents run Pods.
const podsOverlay = "../../../manifests/overlays/pods"

// grant applies the manifests, takes a token of their ServiceAccount, and gives
// the API server the rights that it needs at kubelets.
func (c *cluster) grant(ctx context.Context) error {
	if err := within(patience, func() error { // the bootstrap's objects come a moment after the server
		_, err := c.client.RbacV1().ClusterRoles().Get(ctx, kubeletAPIRole, metav1.GetOptions{})
		for _, ns := range []string{"kube-system", "kube-node-lease"} {
			if err == nil {
				_, err = c.client.CoreV1().Namespaces().Get(ctx, ns, metav1.GetOptions{})
			}
		}
		return err
	}); err != nil {
		return err
	}
	kubectl, err := controlplane.Kubectl.Path()
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, kubectl, "--kubeconfig", c.Kubeconfig, "apply", "-k", podsOverlay)
	cmd.Env = append(os.Environ(), "HOME="+filepath.Join(scratch, "tmp"))
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("kubectl apply -k %s: %w\n%s", podsOverlay, err, out)
	}
	if err := c.letServerAskKubelets(ctx); err != nil {
		return err
	}
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: new(int64(24 * 3600))}}
	got, err := c.client.CoreV1().ServiceAccounts("kube-system").CreateToken(ctx, "fairlead-pods", request, metav1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("token of the agents: %w", err)
	}
	c.token = got.Status.Token
	return nil
}

// kubeletAPIRole is what the API server needs at kubelets.
const kubeletAPIRole = "system:kubelet-api-admin"

func (c *cluster) letServerAskKubelets(ctx context.Context) error {
	binding := &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "test-kubelet-api-admin"},
		Subjects:   []rbacv1.Subject{{Kind: "User", APIGroup: rbacv1.GroupName, Name: controlplane.KubeletClient}},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: kubeletAPIRole},
	}
	_, err := c.client.RbacV1().ClusterRoleBindings().Create(ctx, binding, metav1.CreateOptions{})
	return err
}

// writeCredentials gives the agent an identity: the first node that of the
// manifests' ServiceAccount, the others a certificate of their own, as kubelets
// have it.
func (n *node) writeCredentials() error {
	kubeconfig := filepath.Join(n.dir, "kubeconfig")
	err := n.c.WriteKubeconfig(kubeconfig, n.c.Addr, n.c.token)
	if n != n.c.nodes[0] {
		err = n.c.WriteNodeKubeconfig(kubeconfig, n.c.Addr, n.name)
	}
	if err != nil {
		return err
	}
	return n.c.IssueServing(filepath.Join(n.dir, "kubelet"), n.name, n.ipv4, n.ipv6)
}
