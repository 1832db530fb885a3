package cli

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"portcullis.dev/portcullis/attestation"
	"portcullis.dev/portcullis/generate"
	"portcullis.dev/portcullis/guest/initdata"
	"portcullis.dev/portcullis/manifest"
	"portcullis.dev/portcullis/pki"
)

const (
	defaultManifest = "manifest.json"
	defaultOwnerKey = "workload-owner.pem"
	stdio           = "-"

	modeFile   fs.FileMode = 0o644
	modeFolder fs.FileMode = 0o755
	modeSecret fs.FileMode = 0o600
)

// generateFlags are the command line of generate.
type generateFlags struct {
	podFlags
	output          string
	manifest        string
	policy          string
	referenceValues string
	ownerKey        string
	seedshareKeys   []string
	threshold       int
	coordinatorHost string
	pinCoordinator  bool
	images          generate.Images
	json            bool
	diff            bool
	check           bool
	remove          bool
	partial         bool
	policySource    generate.Genpolicy
}

// podFlags say which pods are meant; generate and lint share them.
type podFlags struct {
	namespace      string
	runtimeClasses []string
	placement      string
}

func (f *podFlags) register(cmd *cobra.Command) {
	cmd.Flags().StringVarP(&f.namespace, "namespace", "n", "default", "namespace of objects that name none")
	cmd.Flags().StringArrayVar(&f.runtimeClasses, "runtime-class", nil,
		"one more prefix of confidential runtime classes, beside "+strings.Join(generate.RuntimeClasses, ", ")+"; repeatable")
	cmd.Flags().StringVar(&f.placement, "placement", string(initdata.Sidecar),
		"where Initializer and mesh proxy run: sidecar, in containers; or guest, as services of the podVM's image")
	_ = cmd.RegisterFlagCompletionFunc("placement", cobra.FixedCompletions(
		[]cobra.Completion{string(initdata.Sidecar), string(initdata.Guest)}, cobra.ShellCompDirectiveNoFileComp))
}

func (f *podFlags) options() generate.Options {
	return generate.Options{
		Placement:      initdata.Placement(f.placement),
		RuntimeClasses: append(append([]string{}, generate.RuntimeClasses...), f.runtimeClasses...),
		Namespace:      f.namespace,
	}
}

