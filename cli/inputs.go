package cli

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"portcullis.dev/portcullis/generate"
)

// input is one file of YAML that is named on the command line, or found in a folder that is.
type input struct {
	path string
	// name is the file's under an output folder: as it lies in the folder that was named.
	name string
	// found says that nobody named the file itself.
	found bool
}

// extensions are those of the files that a folder is searched for.
var extensions = []string{".yaml", ".yml", ".json"}

// findInputs finds the files that args mean: files, folders with all that is below them, patterns that no shell expanded,
// and - for standard input. What it leaves out of a folder it says. notInput are files that are no YAML of the caller's
// even where they lie among it.
func findInputs(cmd *cobra.Command, args []string, notInput ...string) ([]input, error) {
	var all []input
	for _, arg := range args {
		found, err := findInput(cmd, arg, notInput)
		if err != nil {
			return nil, err
		}
		all = append(all, found...)
	}
	seen := make(map[string]input)
	var inputs []input
	for _, in := range all {
		key := in.path
		if real, err := filepath.EvalSymlinks(in.path); err == nil {
			key = real
		}
		if abs, err := filepath.Abs(key); err == nil && in.path != stdio {
			key = abs
		}
		other, twice := seen[key]
		switch {
		case !twice:
			seen[key] = in
			inputs = append(inputs, in)
		case in.found || other.found:
		case in.path == other.path || filepath.Clean(in.path) == filepath.Clean(other.path):
			return nil, usageOf(cmd, fmt.Errorf("%s is given twice", in.path))
		default:
			return nil, usageOf(cmd, fmt.Errorf("%s and %s are one file", other.path, in.path))
		}
	}
	return inputs, nil
}

func findInput(cmd *cobra.Command, arg string, notInput []string) ([]input, error) {
	if arg == stdio {
		return []input{{path: arg}}, nil
	}
	info, err := os.Stat(arg)
	switch {
	case err == nil && info.IsDir():
		return searchFolder(cmd, arg, notInput)
	case errors.Is(err, fs.ErrNotExist) && strings.ContainsAny(arg, "*?["):
		matches, err := filepath.Glob(arg)
		if err != nil {
			return nil, usageOf(cmd, fmt.Errorf("%q is neither a file nor a pattern: %w", arg, err))
		}
		if len(matches) == 0 {
			return nil, &problem{fmt.Errorf("no file is called %s", arg), exitFailed, "a pattern is as in a shell: * ? [a-z]; a folder means all below it"}
		}
		var all []input
		for _, match := range matches {
			found, err := findInput(cmd, match, notInput)
			if err != nil {
				return nil, err
			}
			for i := range found {
				found[i].found = true
			}
			all = append(all, found...)
		}
		return all, nil
	}
	return []input{{path: arg, name: filepath.Base(arg)}}, nil // reading it says what is wrong with it
}

// searchFolder finds the YAML below a folder, in the order of names. Hidden files and folders are an editor's or a tool's,
// and a link to a folder may lead anywhere.
func searchFolder(cmd *cobra.Command, folder string, notInput []string) ([]input, error) {
	var inputs []input
	var skipped []string
	err := filepath.WalkDir(folder, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if path == folder {
			return nil
		}
		if strings.HasPrefix(entry.Name(), ".") {
			if entry.IsDir() {
				skipped = append(skipped, path+"/")
				return fs.SkipDir
			}
			if isInput(path) {
				skipped = append(skipped, path)
			}
			return nil
		}
		info, err := os.Stat(path)
		switch {
		case entry.IsDir():
			if sameAsAny(path, notInput) {
				skipped = append(skipped, path+"/")
				return fs.SkipDir
			}
			return nil
		case err == nil && info.IsDir():
			skipped = append(skipped, path+"/ (a link)")
			return nil
		case !isInput(path):
			return nil
		case sameAsAny(path, notInput):
			skipped = append(skipped, path)
			return nil
		}
		name, err := filepath.Rel(folder, path)
		if err != nil {
			return err
		}
		inputs = append(inputs, input{path, name, true})
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("search the folder: %w", err)
	}
	if len(skipped) > 0 {
		fmt.Fprintln(cmd.ErrOrStderr(), "left out:", strings.Join(skipped, ", "))
	}
	if len(inputs) == 0 {
		return nil, &problem{
			fmt.Errorf("no YAML lies in %s", folder), exitFailed,
			"wanted are files that end in " + strings.Join(extensions, ", "),
		}
	}
	return inputs, nil
}

func isInput(path string) bool { return slices.Contains(extensions, filepath.Ext(path)) }

func sameAsAny(path string, others []string) bool {
	info, err := os.Stat(path)
	if err != nil {
		return false
	}
	return slices.ContainsFunc(others, func(other string) bool {
		o, err := os.Stat(other)
		return err == nil && os.SameFile(info, o)
	})
}

func readInputs(cmd *cobra.Command, inputs []input) ([]generate.File, error) {
	files := make([]generate.File, len(inputs))
	for i, in := range inputs {
		var text []byte
		var err error
		name := in.path
		if in.path == stdio {
			text, err = io.ReadAll(cmd.InOrStdin())
			name = "<stdin>"
		} else {
			text, err = os.ReadFile(in.path)
		}
		if err != nil {
			return nil, fmt.Errorf("read the YAML: %w", err)
		}
		files[i] = generate.File{Name: name, Text: text}
	}
	return files, nil
}
