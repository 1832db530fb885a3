package cli

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"github.com/rogpeppe/go-internal/diff"
	"github.com/spf13/cobra"

	"portcullis.dev/portcullis/generate"
)

// change is a file that would be written, or standard output.
type change struct {
	name     string
	old, new []byte // old is nil where there is no file
	secret   bool
}

func (c change) differs() bool { return c.old == nil || !bytes.Equal(c.old, c.new) }

// preview shows what would be written, and writes nothing.
func (f *generateFlags) preview(cmd *cobra.Command, changes []change) error {
	var outdated []string
	for _, c := range changes {
		if c.differs() {
			outdated = append(outdated, c.name)
		}
	}
	out := cmd.OutOrStdout()
	if f.diff {
		for _, c := range changes {
			if err := c.write(out, coloured(out)); err != nil {
				return err
			}
		}
	}
	if !f.check {
		if len(outdated) == 0 {
			fmt.Fprintln(cmd.ErrOrStderr(), "everything is up to date")
		}
		return nil
	}
	if f.json {
		if err := writeJSON(out, struct {
			Outdated []string `json:"outdated"`
		}{append([]string{}, outdated...)}); err != nil {
			return err
		}
	}
	if len(outdated) == 0 {
		return nil
	}
	return &problem{
		fmt.Errorf("not up to date: %s", strings.Join(outdated, ", ")), exitNo,
		"the same command without --check writes them, and with --diff shows how",
	}
}

// write writes the change as a unified diff, which patch -p0 applies.
func (c change) write(w io.Writer, colour bool) error {
	if !c.differs() {
		return nil
	}
	if c.secret { // and made anew by the next run
		_, err := fmt.Fprintf(w, "new: %s (a secret key, not shown)\n", c.name)
		return err
	}
	oldName := c.name
	if c.old == nil {
		oldName = os.DevNull
	}
	text := diff.Diff(oldName, c.old, c.name, c.new)
	if text == nil { // a file that is to be empty
		return nil
	}
	// Without its first line, which says nothing that the next two do not.
	_, text, _ = bytes.Cut(text, []byte("\n"))
	if !colour {
		_, err := w.Write(text)
		return err
	}
	for line := range bytes.Lines(text) {
		line, end := bytes.TrimSuffix(line, []byte("\n")), "\n"
		if _, err := fmt.Fprintf(w, "%s%s%s%s", styleOf(line), line, noStyle, end); err != nil {
			return err
		}
	}
	return nil
}

func styleOf(line []byte) string {
	switch {
	case bytes.HasPrefix(line, []byte("--- ")), bytes.HasPrefix(line, []byte("+++ ")):
		return bold
	case bytes.HasPrefix(line, []byte("@@")):
		return cyan
	case bytes.HasPrefix(line, []byte("+")):
		return green
	case bytes.HasPrefix(line, []byte("-")):
		return red
	}
	return ""
}

// changesOf says how outputs, and what goes to standard output, differ from what is there.
func changesOf(outputs []generate.Output, result *generate.Result, files []generate.File, place []string) ([]change, error) {
	var changes []change
	for _, o := range outputs {
		old, err := os.ReadFile(o.Path)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("read what would be replaced: %w", err)
		}
		changes = append(changes, change{o.Path, old, o.Data, o.Mode == modeSecret})
	}
	for i, file := range result.Files {
		if place[i] == stdio {
			changes = append(changes, change{file.Name, append([]byte{}, files[i].Text...), file.Text, false})
		}
	}
	return changes, nil
}
