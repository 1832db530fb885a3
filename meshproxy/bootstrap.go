package meshproxy

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"portcullis.dev/portcullis/meshproxy/config"
	"portcullis.dev/portcullis/meshproxy/confine"
	"portcullis.dev/portcullis/meshproxy/envoy"
)

// A bootstrap is made in a process of its own, which ends: what the protobuf library learns of Envoy's messages for that, some 2 MiB, it
// keeps for the life of a process, and the supervisor is in every pod.

// argvBootstrap is such a process' name.
const argvBootstrap = "portcullis-make-bootstrap"

const bootstrapTimeout = 30 * time.Second

type bootstrapOrder struct {
	Mesh    config.Values
	Options envoy.Options
}

// Launch returns at once in a process that this package did not start. In one that becomes Envoy, or makes its bootstrap, it never
// returns. It is the first thing that a program does which runs a mesh proxy.
func Launch() {
	confine.Launch()
	if os.Args[0] != argvBootstrap {
		return
	}
	if err := writeBootstrap(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

func writeBootstrap() error {
	var order bootstrapOrder
	if err := json.NewDecoder(os.Stdin).Decode(&order); err != nil {
		return err
	}
	cfg, err := order.Mesh.Parse()
	if err != nil {
		return err
	}
	made, err := envoy.Make(cfg, order.Options)
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(made)
}

// makeBootstrap has Envoy's bootstrap made. Probes are not Envoy's.
func makeBootstrap(ctx context.Context, cfg *config.Config, o envoy.Options) (*envoy.Made, error) {
	order, err := json.Marshal(bootstrapOrder{config.Values{
		Ingress: cfg.IngressString(), Egress: cfg.EgressString(), AdminPort: cfg.AdminString(), EgressPolicy: cfg.EgressPolicy.String(),
	}, o})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, bootstrapTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/proc/self/exe")
	cmd.Args, cmd.Env = []string{argvBootstrap}, []string{}
	var out, said bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(order), &out, &said
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("make Envoy's bootstrap: %w: %s", err, strings.TrimSpace(said.String()))
	}
	made := new(envoy.Made)
	if err := json.Unmarshal(out.Bytes(), made); err != nil {
		return nil, fmt.Errorf("make Envoy's bootstrap: %w", err)
	}
	return made, nil
}
