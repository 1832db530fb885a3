// Portcullis is the command line of workload owners and data owners.
package main

import (
	"context"
	"os"

	"portcullis.dev/portcullis/cli"
	"portcullis.dev/portcullis/cmd/internal/command"
)

func main() {
	command.Main("portcullis", func(ctx context.Context, args []string) error {
		return cli.Run(ctx, args, cli.Streams{In: os.Stdin, Out: os.Stdout, Err: os.Stderr})
	})
}
