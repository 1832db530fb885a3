package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"portcullis.dev/portcullis/deploy"
)

func newCoordinatorYAML() *cobra.Command {
	var c deploy.Coordinator
	cmd := &cobra.Command{
		Use:   "coordinator-yaml --image IMAGE",
		Short: "Print the Coordinator's Kubernetes YAML",
		Long: `Coordinator-yaml prints what a Coordinator takes in a cluster: a StatefulSet and its Services, a service account that may read
and add ConfigMaps, where its history is, a disruption budget and a network policy. Read it, change what is to be changed, and give
it to generate together with the workloads' YAML.

With --store bbolt there is one replica, whose history is on a volume of its own (docs/coordinator.md).`,
		Example: `  portcullis coordinator-yaml --image registry.example.com/coordinator@sha256:... > coordinator.yaml
  portcullis generate --genpolicy genpolicy --reference-values values.json coordinator.yaml shop.yaml
  kubectl apply -f coordinator.yaml`,
		Args: arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if c.Store == deploy.StoreBolt && !cmd.Flags().Changed("replicas") {
				c.Replicas = 1
			}
			if err := c.Check(); err != nil {
				return usageOf(cmd, err)
			}
			if !c.Pinned() {
				fmt.Fprintf(cmd.ErrOrStderr(), "warning: image %s is not named by its digest, so what runs under the name can change: "+
					"write %s@sha256:...\n", c.Image, c.Image)
			}
			return c.Write(cmd.OutOrStdout())
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&c.Image, "image", "", "image of the Coordinator, by its digest")
	flags.StringVarP(&c.Namespace, "namespace", "n", "", "namespace of the Coordinator, better one of its own (default: none is named, so kubectl decides)")
	flags.IntVar(&c.Replicas, "replicas", 3, "how many replicas, each with the seed in its memory")
	flags.StringVar(&c.RuntimeClass, "runtime-class", "kata-qemu-snp", "confidential runtime class of its pods")
	flags.StringVar(&c.Store, "store", deploy.StoreKubernetes,
		"where the history is: "+deploy.StoreKubernetes+" (ConfigMaps), or "+deploy.StoreBolt+" (a volume, for one replica)")
	return cmd
}
