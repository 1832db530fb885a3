package cli

import (
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// What stands for a flag's value when a shell completes it. Files are those with one of the endings, or any.
type completes struct {
	folder, anyFile bool
	files           []string // endings
}

var (
	nothing = completes{} // a person types it: a name, an address, a number
	folder  = completes{folder: true}
	anyFile = completes{anyFile: true}
)

func files(endings ...string) completes { return completes{files: endings} }

// completions are the flags that take a value, of all commands. Those that choose among words have their own.
var completions = map[string]completes{
	"manifest":             files("json"),
	"reference-values":     files("json"),
	"share":                files("json"),
	"policy":               files("rego"),
	"genpolicy":            anyFile,
	"genpolicy-settings":   files("json"),
	"genpolicy-rules":      files("rego"),
	"genpolicy-config-map": files("yaml", "yml"),
	"workload-owner-key":   files("pem", "pub"),
	"seedshare-owner-key":  files("pub", "pem"),
	"key":                  files("pem"),
	"mesh-ca":              files("pem"),
	"root-ca":              files("pem"),
	"html":                 files("html"),
	"yaml":                 files("yaml", "yml", "json"),
	"signature":            anyFile,
	"output":               anyFile,
	"ovmf":                 anyFile,
	"kernel":               anyFile,
	"initrd":               anyFile,
	"event-log":            anyFile,
	"collateral-dir":       folder,

	"coordinator": nothing, "coordinator-host": nothing, "listen": nothing, "identity": nothing, "namespace": nothing,
	"runtime-class": nothing, "image-initializer": nothing, "image-meshproxy": nothing, "seedshare-threshold": nothing,
	"timeout": nothing, "report-data": nothing, "nonce": nothing, "previous": nothing, "append": nothing, "vcpus": nothing,
	"vcpu-signature": nothing, "features": nothing, "ingress": nothing, "egress": nothing, "admin-port": nothing,
	"egress-policy": nothing, "probes": nothing, "former-owners": nothing, "image": nothing, "replicas": nothing, "store": nothing,
	"head": nothing, "genpolicy-timeout": nothing,
}

// completedArguments are those of commands that take files, by the command's path without portcullis.
var completedArguments = map[string]completes{
	"generate":         files("yaml", "yml", "json"),
	"lint":             files("yaml", "yml", "json"),
	"inspect-evidence": anyFile,
	"audit verify":     anyFile,
	"audit show":       anyFile,
	"man":              folder,
}

func (c completes) function() cobra.CompletionFunc {
	return func(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
		switch {
		case c.folder:
			return nil, cobra.ShellCompDirectiveFilterDirs
		case c.anyFile:
			return nil, cobra.ShellCompDirectiveDefault
		case len(c.files) > 0:
			return c.files, cobra.ShellCompDirectiveFilterFileExt
		}
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
}

// complete tells shells what may follow, for cmd and all commands below it.
func complete(cmd *cobra.Command) {
	cmd.LocalFlags().VisitAll(func(f *pflag.Flag) {
		if _, own := cmd.GetFlagCompletionFunc(f.Name); f.Value.Type() != "bool" && !own {
			_ = cmd.RegisterFlagCompletionFunc(f.Name, completions[f.Name].function())
		}
	})
	if cmd.ValidArgsFunction == nil && len(cmd.ValidArgs) == 0 && !cmd.HasSubCommands() {
		cmd.ValidArgsFunction = completedArguments[strings.TrimPrefix(cmd.CommandPath(), "portcullis ")].function()
	}
	for _, sub := range cmd.Commands() {
		complete(sub)
	}
}