func newGenerate() *cobra.Command {
	f := new(generateFlags)
	cmd := &cobra.Command{
		Use:   "generate [flags] FILE|FOLDER|PATTERN...",
		Short: "Inject the mesh into Kubernetes YAML and write the manifest",
		Long: `Generate adds Initializer, mesh proxy and measured initdata to every pod of a confidential runtime class, and writes a
manifest with a policy for each. It changes nothing else in the files, comments included; running it again gives the same
bytes. Either everything is written or nothing is.

A folder means every .yaml, .yml and .json below it, but for what is hidden; a pattern is expanded also where the shell did not;
- is standard input. --diff shows what would be written, --check exits with 3 unless everything is up to date: both write
nothing. --remove takes out again what was injected, and leaves the manifest alone.

Annotations, on the object or its pod template:
  contrast.edgeless.systems/servicemesh-ingress     name#port[/udp]#disableTLS[#identities], joined by ##; or CLOSED, DISABLED
  contrast.edgeless.systems/servicemesh-egress      name#127.x.y.z:port#host:port[#identities], joined by ##
  contrast.edgeless.systems/servicemesh-admin-interface-port
  contrast.edgeless.systems/servicemesh-egress-policy   closed: nothing leaves but mutual TLS to egress entries
  contrast.edgeless.systems/servicemesh-access-log  "true": log every connection, not only those that are refused
  contrast.edgeless.systems/workload-secret-id      the pod receives a secret of this name
  contrast.edgeless.systems/skip-initializer        "true": inject nothing; the gate stays down
  contrast.edgeless.systems/pod-role                coordinator
  portcullis.dev/identities                         names that the pod has besides, joined by commas
  portcullis.dev/accept                             codes of hazards that were considered, joined by commas

What in a pod's own specification could open the gate is an error, what will not work behind it a warning. Each message has a
code: portcullis explain CODE says more.

A pod without a servicemesh annotation is not in the mesh: it gets credentials, and its ports are open once it has them.
With --pin-coordinator, pods join no mesh but that of the Coordinator among the files, under manifests of these owners; without
it they join the mesh of any Coordinator that answers (docs/pinning.md).
The manifest's policies of these pods are replaced, and those of pods that are in none of the files are removed, unless --partial
says that the files are a part of the application. Policies that name no Pod, names that a person added, reference values,
owner keys and whatever else it says are kept. Where it lists no
owner yet, the key in --workload-owner-key becomes one, and is made when there is no such file. A new manifest also gets a
seed-share owner, who can recover a restarted Coordinator: the keys in --seedshare-owner-key, or else new ones in
` + defaultSeedshareKey + `. Seed-share owners cannot be changed once the manifest is set.`,
		Example: `  portcullis generate --policy policy.rego --reference-values values.json shop.yaml
  portcullis generate --genpolicy /opt/kata/bin/genpolicy -o out/ deploy/
  portcullis generate --policy policy.rego --diff shop.yaml
  portcullis generate --policy policy.rego --check deploy/ '*.yaml'
  portcullis generate --remove shop.yaml
  helm template shop | portcullis generate --genpolicy genpolicy - | kubectl apply -f -`,
		Args: arguments(cobra.MinimumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error { return f.run(cmd, args) },
	}
	flags := cmd.Flags()
	f.register(cmd)
	flags.StringVarP(&f.output, "output", "o", "", "file, or folder for several, to write to instead of in place; - is standard output")
	flags.StringVar(&f.manifest, "manifest", defaultManifest, "manifest to write, or to update")
	flags.StringVar(&f.policy, "policy", "", "Rego file that is the agent's policy of every pod")
	flags.StringVar(&f.policySource.Program, "genpolicy", "", "Kata's genpolicy, run once for every pod")
	flags.StringVar(&f.policySource.Settings, "genpolicy-settings", "", "genpolicy's settings file (its --json-settings-path)")
	flags.StringVar(&f.policySource.Rules, "genpolicy-rules", "", "genpolicy's Rego rules (its --rego-rules-path)")
	flags.StringVar(&f.policySource.ConfigMap, "genpolicy-config-map", "", "YAML of ConfigMaps and Secrets that pods refer to (genpolicy's --config-map-file)")
	flags.DurationVar(&f.policySource.Timeout, "genpolicy-timeout", generate.DefaultTimeout, "how long genpolicy may take for one pod")
	flags.StringVar(&f.referenceValues, "reference-values", "", "JSON file of reference values to add to the manifest's")
	flags.StringVar(&f.ownerKey, "workload-owner-key", "", "workload owner's key, PEM (default "+defaultOwnerKey+" beside the manifest)")
	flags.StringArrayVar(&f.seedshareKeys, "seedshare-owner-key", nil, "seed-share owner's keys, PEM, as portcullis keygen makes them; "+
		"repeatable (default for a new manifest: "+defaultSeedshareKey+" beside it)")
	flags.IntVar(&f.threshold, "seedshare-threshold", 0,
		"how many seed-share owners it takes to recover (default: more than half of them)")
	flags.StringVar(&f.coordinatorHost, "coordinator-host", "",
		"HOST[:PORT] of the Coordinator as pods see it (default: the Service that selects its pod, else coordinator)")
	flags.BoolVar(&f.pinCoordinator, "pin-coordinator", false,
		"pods join no mesh but that of the Coordinator in these files, under manifests of the manifest's workload owners")
	flags.StringVar(&f.images.Initializer, "image-initializer", "portcullis.dev/initializer:"+Version, "image of the Initializer")
	flags.StringVar(&f.images.Meshproxy, "image-meshproxy", "portcullis.dev/meshproxy:"+Version, "image of the mesh proxy")
	flags.BoolVar(&f.diff, "diff", false, "show what would change as a unified diff, and write nothing")
	flags.BoolVar(&f.check, "check", false, "write nothing; exit with 3 and name the files that are not up to date, if there are any")
	flags.BoolVar(&f.partial, "partial", false, "the files are a part of the application: keep the policies of pods that are in none of them")
	flags.BoolVar(&f.remove, "remove", false, "take out of the files what generate put in")
	flagJSON(cmd, &f.json)
	return cmd
}

func (f *generateFlags) run(cmd *cobra.Command, args []string) error {
	if err := f.contradiction(cmd); err != nil {
		return usageOf(cmd, err)
	}
	inputs, err := findInputs(cmd, args, f.manifest, f.referenceValues, f.output)
	if err != nil {
		return err
	}
	files, err := readInputs(cmd, inputs)
	if err != nil {
		return err
	}
	generate.BoundMemory(files)
	place, err := f.placeOutputs(inputs)
	if err != nil {
		return usageOf(cmd, err)
	}
	result, outputs, err := f.inject(cmd, files)
	if err != nil {
		return nothingWritten(err)
	}
	for i, file := range result.Files {
		if place[i] == stdio || place[i] == inputs[i].path && !file.Changed(files[i]) {
			continue
		}
		output := generate.Output{Path: place[i], Data: file.Text, Mode: modeFile}
		if place[i] == inputs[i].path {
			output.Read = files[i].Text
		}
		outputs = append(outputs, output)
	}
	for _, warning := range result.Warnings {
		fmt.Fprintln(cmd.ErrOrStderr(), "warning:", warning)
	}
	if f.diff || f.check {
		changes, err := changesOf(outputs, result, files, place)
		if err != nil {
			return err
		}
		return f.preview(cmd, changes)
	}
	for i := range place {
		if place[i] != inputs[i].path && place[i] != stdio && f.outputFolder() {
			if err := os.MkdirAll(filepath.Dir(place[i]), modeFolder); err != nil {
				return fmt.Errorf("make the output folder: %w", err)
			}
		}
	}
	if err := generate.Write(outputs); err != nil {
		return err
	}
	return f.report(cmd, result, place, outputs)
}

// contradiction finds flags that do not go together.
func (f *generateFlags) contradiction(cmd *cobra.Command) error {
	if f.policy != "" && f.policySource.Program != "" {
		return errors.New("give --policy or --genpolicy, not both")
	}
	for _, name := range []string{"genpolicy-settings", "genpolicy-rules", "genpolicy-config-map", "genpolicy-timeout"} {
		if cmd.Flags().Changed(name) && f.policySource.Program == "" {
			return fmt.Errorf("--%s belongs to --genpolicy", name)
		}
	}
	if f.policySource.Timeout <= 0 {
		return errors.New("--genpolicy-timeout: want more than nothing")
	}
	if err := f.checkPlacement(); err != nil {
		return err
	}
	if f.diff && f.json {
		return errors.New("give --diff or --json, not both")
	}
	if !f.remove {
		return nil
	}
	for _, name := range []string{
		"policy", "genpolicy", "genpolicy-settings", "genpolicy-rules", "genpolicy-config-map", "genpolicy-timeout", "partial", "placement", "manifest", "reference-values", "workload-owner-key", "seedshare-owner-key", "seedshare-threshold",
		"coordinator-host", "pin-coordinator", "image-initializer", "image-meshproxy",
	} {
		if cmd.Flags().Changed(name) {
			return fmt.Errorf("--%s has no meaning with --remove, which leaves the manifest alone", name)
		}
	}
	return nil
}

// inject makes the injected files, and the manifest and the keys to be written beside them. With --remove it makes the
// files without what was injected.
func (f *generateFlags) inject(cmd *cobra.Command, files []generate.File) (*generate.Result, []generate.Output, error) {
	options := f.options()
	if f.remove {
		result, err := generate.Remove(files, options)
		return result, nil, err
	}
	options.CoordinatorHost = f.coordinatorHost
	options.Images = f.images
	var err error
	if options.Policy, err = f.readPolicy(cmd); err != nil {
		return nil, nil, err
	}
	draft, err := f.readManifest(cmd)
	if err != nil {
		return nil, nil, err
	}
	if f.pinCoordinator { // to what the manifest will say
		if err := explainNoReferenceValues(draft.manifest); err != nil {
			return nil, nil, err
		}
		options.Pin = new(draft.manifest.Pin(attestation.PolicyHash{}))
	}
	options.Known = generate.KnownIdentities(draft.manifest, f.partial)
	result, err := generate.Inject(cmd.Context(), files, options)
	if err != nil {
		return nil, nil, err
	}
	var outputs []generate.Output
	if len(result.Pods) > 0 {
		if outputs, err = f.updateManifest(draft, result); err != nil {
			return nil, nil, err
		}
	}
	if f.pinCoordinator && f.policy != "" {
		result.Warnings = append(result.Warnings, fmt.Sprintf("PC1507: the pin holds only if %s pins the arguments of the Initializer: "+
			"otherwise the host can leave it away", f.policy))
	}
	return result, outputs, nil
}

// nothingWritten says so where several faults make a reader wonder.
func nothingWritten(err error) error {
	if faults, ok := errors.AsType[generate.Faults](err); ok && len(faults) > 1 {
		return fmt.Errorf("nothing was written: %w", err)
	}
	return err
}

func (f *podFlags) checkPlacement() error {
	switch initdata.Placement(f.placement) {
	case initdata.Sidecar, initdata.Guest:
		return nil
	}
	return fmt.Errorf("--placement %q, want %s or %s", f.placement, initdata.Sidecar, initdata.Guest)
}

// outputFolder says whether --output names a folder, that is there or is to be made.
func (f *generateFlags) outputFolder() bool {
	info, err := os.Stat(f.output)
	return err == nil && info.IsDir() || strings.HasSuffix(f.output, "/")
}

// placeOutputs says where each file goes.
func (f *generateFlags) placeOutputs(inputs []input) ([]string, error) {
	places := make([]string, len(inputs))
	folder := f.outputFolder()
	switch {
	case f.output == "":
		for i, in := range inputs {
			places[i] = in.path
		}
		return places, nil
	case len(inputs) == 1 && !folder:
		places[0] = f.output
		return places, nil
	case f.output == stdio:
		return nil, errors.New("--output - takes one file only")
	case !folder:
		return nil, fmt.Errorf("--output %s: several files need a folder, with a slash at the end to make it", f.output)
	}
	taken := make(map[string]string)
	for i, in := range inputs {
		if in.path == stdio {
			return nil, errors.New("standard input has no name to be written under in a folder")
		}
		if other, ok := taken[in.name]; ok {
			return nil, fmt.Errorf("%s and %s would both be %s", other, in.path, filepath.Join(f.output, in.name))
		}
		taken[in.name] = in.path
		places[i] = filepath.Join(f.output, in.name)
	}
	return places, nil
}

func (f *generateFlags) readPolicy(cmd *cobra.Command) (generate.Policy, error) {
	switch {
	case f.policySource.Program != "":
		return shownPolicy{cmd, f.policySource}, nil
	case f.policy != "":
		text, err := os.ReadFile(f.policy)
		if err != nil {
			return nil, fmt.Errorf("read the policy: %w", err)
		}
		return generate.FixedPolicy(text), nil
	}
	return nil, nil
}

// policyVersion is what genpolicy says of itself, empty without it.
func (f *generateFlags) policyVersion(cmd *cobra.Command) string {
	if f.policySource.Program == "" {
		return ""
	}
	if version := f.policySource.Version(cmd.Context()); version != "" {
		return version
	}
	return f.policySource.Program + " of an unknown version"
}

// shownPolicy tells people that genpolicy is at work: it reads whole images.
type shownPolicy struct {
	cmd  *cobra.Command
	next generate.Policy
}

func (p shownPolicy) Policy(ctx context.Context, object []byte) (string, error) {
	progress(p.cmd, "genpolicy is reading the images of the next pod ...")
	return p.next.Policy(ctx, object)
}

// draft is the manifest with all but its policies.
type draft struct {
	text     []byte // as it was, nil where there is none
	manifest *manifest.Manifest
	keys     []generate.Output // of owners, that were made for the manifest
}

func (f *generateFlags) readManifest(cmd *cobra.Command) (*draft, error) {
	text, err := os.ReadFile(f.manifest)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read the manifest: %w", err)
	}
	m, err := generate.ReadManifest(text)
	if err != nil {
		return nil, fmt.Errorf("read the manifest %s: %w", f.manifest, err)
	}
	if f.referenceValues != "" {
		values, err := os.ReadFile(f.referenceValues)
		if err != nil {
			return nil, fmt.Errorf("read the reference values: %w", err)
		}
		if err := generate.MergeReferenceValues(m, values); err != nil {
			return nil, fmt.Errorf("read the reference values %s: %w", f.referenceValues, err)
		}
	}
	var keys []generate.Output
	key, err := f.addOwner(cmd, m)
	if err != nil {
		return nil, err
	}
	if key != nil {
		keys = append(keys, *key)
	}
	shares, err := f.addSeedshareOwners(cmd, m, len(bytes.TrimSpace(text)) == 0)
	if err != nil {
		return nil, err
	}
	return &draft{text, m, append(keys, shares...)}, nil
}

