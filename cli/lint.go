package cli

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"portcullis.dev/portcullis/generate"
	"portcullis.dev/portcullis/guest/initdata"
	"portcullis.dev/portcullis/meshproxy/config"
	"portcullis.dev/portcullis/pki"
)

func newLint() *cobra.Command {
	var pods podFlags
	var given config.Values
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "lint [flags] [FILE|FOLDER|PATTERN...]",
		Short: "Explain in words what annotations mean",
		Long: `Lint reads annotations as generate does and says what each lets in and where it leads. It writes nothing, and needs no
policy. It explains the pods of files, or the values given as flags.`,
		Example: `  portcullis lint shop.yaml
  portcullis lint --ingress 'web#8080#false##metrics#7890#true'
  portcullis lint --egress 'billing#127.137.0.1:8081#billing-svc:8080'`,
		RunE: func(cmd *cobra.Command, args []string) error {
			values := slices.ContainsFunc(flagsOfValues, cmd.Flags().Changed)
			switch {
			case values && len(args) > 0:
				return usageOf(cmd, fmt.Errorf("give files or values, not both"))
			case values:
				c, err := given.Parse()
				if err != nil {
					return err
				}
				if asJSON {
					return writeJSON(cmd.OutOrStdout(), sentences(c))
				}
				return writeSentences(cmd.OutOrStdout(), "", sentences(c))
			case len(args) == 0:
				return usageOf(cmd, fmt.Errorf("give a file, or --%s", strings.Join(flagsOfValues, ", --")))
			}
			if err := pods.checkPlacement(); err != nil {
				return usageOf(cmd, err)
			}
			return lintFiles(cmd, args, pods.options(), asJSON)
		},
	}
	pods.register(cmd)
	for i, value := range []struct {
		to   *string
		what string
	}{
		{&given.Ingress, "value of the annotation servicemesh-ingress"},
		{&given.Egress, "value of the annotation servicemesh-egress"},
		{&given.AdminPort, "value of the annotation servicemesh-admin-interface-port"},
		{&given.EgressPolicy, "value of the annotation servicemesh-egress-policy"},
		{&given.Probes, "value of the mesh proxy's argument --probes, as generate writes it"},
	} {
		cmd.Flags().StringVar(value.to, flagsOfValues[i], "", value.what)
	}
	flagJSON(cmd, &asJSON)
	return cmd
}

var flagsOfValues = []string{"ingress", "egress", "admin-port", "egress-policy", "probes"}

func lintFiles(cmd *cobra.Command, args []string, options generate.Options, asJSON bool) error {
	inputs, err := findInputs(cmd, args)
	if err != nil {
		return err
	}
	files, err := readInputs(cmd, inputs)
	if err != nil {
		return err
	}
	result, err := generate.Inspect(files, options)
	if err != nil {
		return err
	}
	for _, warning := range result.Warnings {
		fmt.Fprintln(cmd.ErrOrStderr(), "warning:", warning)
	}
	if asJSON {
		type explained struct {
			podReport
			Meaning []string `json:"meaning"`
		}
		all := []explained{}
		for i, p := range result.Pods {
			all = append(all, explained{reportPods(result)[i], explain(p)})
		}
		return writeJSON(cmd.OutOrStdout(), all)
	}
	if len(result.Pods) == 0 {
		fmt.Fprintln(cmd.ErrOrStderr(), "no pod of a confidential runtime class")
	}
	for i, p := range result.Pods {
		if i > 0 {
			fmt.Fprintln(cmd.OutOrStdout())
		}
		fmt.Fprintf(cmd.OutOrStdout(), "%s %s/%s (%s:%d)\n", p.Kind, p.Namespace, p.Name, p.File, p.Line)
		if err := writeSentences(cmd.OutOrStdout(), "  ", explain(p)); err != nil {
			return err
		}
	}
	return nil
}

func writeSentences(w io.Writer, indent string, lines []string) error {
	for _, line := range lines {
		if _, err := fmt.Fprintln(w, indent+line); err != nil {
			return err
		}
	}
	return nil
}

