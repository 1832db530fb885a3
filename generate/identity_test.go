package generate_test

import (
	"fmt"
	"strings"
	"testing"

	"portcullis.dev/portcullis/generate"
)

// statefulSet is a StatefulSet with its governing Service; its placeholders are its own spec's first line and the Service's.
const statefulSet = `kind: StatefulSet
apiVersion: apps/v1
metadata: {name: db, namespace: shop}
spec:
  %s
  template:
    metadata: {labels: {app: db}}
    spec:
      runtimeClassName: kata-cc
      containers: [{name: a, resources: {limits: {memory: 1Mi}}}]
---
kind: Service
apiVersion: v1
metadata: {name: db, namespace: shop}
spec:
  %s
  selector: {app: db}
`

func sansOf(t *testing.T, text string) (map[string]string, string) {
	t.Helper()
	result, err := generate.Inspect([]generate.File{{Name: "f.yaml", Text: []byte(text)}}, options())
	if err != nil {
		t.Fatal(err)
	}
	all := make(map[string]string)
	for _, p := range result.Pods {
		var names []string
		for _, san := range p.Policy.SANs {
			names = append(names, san.String())
		}
		all[p.Name] = strings.Join(names, " ")
	}
	return all, strings.Join(result.Warnings, "\n")
}

// forms are those of a name in a cluster's DNS.
func forms(name string) string {
	return strings.NewReplacer("%", name).Replace("% %.shop %.shop.svc %.shop.svc.cluster.local")
}

func TestStablePodsHaveNamesOfTheirOwn(t *testing.T) {
	for _, c := range []struct{ name, spec, service, want string }{
		{"two replicas", "{serviceName: db, replicas: 2, %", "clusterIP: None", forms("db") + " " + forms("db-0.db") + " " + forms("db-1.db")},
		{"replicas unsaid", "{serviceName: db, %", "clusterIP: None", forms("db") + " " + forms("db-0.db")},
		{"none now", "{serviceName: db, replicas: 0, %", "clusterIP: None", forms("db")},
		{"counted from elsewhere", "{serviceName: db, replicas: 1, ordinals: {start: 7}, %", "clusterIP: None", forms("db") + " " + forms("db-7.db")},
		{"not headless", "{serviceName: db, replicas: 2, %", "type: ClusterIP", forms("db")},
		{"another Service's", "{serviceName: other, replicas: 2, %", "clusterIP: None", forms("db")},
	} {
		t.Run(c.name, func(t *testing.T) {
			spec := strings.ReplaceAll(strings.TrimSuffix(strings.TrimPrefix(c.spec, "{"), ", %"), ", ", "\n  ")
			got, warnings := sansOf(t, fmt.Sprintf(statefulSet, spec, c.service))
			if got["db"] != c.want || warnings != "" {
				t.Errorf("got %q, want %q; warnings %q", got["db"], c.want, warnings)
			}
		})
	}

	got, warnings := sansOf(t, fmt.Sprintf(statefulSet, "serviceName: db\n  replicas: 40", "clusterIP: None"))
	if !strings.Contains(got["db"], " db-31.db ") || strings.Contains(got["db"], "db-32.db") {
		t.Errorf("of 40 replicas: %q", got["db"])
	}
	if !strings.HasPrefix(warnings, "f.yaml:6:13: PC1405: StatefulSet shop/db: its first 32 pods have names of their own as identities, its other 8") {
		t.Errorf("of 40 replicas: %q", warnings)
	}

	const pod = "kind: Pod\napiVersion: v1\nmetadata: {name: p, namespace: shop, labels: {app: p}}\nspec: {hostname: h, subdomain: s, runtimeClassName: kata-cc, " +
		"containers: [{name: a, resources: {limits: {memory: 1Mi}}}]}\n---\nkind: Service\napiVersion: v1\nmetadata: {name: s, namespace: shop}\n" +
		"spec: {clusterIP: None, selector: {app: p}}\n"
	if got, _ := sansOf(t, pod); got["p"] != forms("s")+" "+forms("h.s")+" p" {
		t.Errorf("a Pod with a hostname: %q", got["p"])
	}
}

// A Service's name that two others have too leads to nobody: db-0.db is also Service db-0 in a namespace db.
func TestStableNamesThatAreServicesElsewhere(t *testing.T) {
	const other = "---\nkind: Service\napiVersion: v1\nmetadata: {name: db-0, namespace: db}\nspec: {selector: {app: x}}\n---\n" +
		"kind: Pod\napiVersion: v1\nmetadata: {name: x, namespace: db, labels: {app: x}}\nspec: {runtimeClassName: kata-cc, containers: [{name: a, resources: {limits: {memory: 1Mi}}}]}\n"
	got, warnings := sansOf(t, fmt.Sprintf(statefulSet, "serviceName: db", "clusterIP: None")+other)
	for _, sans := range got {
		if strings.Contains(" "+sans+" ", " db-0.db ") {
			t.Errorf("db-0.db is an identity: %q", got)
		}
	}
	if !strings.Contains(warnings, "PC1402: db-0.db leads to StatefulSet shop/db and to Pod db/x") {
		t.Errorf("warnings %q", warnings)
	}
}

