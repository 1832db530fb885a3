package generate

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os/exec"
	"strings"
	"time"

	"portcullis.dev/portcullis/guest/initdata"
)

// Policy makes the Kata agent's policy (Rego) for a pod.
type Policy interface {
	// Policy returns the policy text for the pods of one Kubernetes object, given as YAML.
	Policy(ctx context.Context, object []byte) (string, error)
}

// FixedPolicy is one policy for every pod.
type FixedPolicy string

// Policy returns the text, which must not be empty: an agent without a policy would admit anything.
func (p FixedPolicy) Policy(context.Context, []byte) (string, error) {
	if strings.TrimSpace(string(p)) == "" {
		return "", errors.New("the policy is empty")
	}
	return string(p), nil
}

// Genpolicy runs Kata's own tool, once for every pod.
type Genpolicy struct {
	// Program is its path, or its name in PATH.
	Program string
	// Settings, Rules and ConfigMap are the files of its options -j, -p and -c; where empty, what it takes itself.
	Settings, Rules, ConfigMap string
	// Timeout bounds one run; it reads whole images. Zero means DefaultTimeout.
	Timeout time.Duration
}

// DefaultTimeout is that of one run of genpolicy.
const DefaultTimeout = 15 * time.Minute

// Policy runs the program with the object on its standard input and the raw policy on its standard output.
func (p Genpolicy) Policy(ctx context.Context, object []byte) (string, error) {
	timeout := cmp.Or(p.Timeout, DefaultTimeout)
	within, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	args := []string{"--raw-out"}
	for _, option := range []struct{ name, value string }{
		{"--json-settings-path", p.Settings}, {"--rego-rules-path", p.Rules}, {"--config-map-file", p.ConfigMap},
	} {
		if option.value != "" {
			args = append(args, option.name, option.value)
		}
	}
	cmd := exec.CommandContext(within, p.Program, args...)
	// The context kills the program; WaitDelay ends the wait for children that keep its pipes open.
	cmd.WaitDelay = 5 * time.Second
	cmd.Stdin = bytes.NewReader(object)
	stdout, stderr := &bounded{limit: initdata.MaxSize}, &bounded{limit: 1 << 20}
	cmd.Stdout, cmd.Stderr = stdout, stderr
	err := cmd.Run()
	what := strings.Join(append([]string{"run", p.Program}, args...), " ")
	switch {
	case errors.Is(err, exec.ErrNotFound), errors.Is(err, fs.ErrNotExist), errors.Is(err, fs.ErrPermission):
		return "", missingProgram{fmt.Errorf("%s: %w", what, err)}
	case ctx.Err() != nil:
		return "", fmt.Errorf("%s: %w", what, context.Cause(ctx))
	case within.Err() != nil:
		return "", fmt.Errorf("%s: it was not done after %v%s", what, timeout, lastWords(stderr))
	case err != nil:
		return "", fmt.Errorf("%s: %v%s", what, err, lastWords(stderr)) // its exit code is not ours
	case stdout.more:
		return "", fmt.Errorf("%s: its policy has more than %d bytes", what, initdata.MaxSize)
	case strings.TrimSpace(stdout.String()) == "":
		return "", fmt.Errorf("%s: it wrote no policy%s", what, lastWords(stderr))
	}
	return stdout.String(), nil
}

// Version is what the program says of itself; empty where it says nothing. Old ones do not.
func (p Genpolicy) Version(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, p.Program, "--version")
	cmd.WaitDelay = time.Second
	stdout := &bounded{limit: 4 << 10}
	cmd.Stdout = stdout
	if err := cmd.Run(); err != nil {
		return ""
	}
	return strings.Join(strings.Fields(stdout.String()), " ")
}

// lastWords are what the program wrote to standard error, the last lines of it.
func lastWords(stderr *bounded) string {
	text := strings.TrimSpace(stderr.String())
	if text == "" {
		return ", and it said nothing"
	}
	lines := strings.Split(text, "\n")
	return ":\n  " + strings.Join(lines[max(0, len(lines)-maxLines):], "\n  ")
}

const maxLines = 20

// bounded keeps the first bytes of what is written.
type bounded struct {
	bytes.Buffer
	limit int
	more  bool
}

func (b *bounded) Write(p []byte) (int, error) {
	room := max(b.limit-b.Len(), 0)
	b.more = b.more || len(p) > room
	_, _ = b.Buffer.Write(p[:min(len(p), room)]) // never fails
	return len(p), nil
}

// missingProgram says where genpolicy comes from.
type missingProgram struct{ error }

func (e missingProgram) Unwrap() error { return e.error }

func (missingProgram) Hint() string {
	return "genpolicy is a tool of Kata Containers: give its path, or use --policy FILE for one policy that you wrote yourself"
}

var errNoPolicy = noPolicyError{}

type noPolicyError struct{}

func (noPolicyError) Error() string {
	return "no policy: every confidential pod needs one, which the Kata agent in it enforces"
}

func (noPolicyError) ExitCode() int { return 2 }

func (noPolicyError) Hint() string {
	return "give --genpolicy PATH to make one for each pod with Kata's genpolicy, or --policy FILE to use one file for all"
}