// updateManifest returns the manifest, and the owners' keys that were made for it.
func (f *generateFlags) updateManifest(d *draft, result *generate.Result) ([]generate.Output, error) {
	notes, err := generate.UpdateManifest(d.manifest, result.Pods, f.partial)
	if err != nil {
		return nil, err
	}
	result.Warnings = append(result.Warnings, notes...)
	if err := explainIncomplete(d.manifest); err != nil {
		return nil, err
	}
	encoded, err := d.manifest.Encode()
	if err != nil {
		return nil, err
	}
	outputs := d.keys
	if !bytes.Equal(encoded, d.text) {
		outputs = append(outputs, generate.Output{
			Path: f.manifest, Data: encoded, Mode: modeFile, Read: d.text, Exclusive: d.text == nil,
		})
	}
	return outputs, nil
}

// addOwner lists the workload owner's key, and returns it as a file to be written when it is new.
func (f *generateFlags) addOwner(cmd *cobra.Command, m *manifest.Manifest) (*generate.Output, error) {
	path := f.ownerKey
	explicit := cmd.Flags().Changed("workload-owner-key")
	if !explicit {
		path = filepath.Join(filepath.Dir(f.manifest), defaultOwnerKey)
	}
	if len(m.WorkloadOwnerKeys) > 0 && !explicit {
		return nil, nil
	}
	text, err := os.ReadFile(path)
	switch {
	case err == nil:
		public, err := readOwnerPublicKey(path, text)
		if err != nil {
			return nil, err
		}
		return nil, generate.AddOwner(m, public)
	case !errors.Is(err, fs.ErrNotExist) || len(m.WorkloadOwnerKeys) > 0:
		return nil, fmt.Errorf("read the workload owner's key: %w", err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make the workload owner's key: %w", err)
	}
	encoded, err := pki.EncodePrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("make the workload owner's key: %w", err)
	}
	output := &generate.Output{Path: path, Data: encoded.Reveal(), Mode: modeSecret, Exclusive: true}
	return output, generate.AddOwner(m, &key.PublicKey)
}