func TestWhyNobodyHasAnIdentity(t *testing.T) {
	const caller = "kind: Pod\napiVersion: v1\nmetadata:\n  name: caller\n  namespace: shop\n  annotations: {contrast.edgeless.systems/servicemesh-egress: \"a#127.0.0.9:80#%s:80\"}\n" +
		"spec:\n  runtimeClassName: kata-cc\n  containers: [{name: a, resources: {limits: {memory: 1Mi}}, securityContext: {capabilities: {drop: [ALL]}}}]\n---\n"
	const pods = "kind: Pod\napiVersion: v1\nmetadata: {name: %s, namespace: shop, labels: {app: x}}\nspec: {runtimeClassName: kata-cc, containers: [{name: a, resources: {limits: {memory: 1Mi}}}]}\n---\n"
	for _, c := range []struct{ name, host, rest, want string }{
		{
			"a name outside", "ext", "kind: Service\napiVersion: v1\nmetadata: {name: ext, namespace: shop}\nspec: {type: ExternalName, externalName: db.example.com, selector: {app: x}}\n",
			"(Service shop/ext at f.yaml:11 is another name of db.example.com",
		},
		{
			"addresses by hand", "hand.shop", "kind: Service\napiVersion: v1\nmetadata: {name: hand, namespace: shop}\nspec: {ports: []}\n",
			"(Service shop/hand at f.yaml:11 has no selector, so the files do not say who is behind it",
		},
		{
			"ordinary pods", "plain", "kind: Service\napiVersion: v1\nmetadata: {name: plain, namespace: shop}\nspec: {selector: {app: none}}\n",
			"(Service shop/plain at f.yaml:11 selects no confidential pod of these files)",
		},
		{
			"two pods", "two", fmt.Sprintf(pods, "x") + fmt.Sprintf(pods, "y") + "kind: Service\napiVersion: v1\nmetadata: {name: two, namespace: shop}\nspec: {selector: {app: x}}\n",
			"does not lead to one pod alone)",
		},
		{"another namespace's short name", "far", "kind: Service\napiVersion: v1\nmetadata: {name: far, namespace: b}\nspec: {ports: []}\n", "which no policy of the manifest carries:"},
	} {
		t.Run(c.name, func(t *testing.T) {
			result, err := generate.Inspect([]generate.File{{Name: "f.yaml", Text: []byte(fmt.Sprintf(caller, c.host) + c.rest)}}, options())
			if err != nil {
				t.Fatal(err)
			}
			got := besides(result.Warnings, "PC1401")
			if !strings.HasPrefix(got, "f.yaml:6:63: PC1404: ") || !strings.Contains(got, c.want) || strings.Contains(got, "\n") {
				t.Errorf("got %q, want %q", got, c.want)
			}
			// Somebody who is in the manifest already may have it.
			o := options()
			for _, e := range result.Pods[0].Mesh.Egress {
				o.Known = append(o.Known, e.Identities...)
			}
			if result, err = generate.Inspect([]generate.File{{Name: "f.yaml", Text: []byte(fmt.Sprintf(caller, c.host) + c.rest)}}, o); err != nil {
				t.Fatal(err)
			}
			if got := besides(result.Warnings, "PC1401"); got != "" {
				t.Errorf("known, and yet %q", got)
			}
		})
	}
}

func TestServiceWhoseNameIsNone(t *testing.T) {
	text := fmt.Sprintf(statefulSet, "replicas: 1", "clusterIP: None") + "---\nkind: Service\napiVersion: v1\nmetadata: {name: 'a b'}\nspec: {selector: {app: db}}\n"
	if got := reports([]generate.File{{Name: "f.yaml", Text: []byte(text)}}, options()); !strings.HasPrefix(got, "f.yaml:19:1: PC1403: Service default/a b: ") {
		t.Errorf("got %q", got)
	}
}

func TestIdentitiesThatAPersonAdds(t *testing.T) {
	const pod = "kind: Pod\napiVersion: v1\nmetadata:\n  name: %s\n  namespace: shop\n  annotations: {portcullis.dev/identities: %s}\n" +
		"spec: {runtimeClassName: %s, containers: [{name: a, resources: {limits: {memory: 1Mi}}}]}\n---\n"
	one := func(name, value string) string { return fmt.Sprintf(pod, name, value, "kata-cc") }
	got, warnings := sansOf(t, one("p", "'shop.example.com, 10.0.0.7,p'"))
	if got["p"] != "p shop.example.com 10.0.0.7" || warnings != "" {
		t.Errorf("got %q, %q", got["p"], warnings)
	}
	for _, c := range []struct{ name, text, want string }{
		{"no name", one("p", "'a b'"), "f.yaml:6:44: PC1107: annotation portcullis.dev/identities: "},
		{"a list", one("p", "[a]"), "f.yaml:6:44: PC1102: annotation portcullis.dev/identities must be a string"},
		{"another pod's", one("p", "a.example") + one("q", "a.example"), "f.yaml:14:44: PC1505: annotation portcullis.dev/identities: a.example is an identity of Pod shop/p at f.yaml:1 already"},
		{"another pod's own name", one("p", "q") + one("q", "b.example"), "f.yaml:6:44: PC1505: annotation portcullis.dev/identities: q is an identity of Pod shop/q"},
		{"a Service's", one("p", "s") + "kind: Service\napiVersion: v1\nmetadata: {name: s, namespace: shop}\nspec: {selector: {app: x}}\n", "f.yaml:6:44: PC1505: annotation portcullis.dev/identities: s is the name of a Service that does not lead"},
		{"on an ordinary pod", fmt.Sprintf(pod, "p", "a.example", "runc"), "f.yaml:6:44: PC1106: annotation portcullis.dev/identities on Pod shop/p, which is not a confidential pod"},
		{"on a Coordinator", strings.Replace(one("p", "a.example"), "annotations: {", "annotations: {contrast.edgeless.systems/pod-role: coordinator, ", 1), "PC1108: annotation portcullis.dev/identities: a Coordinator has no identity"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := reports([]generate.File{{Name: "f.yaml", Text: []byte(c.text)}}, options()); !strings.Contains(got, c.want) {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}
