package docs

import (
	"regexp"
	"strings"
	"testing"
)

// block is a piece of a page that a reader may paste into a shell.
type block struct{ page, text string }

// shellBlocks are the indented blocks and the sh blocks of a page that begin with a command.
func shellBlocks(name, page string) (all []block) {
	command := regexp.MustCompile(`^(portcullis|podvm-[a-z]+|coordinator|initializer|meshproxy|curl|openssl|kubectl|make|go|git|jq|systemctl|source) |^[a-z]+=\$\(`)
	add := func(lines []string) {
		if len(lines) > 0 && command.MatchString(lines[0]) {
			all = append(all, block{name, strings.TrimSpace(strings.Join(lines, "\n"))})
		}
	}
	var lines []string
	var fence string
	previous := ""
	for line := range strings.SplitSeq(page, "\n") {
		switch {
		case strings.HasPrefix(line, "```"):
			if fence == "```sh" {
				add(lines)
			}
			lines = nil
			if fence == "" {
				fence = line
			} else {
				fence = ""
			}
		case fence != "":
			lines = append(lines, line)
		case strings.HasPrefix(line, "    ") && (len(lines) > 0 || previous == ""):
			lines = append(lines, line[4:])
		default:
			add(lines)
			lines = nil
		}
		previous = line
	}
	add(lines)
	return all
}

// cannot run here, by the page and the block's first words, and why.
var cannot = []struct{ page, begins, why string }{
	{"README.md", "make demo", "the test is part of make test"},
	{"CONTRIBUTING.md", "make demo", "the test is part of make test"},
	{"units/README.md", "systemctl --root=ROOT", "the test of units/ enables them in a tree of its own"},
	{"units/README.md", "go test ./units", "the test is part of make test"},
	{"docs/tutorial.md", "make build", "it makes the programs that the page's other commands run"},
	{"docs/collateral.md", "coordinator --collateral-dir", "asks AMD and Intel"},
	{"docs/coordinator.md", "portcullis coordinator-yaml", "kubectl; cmd/portcullis' coordinator_yaml.txtar runs the first two lines"},
	{"docs/coordinator.md", "kubectl -n mesh port-forward", "kubectl"},
	{"docs/guard.md", "podvm-guard close", "a list of the guard's commands, which its tests run"},
	{"docs/images.md", "make oci", "make test-oci runs it"},
	{"docs/images.md", "jq -r .meshproxy.digest", "of what make oci wrote, which the test of image/oci compares; and a registry"},
	{"docs/performance.md", "make build", "a benchmark"},
	{"docs/performance.md", "make bench", "a benchmark"},
	{"docs/performance.md", "make soak", "a benchmark"},
	{"docs/attestation.md", "portcullis attest", "run in the pages' world below, but for the machine's own evidence"},
}

// digest stands for that of an image.
var digest = strings.Repeat("0", 64)

