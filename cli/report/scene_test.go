package report_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"portcullis.dev/portcullis/api"
	"portcullis.dev/portcullis/attestation"
	"portcullis.dev/portcullis/attestation/simulated"
	"portcullis.dev/portcullis/attestation/snp"
	"portcullis.dev/portcullis/cli/report"
	"portcullis.dev/portcullis/generate"
	"portcullis.dev/portcullis/manifest"
	"portcullis.dev/portcullis/tests/simcoordinator"
	"portcullis.dev/portcullis/tests/simtee"
)

var amd = sync.OnceValues(func() (*simtee.World, error) { return simtee.New(simtee.PublishedKeys()) })

var (
	measurement = simtee.Measurement{0x5a, 0x01}
	published   = sync.OnceValues(func() ([]*ecdsa.PrivateKey, error) {
		keys := make([]*ecdsa.PrivateKey, 3)
		for i := range keys {
			var err error
			if keys[i], err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
				return nil, err
			}
		}
		return keys, nil
	})
)

// scene is a mesh that is verified and reported.
type scene struct {
	yaml     string
	hardware bool // a pretended AMD's, and not a simulated TEE
	// before are changes that make the manifests before the last one, oldest first.
	before []func(*manifest.Manifest)
	alter  func(*manifest.Manifest) // the last one
}

func (s scene) inject(t *testing.T) *generate.Result {
	t.Helper()
	result, err := generate.Inject(t.Context(), []generate.File{{Name: "shop.yaml", Text: []byte(s.yaml)}}, generate.Options{
		RuntimeClasses: generate.RuntimeClasses, Namespace: "default", CoordinatorHost: "coordinator",
		Images: generate.Images{Initializer: "i", Meshproxy: "m"}, Policy: generate.FixedPolicy("package agent_policy"),
	})
	if err != nil {
		t.Fatal(err)
	}
	return result
}

