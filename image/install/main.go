// Command install lays what image/files.txt lists into a root. The image, the system extension, the package and the unit tree
// are all laid out by it, also in builds that have nothing but Go: it is one file, and takes the standard library alone.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

func main() {
	var in inputs
	sets := flag.String("sets", "", "the `sets` of files.txt to install, separated by spaces")
	flag.StringVar(&in.only, "only", "", "install only what comes from this `folder` of the repository, and links")
	flag.StringVar(&in.repo, "from", ".", "the repository's `folder`")
	flag.StringVar(&in.envoy, "envoy", "", "the `file` that $ENVOY stands for")
	flag.StringVar(&in.agent, "agent", "", "the `file` that $AGENT stands for")
	to := flag.String("to", "", "the root's `folder`")
	flag.Parse()
	syscall.Umask(0o022) // for folders
	in.sets = strings.Fields(*sets)
	if flag.NArg() > 0 || len(in.sets) == 0 || *to == "" {
		fmt.Fprintln(os.Stderr, "install: want --sets and --to, and no arguments but flags")
		os.Exit(2)
	}
	if err := install(in, *to); err != nil {
		fmt.Fprintln(os.Stderr, "install:", err)
		os.Exit(1)
	}
}

type inputs struct {
	repo         string
	sets         []string
	only         string
	envoy, agent string // may be empty where no wanted set has them
}

// An entry is a line of files.txt: a file with its mode, or a link.
type entry struct {
	set, to, from, target string
	mode                  os.FileMode
}

func install(in inputs, root string) error {
	list, err := os.ReadFile(filepath.Join(in.repo, "image/files.txt"))
	if err != nil {
		return err
	}
	entries, err := parse(string(list))
	if err != nil {
		return fmt.Errorf("image/files.txt: %w", err)
	}
	installed := 0
	for _, e := range entries {
		if !slices.Contains(in.sets, e.set) || e.target == "" && in.only != "" && !strings.HasPrefix(e.from, in.only+"/") {
			continue
		}
		if err := e.install(in, root); err != nil {
			return fmt.Errorf("%s: %w", e.to, err)
		}
		installed++
	}
	if installed == 0 {
		return fmt.Errorf("image/files.txt has nothing of %s", strings.Join(in.sets, ", "))
	}
	return nil
}

// parse reads files.txt, and refuses what it does not understand.
func parse(list string) ([]entry, error) {
	var entries []entry
	var faults []error
	number := 0
	for line := range strings.Lines(list) {
		number++
		fields := strings.Fields(line)
		if len(fields) == 0 || strings.HasPrefix(fields[0], "#") {
			continue
		}
		e := entry{}
		switch {
		case len(fields) == 4:
			e.from = fields[3]
		case len(fields) == 5 && fields[3] == "->":
			e.target = fields[4]
		default:
			faults = append(faults, fmt.Errorf("line %d: want SET MODE DESTINATION SOURCE, or -> TARGET for a source", number))
			continue
		}
		mode, err := strconv.ParseUint(fields[1], 8, 9)
		if err != nil || !filepath.IsAbs(fields[2]) || filepath.Clean(fields[2]) != fields[2] {
			faults = append(faults, fmt.Errorf("line %d: want an octal mode and an absolute destination", number))
			continue
		}
		e.set, e.mode, e.to = fields[0], os.FileMode(mode), fields[2]
		entries = append(entries, e)
	}
	return entries, errors.Join(faults...)
}

func (e entry) install(in inputs, root string) error {
	to := filepath.Join(root, e.to)
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	if e.target != "" {
		return os.Symlink(e.target, to)
	}
	from := filepath.Join(in.repo, e.from)
	switch e.from {
	case "$ENVOY":
		from = in.envoy
	case "$AGENT":
		from = in.agent
	}
	source, err := os.Open(from)
	if err != nil {
		return err
	}
	defer source.Close()
	if info, err := source.Stat(); err != nil || !info.Mode().IsRegular() {
		return fmt.Errorf("%s is no file", from)
	}
	target, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, e.mode)
	if err != nil {
		return err
	}
	if _, err := io.Copy(target, source); err != nil {
		return errors.Join(err, target.Close())
	}
	// Whatever the umask.
	return errors.Join(target.Chmod(e.mode), target.Close())
}