// runs says how the others are made to run in the world of world: what is pasted in place of what stands for something else.
var runs = []struct {
	page, begins string
	edits        []string // old, new, ...
	before, want string
}{
	{page: "docs/audit.md", begins: "coordinator --audit-log", edits: []string{
		"/var/lib/portcullis/audit.log", "$PWD/other.log --allow-simulated-tee --no-guard --listen 127.0.0.1:1414 --db other.db &\n" +
			"other=$!; await curl -s http://127.0.0.1:1414/healthz; kill $other; wait $other; grep -c started other.log",
	}, want: "1"},
	{page: "docs/audit.md", begins: "portcullis audit verify", edits: []string{
		"is it whole, and whose is it? exit code 3: no", "", "what is in it; --json for programs", "| tail -1",
	}, want: "certificate-issued|head-signed|manifest-set"},
	{page: "docs/command-line.md", begins: "source <(", edits: []string{"/usr/local/share/man/man1", "man1"}, want: "wrote|^$"},
	{page: "docs/command-line.md", begins: "portcullis connect", want: "from web"},
	{page: "docs/guest-placement.md", begins: "portcullis generate", edits: []string{
		"-o out/", "--reference-values values.json -o out/", "app.yaml", "app.yaml; grep -c cc_init_data out/app.yaml",
	}, want: "(?m)^1$", before: "mkdir guest; cp *.yaml *.rego values.json guest; cd guest; mv shop.yaml app.yaml"},
	{page: "docs/images.md", begins: "portcullis coordinator-yaml", edits: []string{
		"@sha256:... ...", "@sha256:" + digest + " --policy policy.rego --reference-values values.json -o out/", "@sha256:...", "@sha256:" + digest,
		"deploy.yaml", "shop.yaml && cat coordinator.yaml out/* | grep -c registry.example.com.*@sha256:" + digest,
	}, want: "(?m)^[3-9]$", before: "mkdir images; cp *.yaml *.rego values.json images; cd images; rm coordinator.yaml"},
	{page: "docs/pinning.md", begins: "portcullis generate", want: "wrote .*manifest.json", before: "mkdir pin; cp *.yaml *.rego values.json pin; cd pin"},
	{page: "docs/recovery.md", begins: "portcullis keygen", edits: []string{
		"\nportcullis generate", "\nportcullis keygen -o bob.pem; portcullis keygen -o carol.pem\nportcullis generate",
		"...", "--policy policy.rego --reference-values values.json coordinator.yaml shop.yaml && jq .SeedshareThreshold manifest.json",
	}, before: "mkdir owners; cp *.yaml *.rego values.json owners; cd owners", want: "(?m)^2$"},
	{page: "docs/recovery.md", begins: "openssl x509", edits: []string{"base64 -w0", "base64 -w0 >rootkey; grep -c -F \"$(cat rootkey)\" share-*.json"}, want: "^1$"},
	{page: "docs/recovery.md", begins: "portcullis recover", edits: []string{
		"alice.pem", "seedshare-owner.pem", "share-3f0e7a9d2c4b6f80-91a2b3c4.json", "share-*.json",
	}, want: "needs no recovery"},
	{page: "docs/successors.md", begins: "digest=", edits: []string{">> mesh-ca.pem", ">> mesh-ca.pem; grep -c BEGIN mesh-ca.pem"}, want: "^2$"},
	{page: "docs/verify.md", begins: "portcullis verify", want: "wrote mesh-ca.pem, root-ca.pem, history, report.html"},
}

// world is a Coordinator at which a manifest was set whose overlap with the one before is not over, and a workload of the first one.
const world = `
exec 2>&1
set -e
cat >shop.yaml <<'EOF'
apiVersion: v1
kind: Service
metadata: {name: web, namespace: example}
spec:
  selector: {app: web}
  ports: [{port: 8080}]
---
apiVersion: v1
kind: Pod
metadata:
  name: web
  namespace: example
  labels: {app: web}
  annotations:
    contrast.edgeless.systems/servicemesh-ingress: web#8080#false
spec:
  runtimeClassName: kata-qemu-snp
  containers: [{name: web, image: shop.example/web:1.0}]
EOF
printf 'package agent_policy\n\ndefault AllowRequestsFailingPolicy := true\n' >policy.rego
simtee init tee
m=$(printf '5a%.0s' {1..48})
jq -n --rawfile root tee/root.pem --arg m $m '{Simulated: [{RootCA: $root, Measurement: $m,
  MinimumTCB: {BootLoader: 0, TEE: 0, SNP: 0, Microcode: 0}}]}' >values.json
portcullis coordinator-yaml --replicas 1 --image example.com/c@sha256:$(printf '0%.0s' {1..64}) >coordinator.yaml
portcullis generate --policy policy.rego --reference-values values.json -o out/ coordinator.yaml shop.yaml
jq '.Successors = {MaxOverlap: "1h"}' manifest.json >new && mv new manifest.json
machine() { rm -f machine.log; simtee serve --world tee --host-data $1 --measurement $m >machine.log & machine=$!; await grep serving machine.log; }
machine $(jq -r '.Policies | to_entries[] | select(.value.Role == "coordinator").key' manifest.json)
coordinator --allow-simulated-tee --no-guard --listen 127.0.0.1:1313 --db coordinator.db --audit-log audit.log 2>coordinator.log &
await curl -s http://127.0.0.1:1313/healthz
portcullis set -c 127.0.0.1
portcullis verify -c 127.0.0.1
mkdir web
kill $machine; wait $machine
machine $(jq -r '.Policies | to_entries[] | select(.value.SANs[0]? == "web").key' manifest.json)
initializer --coordinator 127.0.0.1 --dir web 2>web.log &
await grep stored web.log
kill $machine; wait $machine
machine $(jq -r '.Policies | to_entries[] | select(.value.Role == "coordinator").key' manifest.json)
echo from web >hello
openssl s_server -accept 127.0.0.1:8080 -cert web/tls-config/certChain.pem -cert_chain web/tls-config/certChain.pem \
  -key web/tls-config/key.pem -WWW >server.log 2>&1 &
await openssl s_client -connect 127.0.0.1:8080 </dev/null
cp mesh-ca.pem before.pem
cp manifest.json before.json
sed -i s/web:1.0/web:2.0/ shop.yaml
portcullis generate --policy policy.rego -o out/ coordinator.yaml shop.yaml
portcullis set -c 127.0.0.1
set +e`