// explain says what becomes of a pod.
func explain(p generate.Pod) []string {
	if p.Config.Role == initdata.Coordinator {
		return []string{"This is the Coordinator. It raises its own guard and lets in its own port only."}
	}
	lines := []string{"Its identities are: " + identities(p)}
	if id := p.Policy.WorkloadSecretID; id != "" {
		lines = append(lines, fmt.Sprintf("It receives the workload secret %q.", id))
	}
	switch {
	case p.Config.Placement == initdata.Guest && p.Initializer:
		lines = append(lines, "Initializer and mesh proxy are services of the podVM's image, which its initdata configures; no container is injected.")
	}
	switch {
	case !p.Initializer:
		return append(lines, "Nothing is injected. The gate stays down until the pod's own software fetches credentials and lifts it.")
	case p.Mesh == nil:
		return append(lines, "It is not in the mesh: once it has its credentials the guard goes away and everything comes in as it is.")
	}
	return append(lines, sentences(p.Mesh)...)
}

// sentences say what a mesh configuration means.
func sentences(c *config.Config) []string {
	var lines []string
	add := func(format string, args ...any) { lines = append(lines, fmt.Sprintf(format, args...)) }
	for _, e := range c.Ingress {
		switch {
		case e.UDP:
			add("in   udp %d (%s): as it is, in plaintext", e.Port, e.Name)
		case e.TLS == config.Plaintext:
			add("in   tcp %d (%s): as it is, in plaintext; the proxy does not touch it", e.Port, e.Name)
		case e.TLS == config.ServerTLS:
			add("in   tcp %d (%s): TLS, from anybody; no client certificate is asked for", e.Port, e.Name)
		case len(e.Identities) > 0:
			add("in   tcp %d (%s): mutual TLS, only from %s", e.Port, e.Name, anyOf(e.Identities))
		default:
			add("in   tcp %d (%s): mutual TLS, from every pod of the mesh", e.Port, e.Name)
		}
	}
	if len(c.Probes) > 0 {
		add("in   tcp %d: plaintext, from anybody, who may have the proxy make these probes and learn whether they succeed:", config.ProbePort)
	}
	for _, p := range c.Probes {
		add("       %s of container %s: %s", p.Kind, p.Container, question(p))
	}
	switch c.Mode {
	case config.Mesh:
		add("in   every other tcp port: mutual TLS, from every pod of the mesh")
		add("in   everything else: dropped")
	case config.Disabled:
		add("in   everything: as it is, in plaintext; the guard goes away")
	default:
		add("in   nothing: the gate stays down")
	}
	for _, e := range c.Egress {
		peer := "any pod of the mesh"
		if !e.Any {
			peer = anyOf(e.Identities)
		}
		add("out  %s (%s): mutual TLS to %s, which must be %s", e.Listen, e.Name, e.Remote, peer)
	}
	switch c.EgressPolicy {
	case config.EgressOpen:
		add("out  everything else: as the application sends it")
	case config.EgressClosedDNS:
		add("out  port 53 (tcp and udp), to any address: as the application sends it")
		add("out  everything else: dropped, from when the mesh proxy starts")
	default:
		add("out  everything else: dropped, from when the mesh proxy starts")
	}
	if c.AdminPort != 0 {
		add("in   tcp %d is the proxy's admin view, behind mutual TLS unless it is listed above", c.AdminPort)
	}
	return lines
}

// question is what a probe asks the application.
func question(p config.Probe) string {
	var text string
	switch p.Check {
	case config.CheckTCP:
		text = fmt.Sprintf("does it accept a connection on port %d", p.Port)
	case config.CheckGRPC:
		what := "the server"
		if p.Service != "" {
			what = fmt.Sprintf("service %q", p.Service)
		}
		text = fmt.Sprintf("does gRPC health on port %d say that %s is SERVING", p.Port, what)
	default:
		text = fmt.Sprintf("does GET %s on port %d over %s answer with 200 to 399", p.Target, p.Port, strings.ToUpper(p.Check.String()))
	}
	var headers []string
	for _, h := range p.Headers {
		headers = append(headers, h.Name) // a value may be a credential
	}
	if len(headers) > 0 {
		text += ", with the declared " + strings.Join(headers, " and ")
	}
	return fmt.Sprintf("%s, within %v", text, p.Timeout)
}

func anyOf(ids []pki.SAN) string {
	names := make([]string, len(ids))
	for i, id := range ids {
		names[i] = id.String()
	}
	return strings.Join(names, " or ")
}