// addSeedshareOwners lists the seed-share owners' keys, and returns the files of those that are new.
func (f *generateFlags) addSeedshareOwners(cmd *cobra.Command, m *manifest.Manifest, isNew bool) ([]generate.Output, error) {
	paths, byDefault := f.seedshareKeys, len(f.seedshareKeys) == 0 && isNew
	if byDefault {
		paths = []string{filepath.Join(filepath.Dir(f.manifest), defaultSeedshareKey)}
	}
	var outputs []generate.Output
	before := len(m.SeedshareOwnerKeys)
	for _, path := range paths {
		text, err := os.ReadFile(path)
		var public *pki.SeedsharePublicKey
		switch {
		case err == nil:
			if public, err = readSeedsharePublicKey(path, text); err != nil {
				return nil, err
			}
		case !errors.Is(err, fs.ErrNotExist) || !byDefault:
			return nil, fmt.Errorf("read the seed-share owner's key: %w", err)
		default:
			key, err := pki.NewSeedshareKey()
			if err != nil {
				return nil, err
			}
			files, err := seedshareKeyFiles(path, key)
			if err != nil {
				return nil, err
			}
			outputs, public = append(outputs, files...), key.Public()
		}
		if err := generate.AddSeedshareOwner(m, public); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
	}
	n := len(m.SeedshareOwnerKeys)
	switch {
	case cmd.Flags().Changed("seedshare-threshold"):
		m.SeedshareThreshold = f.threshold
	case n > before:
		m.SeedshareThreshold = n/2 + 1
	}
	return outputs, nil
}