// Names of the pages stand for what is on this machine.
var everywhere = strings.NewReplacer(
	"-c coordinator.example.com", "-c 127.0.0.1", "coordinator.example.com:1313", "127.0.0.1:1313",
	"web.example.com:8080 -- curl http://{}/", "--identity web 127.0.0.1:8080 -- curl -s http://{}/hello",
	"--genpolicy genpolicy", "--policy policy.rego",
)

func TestTheCommandsOfOtherPagesRun(t *testing.T) {
	var blocks []block
	for _, name := range pages(t) {
		blocks = append(blocks, shellBlocks(name, read(t, name))...)
	}
	if len(blocks) < 20 {
		t.Fatalf("only %d blocks were found", len(blocks))
	}
	met := make(map[string]bool)
	commands, tried := []string{world}, []block{{"the world of these pages", world}}
	wants := []string{"now enforces"}
blocks:
	for _, b := range blocks {
		for _, c := range cannot {
			if b.page == c.page && strings.HasPrefix(b.text, c.begins) {
				met[c.page+c.begins] = true
				continue blocks
			}
		}
		for _, r := range runs {
			if b.page == r.page && strings.HasPrefix(b.text, r.begins) {
				met[r.page+r.begins] = true
				text := everywhere.Replace(b.text)
				for i := 0; i < len(r.edits); i += 2 {
					if !strings.Contains(text, r.edits[i]) {
						t.Errorf("%s: there is no %q in\n%s", b.page, r.edits[i], text)
					}
					text = strings.ReplaceAll(text, r.edits[i], r.edits[i+1])
				}
				// Each in a folder as the one before found it; the mesh CA of before is the one with a successor.
				prepare := r.before
				if b.page == "docs/successors.md" || strings.HasPrefix(b.text, "portcullis connect") {
					prepare = "cp before.pem mesh-ca.pem"
				}
				if strings.HasPrefix(b.text, "portcullis connect") {
					text = strings.ReplaceAll(text, "-c 127.0.0.1 --manifest manifest.json", "--mesh-ca mesh-ca.pem")
				}
				commands, tried, wants = append(commands, "( exec 2>&1; "+prepare+"\n"+text+" )"), append(tried, b), append(wants, r.want)
				continue blocks
			}
		}
		t.Errorf("%s: nobody knows whether this runs: say how in runs, or why not in cannot\n%s", b.page, b.text)
	}
	for _, c := range cannot {
		if !met[c.page+c.begins] {
			t.Errorf("%s has no block any more that begins with %q", c.page, c.begins)
		}
	}
	for _, r := range runs {
		if !met[r.page+r.begins] {
			t.Errorf("%s has no block any more that begins with %q", r.page, r.begins)
		}
	}
	outputs, codes := shell(t, t.TempDir(), commands)
	for i, b := range tried {
		switch {
		case i >= len(codes):
			t.Fatalf("%s: it did not end:\n%s\n%s", b.page, b.text, strings.Join(outputs[min(i, len(outputs)):], ""))
		case !regexp.MustCompile(wants[i]).MatchString(strings.TrimSpace(outputs[i])):
			t.Errorf("%s:\n%s\nexits with %d and prints\n%s\nwant %s", b.page, commands[i], codes[i], outputs[i], wants[i])
		}
	}
}

func TestABlockThatNobodyKnowsIsFound(t *testing.T) {
	all := shellBlocks("x", "text\n\n    portcullis a\n    b\n\ntext\n\n    not: a command\n\n```sh\nmake x\n```\n\n```yaml\nmake: x\n```\n")
	if len(all) != 2 || all[0].text != "portcullis a\nb" || all[1].text != "make x" {
		t.Fatalf("%+v", all)
	}
}