func owners(t *testing.T) []*ecdsa.PrivateKey {
	t.Helper()
	keys, err := published()
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

// verify goes the whole way of verify, but for the network.
func (s scene) verify(t *testing.T) (report.Input, *generate.Result) {
	t.Helper()
	world, err := amd()
	if err != nil {
		t.Fatal(err)
	}
	result := s.inject(t)
	build := func(alter func(*manifest.Manifest)) *manifest.Manifest {
		m := &manifest.Manifest{Policies: map[attestation.PolicyHash]manifest.Policy{}, WorkloadOwnerThreshold: 2}
		if s.hardware {
			m.ReferenceValues.SNP = []snp.ReferenceValue{world.SNPReference(measurement)}
		} else {
			m.ReferenceValues.Simulated = []simulated.ReferenceValue{world.Reference(measurement)}
		}
		for _, p := range result.Pods {
			m.Policies[p.Hash] = p.Policy
		}
		for _, key := range owners(t) {
			k, err := manifest.NewOwnerKey(&key.PublicKey)
			if err != nil {
				t.Fatal(err)
			}
			m.WorkloadOwnerKeys = append(m.WorkloadOwnerKeys, k)
		}
		if alter != nil {
			alter(m)
		}
		text, err := m.Encode()
		if err != nil {
			t.Fatal(err)
		}
		parsed, err := manifest.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		return parsed
	}
	var steps []simcoordinator.Step
	var former api.FormerOwners
	for _, alter := range s.before {
		m := build(alter)
		former = append(former, m.OwnersDigest())
		steps = append(steps, simcoordinator.Step{Text: m.Text(), Signers: owners(t)[:2]})
	}
	trusted := build(s.alter)
	steps = append(steps, simcoordinator.Step{Text: trusted.Text(), Signers: owners(t)[:2]})
	history, err := simcoordinator.History(steps)
	if err != nil {
		t.Fatal(err)
	}
	machine := world.Machine(measurement, trusted.CoordinatorPolicies()[0])
	if s.hardware {
		machine.Platform = attestation.SNP
	}
	nonce := make([]byte, api.NonceSize)
	_, _ = rand.Read(nonce)
	answer, err := simcoordinator.Answer(t.Context(), machine, nonce, history)
	if err != nil {
		t.Fatal(err)
	}
	v, err := former.VerifyCoordinator(t.Context(), answer, nonce, trusted,
		manifest.ValidatorOptions{Collateral: world.KDS(), SNPRoots: world.Roots()})
	if err != nil {
		t.Fatal(err)
	}
	pods, err := generate.ReadMeasured([]generate.File{{Name: "shop.yaml", Text: result.Files[0].Text}}, "default")
	if err != nil {
		t.Fatal(err)
	}
	return report.Input{
		Coordinator: "coordinator.shop.example:1313", When: time.Date(2026, 11, 5, 14, 3, 9, 0, time.UTC), Version: "v0.1.0",
		Verified: v, MeshCAFile: "trust/mesh-ca.pem", RootCAFile: "trust/root-ca.pem", HistoryFolder: "trust/history", Pods: pods,
	}, result
}

func (s scene) report(t *testing.T) *report.Report {
	t.Helper()
	in, _ := s.verify(t)
	r, err := report.New(in)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// podYAML is a pod with its Service; annotations are the mesh's, without their prefix.
func podYAML(name string, annotations map[string]string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "---\napiVersion: v1\nkind: Service\nmetadata:\n  name: %s-svc\nspec:\n  selector: {app: %s}\n  ports:\n    - port: 8080\n", name, name)
	fmt.Fprintf(&b, "---\napiVersion: v1\nkind: Pod\nmetadata:\n  name: %s\n  labels: {app: %s}\n", name, name)
	if len(annotations) > 0 {
		b.WriteString("  annotations:\n")
	}
	for _, key := range []string{"pod-role", "servicemesh-ingress", "servicemesh-egress", "servicemesh-admin-interface-port", "servicemesh-egress-policy", "workload-secret-id"} {
		if value, ok := annotations[key]; ok {
			fmt.Fprintf(&b, "    contrast.edgeless.systems/%s: %q\n", key, value)
		}
	}
	b.WriteString("spec:\n  runtimeClassName: kata-qemu-snp\n  containers:\n    - name: main\n      securityContext: {capabilities: {drop: [ALL]}}\n")
	return b.String()
}

const coordinatorYAML = `apiVersion: v1
kind: Pod
metadata:
  name: coordinator
  annotations:
    contrast.edgeless.systems/pod-role: coordinator
spec:
  runtimeClassName: kata-qemu-snp
  containers:
    - name: coordinator
`

type notes = map[string]string

// shop is a mesh with a bit of everything.
func shop() string {
	return coordinatorYAML +
		podYAML("web", notes{
			"servicemesh-ingress": "web#8080#false##metrics#7890#true",
			"servicemesh-egress": "billing#127.137.0.1:8081#billing-svc:8080##cart#127.137.0.2:8081#cart-svc:8080##" +
				"search#127.137.0.3:8081#search-svc:9200",
			"servicemesh-egress-policy": "closed",
		}) +
		podYAML("billing", notes{
			"servicemesh-ingress": "pay#8080#mtls#web-svc",
			"servicemesh-egress":  "ledger#127.137.0.1:5432#ledger-svc:5432##mail#127.137.0.2:25#mail.example.com:25#mail-svc",
		}) +
		podYAML("cart", notes{"servicemesh-ingress": "", "servicemesh-admin-interface-port": "9901", "servicemesh-egress": "ledger#127.137.0.1:5432#ledger-svc:5432", "workload-secret-id": "shop/cart"}) +
		podYAML("search", notes{"servicemesh-ingress": "gossip#7300/udp#true", "servicemesh-egress": "peers#127.137.0.1:9300#10.0.0.7:9300#any"}) +
		podYAML("ledger", notes{"servicemesh-ingress": "db#5432#mtls#billing-svc", "workload-secret-id": "shop/ledger", "servicemesh-egress-policy": "closed,dns"}) +
		podYAML("audit", notes{"servicemesh-ingress": "CLOSED"}) +
		podYAML("catalog", nil)
}

// large is n pods in four layers.
func large(n int) string {
	text := coordinatorYAML
	for i := range n - 1 {
		a := notes{"servicemesh-ingress": ""}
		if i%9 == 0 {
			a["servicemesh-ingress"] = "web#8080#false"
		}
		if 2*i+2 < n-1 {
			a["servicemesh-egress"] = fmt.Sprintf("a#127.0.0.2:80#pod-%03d-svc:8080##b#127.0.0.3:80#pod-%03d-svc:8080", 2*i+1, 2*i+2)
		}
		text += podYAML(fmt.Sprintf("pod-%03d", i), a)
	}
	return text
}