func readSeedsharePublicKey(path string, text []byte) (*pki.SeedsharePublicKey, error) {
	if public, err := pki.ParseSeedsharePublicKey(text); err == nil {
		return public, nil
	}
	key, err := pki.ParseSeedshareKey(text)
	if err != nil {
		return nil, malformed("portcullis keygen makes one", "read the seed-share owner's key %s: %w", path, err)
	}
	return key.Public(), nil
}

func readOwnerPublicKey(path string, text []byte) (*ecdsa.PublicKey, error) {
	if public, err := pki.ParsePublicKey(text); err == nil {
		return public, nil
	}
	key, err := pki.ParsePrivateKey(text)
	if err != nil {
		return nil, malformed("a PKCS #8 private key or a public key, ECDSA on P-256 or P-384, in PEM",
			"read the workload owner's key %s: %w", path, err)
	}
	return &key.PublicKey, nil
}

// explainIncomplete says what a manifest needs that only the caller can give, in the words of this command.
func explainIncomplete(m *manifest.Manifest) error {
	if len(m.CoordinatorPolicies()) == 0 {
		return malformed("give the Coordinator's YAML too, annotated contrast.edgeless.systems/pod-role: coordinator",
			"no pod in these files is the Coordinator, so no manifest of theirs could ever be verified")
	}
	return explainNoReferenceValues(m)
}

