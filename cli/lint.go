package cli

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"portcullis.dev/portcullis/generate"
	"portcullis.dev/portcullis/guest/initdata"
	"portcullis.dev/portcullis/meshproxy/config"
	"portcullis.dev/portcullis/pki"
)

func newLint() *cobra.Command {
	var pods podFlags
	var ingress, egress, adminPort, egressPolicy string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "lint [flags] [FILE...]",
		Short: "Explain in words what annotations mean",
		Long: `Lint reads annotations as generate does and says what each lets in and where it leads. It writes nothing, and needs no
policy. It explains the pods of files, or the values given as flags.`,
		Example: `  portcullis lint shop.yaml
  portcullis lint --ingress 'web#8080#false##metrics#7890#true'
  portcullis lint --egress 'billing#127.137.0.1:8081#billing-svc:8080'`,
		RunE: func(cmd *cobra.Command, args []string) error {
			values := cmd.Flags().Changed("ingress") || cmd.Flags().Changed("egress") || cmd.Flags().Changed("admin-port") ||
				cmd.Flags().Changed("egress-policy")
			switch {
			case values && len(args) > 0:
				return usageOf(cmd, fmt.Errorf("give files or values, not both"))
			case values:
				c, err := config.Parse(ingress, egress, adminPort, egressPolicy)
				if err != nil {
					return err
				}
				if asJSON {
					return writeJSON(cmd.OutOrStdout(), sentences(c))
				}
				return writeSentences(cmd.OutOrStdout(), "", sentences(c))
			case len(args) == 0:
				return usageOf(cmd, fmt.Errorf("give a file, or --ingress, --egress, --admin-port or --egress-policy"))
			}
			return lintFiles(cmd, args, pods.options(), asJSON)
		},
	}
	pods.register(cmd)
	cmd.Flags().StringVar(&ingress, "ingress", "", "value of the annotation servicemesh-ingress")
	cmd.Flags().StringVar(&egress, "egress", "", "value of the annotation servicemesh-egress")
	cmd.Flags().StringVar(&adminPort, "admin-port", "", "value of the annotation servicemesh-admin-interface-port")
	cmd.Flags().StringVar(&egressPolicy, "egress-policy", "", "value of the annotation servicemesh-egress-policy")
	flagJSON(cmd, &asJSON)
	return cmd
}

func lintFiles(cmd *cobra.Command, args []string, options generate.Options, asJSON bool) error {
	files, err := readInputs(cmd, args)
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

func anyOf(ids []pki.SAN) string {
	names := make([]string, len(ids))
	for i, id := range ids {
		names[i] = id.String()
	}
	return strings.Join(names, " or ")
}
