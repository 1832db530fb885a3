package cli

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"portcullis.dev/portcullis/generate"
)

// newMan is for whoever makes a package.
func newMan() *cobra.Command {
	return &cobra.Command{
		Use:   "man FOLDER",
		Short: "Write the manual pages",
		Long: `Man writes a manual page for each command into a folder, portcullis.1 and so on. The same release writes the same bytes
everywhere.`,
		Example: "  portcullis man /usr/local/share/man/man1",
		Args:    arguments(cobra.ExactArgs(1)),
		Hidden:  true,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := os.MkdirAll(args[0], modeFolder); err != nil {
				return fmt.Errorf("make the folder: %w", err)
			}
			return generate.Write(manualPages(cmd.Root(), args[0]))
		},
	}
}

func manualPages(cmd *cobra.Command, folder string) []generate.Output {
	if cmd.Hidden || cmd.Name() == "help" || cmd.Name() == "completion" {
		return nil
	}
	pages := []generate.Output{{
		Path: filepath.Join(folder, pageName(cmd)+".1"), Data: manualPage(cmd), Mode: modeFile,
	}}
	for _, sub := range cmd.Commands() {
		pages = append(pages, manualPages(sub, folder)...)
	}
	return pages
}

func pageName(cmd *cobra.Command) string { return strings.ReplaceAll(cmd.CommandPath(), " ", "-") }

// page is a manual page in the macros of man(7).
type page struct{ bytes.Buffer }

// manualPage is cmd's help as a manual page.
func manualPage(cmd *cobra.Command) []byte {
	cmd.InitDefaultHelpFlag()
	p := new(page)
	p.line(`.TH %s 1 "" "portcullis %s" "Portcullis"`, quoted(strings.ToUpper(pageName(cmd))), Version)
	p.line(".SH NAME")
	p.line(`%s \- %s`, roff(pageName(cmd)), roff(strings.ToLower(cmd.Short[:1])+cmd.Short[1:]))
	p.line(".SH SYNOPSIS")
	p.line(".B %s", roff(cmd.CommandPath()))
	if _, rest, _ := strings.Cut(cmd.UseLine(), cmd.CommandPath()); strings.TrimSpace(rest) != "" {
		p.line("%s", roff(strings.TrimSpace(rest)))
	}
	p.line(".SH DESCRIPTION")
	p.prose(cmd.Long)
	p.flags("OPTIONS", cmd.NonInheritedFlags())
	p.flags("OPTIONS OF EVERY COMMAND", cmd.InheritedFlags())
	if cmd.Example != "" {
		p.line(".SH EXAMPLES")
		p.verbatim(cmd.Example)
	}
	p.line(".SH SEE ALSO")
	var related []string
	if cmd.HasParent() {
		related = append(related, pageName(cmd.Parent()))
	}
	for _, sub := range cmd.Commands() {
		if !sub.Hidden && sub.Name() != "help" && sub.Name() != "completion" {
			related = append(related, pageName(sub))
		}
	}
	for i, name := range related {
		comma := ","
		if i == len(related)-1 {
			comma = ""
		}
		p.line(".BR %s (1)%s", roff(name), comma)
	}
	return p.Bytes()
}

func (p *page) line(format string, args ...any) { fmt.Fprintf(p, format+"\n", args...) }

// prose writes paragraphs; what is indented stays as it is.
func (p *page) prose(text string) {
	for i, paragraph := range strings.Split(strings.TrimSpace(text), "\n\n") {
		if i > 0 {
			p.line(".PP")
		}
		var asIs []string
		flush := func() {
			if len(asIs) > 0 {
				p.verbatim(strings.Join(asIs, "\n"))
				asIs = nil
			}
		}
		for line := range strings.Lines(paragraph) {
			line = strings.TrimSuffix(line, "\n")
			if strings.HasPrefix(line, "  ") {
				asIs = append(asIs, line)
				continue
			}
			flush()
			p.line("%s", roff(line))
		}
		flush()
	}
}

func (p *page) verbatim(text string) {
	p.line(".PP\n.nf")
	for line := range strings.Lines(text) {
		p.line("%s", roff(strings.TrimSuffix(line, "\n")))
	}
	p.line(".fi")
}

func (p *page) flags(title string, flags *pflag.FlagSet) {
	if !flags.HasAvailableFlags() {
		return
	}
	p.line(".SH %s", quoted(title))
	flags.VisitAll(func(f *pflag.Flag) {
		if f.Hidden {
			return
		}
		value, usage := pflag.UnquoteUsage(f)
		name := `\fB` + roff("--"+f.Name) + `\fP`
		if f.Shorthand != "" {
			name = `\fB` + roff("-"+f.Shorthand) + `\fP, ` + name
		}
		if value != "" {
			name += ` \fI` + roff(value) + `\fP`
		}
		p.line(".TP\n%s", name)
		switch f.DefValue {
		case "", "false", "[]", "0":
		default:
			usage += " (default " + f.DefValue + ")"
		}
		p.line("%s", roff(usage))
	})
}

// roff is text as troff takes it: no escape, no request, hyphens that can be copied.
func roff(text string) string {
	text = strings.NewReplacer(`\`, `\e`, "-", `\-`).Replace(text)
	if strings.HasPrefix(text, ".") || strings.HasPrefix(text, "'") {
		text = `\&` + text
	}
	return text
}

func quoted(text string) string { return `"` + strings.ReplaceAll(roff(text), `"`, `\(dq`) + `"` }