func explainNoReferenceValues(m *manifest.Manifest) error {
	if m.ReferenceValues.Empty() {
		return malformed("give --reference-values FILE, or write them into the manifest; docs/manifest.md lists every field",
			"the manifest has no reference values, so no evidence could ever be accepted")
	}
	return nil
}

func (f *generateFlags) report(cmd *cobra.Command, result *generate.Result, place []string, outputs []generate.Output) error {
	summary := cmd.OutOrStdout()
	for i, file := range result.Files {
		if place[i] == stdio {
			summary = cmd.ErrOrStderr()
			if _, err := cmd.OutOrStdout().Write(file.Text); err != nil {
				return fmt.Errorf("write the YAML: %w", err)
			}
		}
	}
	written := make([]string, len(outputs))
	for i, o := range outputs {
		written[i] = o.Path
	}
	if f.json {
		return writeJSON(summary, reportOf(result, written, f.policyVersion(cmd)))
	}
	if len(result.Pods) == 0 && !f.remove {
		fmt.Fprintln(cmd.ErrOrStderr(), "no pod of a confidential runtime class: there is nothing to inject")
		return nil
	}
	switch {
	case f.remove: // such a pod has no policy any more
		for _, p := range result.Pods {
			fmt.Fprintf(summary, "taken out of %s %s/%s\n", p.Kind, p.Namespace, p.Name)
		}
	case len(result.Pods) > 0:
		if err := writePods(summary, result); err != nil {
			return err
		}
	}
	if version := f.policyVersion(cmd); version != "" && len(result.Pods) > 0 {
		fmt.Fprintln(summary, "policies by", version)
	}
	if len(written) == 0 {
		_, err := fmt.Fprintln(summary, "everything is up to date")
		return err
	}
	_, err := fmt.Fprintln(summary, "wrote", strings.Join(written, ", "))
	return err
}

func writePods(w io.Writer, result *generate.Result) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "POD\tGUARD\tPOLICY HASH\tIDENTITIES")
	for _, p := range result.Pods {
		fmt.Fprintf(table, "%s %s/%s\t%s\t%.12s\t%s\n", p.Kind, p.Namespace, p.Name, p.Config.Guard, p.Hash, identities(p))
	}
	return table.Flush()
}

func identities(p generate.Pod) string {
	if p.Policy.Role == manifest.RoleCoordinator {
		return "(the Coordinator)"
	}
	if len(p.Policy.SANs) == 0 {
		return "(none)"
	}
	names := make([]string, len(p.Policy.SANs))
	for i, san := range p.Policy.SANs {
		names[i] = san.String()
	}
	return strings.Join(names, " ")
}

type podReport struct {
	File       string   `json:"file"`
	Line       int      `json:"line"`
	Namespace  string   `json:"namespace"`
	Kind       string   `json:"kind"`
	Name       string   `json:"name"`
	Role       string   `json:"role,omitempty"`
	Guard      string   `json:"guard"`
	Placement  string   `json:"placement"`
	PolicyHash string   `json:"policyHash,omitempty"`
	Identities []string `json:"identities,omitempty"`
	SecretID   string   `json:"workloadSecretId,omitempty"`
}

func reportPods(result *generate.Result) []podReport {
	pods := make([]podReport, len(result.Pods))
	for i, p := range result.Pods {
		pods[i] = podReport{
			File: p.File, Line: p.Line, Namespace: p.Namespace, Kind: p.Kind, Name: p.Name,
			Role: string(p.Policy.Role), Guard: string(p.Config.Guard), Placement: string(p.Config.Placement), SecretID: string(p.Policy.WorkloadSecretID),
		}
		if p.Hash.Valid() {
			pods[i].PolicyHash = p.Hash.String()
		}
		for _, san := range p.Policy.SANs {
			pods[i].Identities = append(pods[i].Identities, san.String())
		}
	}
	return pods
}

func reportOf(result *generate.Result, written []string, genpolicy string) any {
	return struct {
		Pods     []podReport `json:"pods"`
		Warnings []string    `json:"warnings,omitempty"`
		Written  []string    `json:"written,omitempty"`
		// Genpolicy is the version of what made the policies.
		Genpolicy string `json:"genpolicy,omitempty"`
	}{reportPods(result), result.Warnings, written, genpolicy}
}
