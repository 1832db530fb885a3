package cluster

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestMain(m *testing.M) { Main(m) }

// What is written is still there when both were killed and started again, on the same address.
func TestKilledClusterComesBackAsItWas(t *testing.T) {
	c := Shared(t)
	namespace := c.Namespace(t)
	c.MustKubectl(t, "", "-n", namespace, "create", "configmap", "a", "--from-literal=x=before")
	url := c.url()
	c.KillAPIServer()
	if _, _, err := c.Kubectl(t.Context(), "", "-n", namespace, "get", "configmap", "a"); err == nil {
		t.Error("the API server answers, and was killed")
	}
	c.KillEtcd()
	if err := c.Restart(); err != nil {
		t.Fatal(err)
	}
	if got := c.MustKubectl(t, "", "-n", namespace, "get", "configmap", "a", "-o", "jsonpath={.data.x}"); got != "before" || c.url() != url {
		t.Errorf("%q at %s, want it as it was at %s", got, c.url(), url)
	}
}

// A service account's token is what a pod has: it may do nothing before a role says so.
func TestServiceAccountMayDoNothing(t *testing.T) {
	c := Shared(t)
	namespace := c.Namespace(t)
	c.MustKubectl(t, "", "-n", namespace, "create", "serviceaccount", "nobody")
	config := c.ServiceAccount(t, namespace, "nobody")
	_, stderr, err := c.Kubectl(t.Context(), "", "--kubeconfig=/dev/null", "--server="+config.Host, "--token="+config.BearerToken,
		"--certificate-authority="+config.CAFile, "-n", namespace, "get", "configmaps")
	if err == nil || !strings.Contains(stderr, `User "system:serviceaccount:`+namespace+`:nobody" cannot list resource "configmaps"`) {
		t.Errorf("list ConfigMaps: %v", err)
	}
}

// Under `make test-cluster` nothing is skipped because a binary is missing.
func TestBinariesThatAreWantedMustBeThere(t *testing.T) {
	dir := t.TempDir()
	t.Setenv(Env, dir)
	for _, name := range []string{"etcd", "kube-apiserver", "kubectl"} {
		if _, wanted, err := find(); !wanted || err == nil || !strings.Contains(err.Error(), "no "+name) {
			t.Errorf("find without %s: wanted %v, %v", name, wanted, err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if got, wanted, err := find(); got != dir || !wanted || err != nil {
		t.Errorf("find: %q, %v, %v", got, wanted, err)
	}
	t.Setenv(Env, off)
	if _, wanted, err := find(); wanted || err == nil || !strings.Contains(err.Error(), "PORTCULLIS_CLUSTER=off") {
		t.Errorf("find where it is off: wanted %v, %v", wanted, err)
	}
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	os.Unsetenv(Env) // t.Setenv puts it back
	if _, wanted, err := find(); wanted || err == nil {
		t.Errorf("find in an empty cache: wanted %v, %v", wanted, err)
	}
}
