package generate

import (
	"bytes"
	"context"
	"errors"
	"fmt"
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

// Genpolicy runs Kata's own tool for every pod. Its value is the program's path.
type Genpolicy string

// Policy runs the program with the object on its standard input and the raw policy on its standard output.
func (program Genpolicy) Policy(ctx context.Context, object []byte) (string, error) {
	// Exec with ctx kills the program; WaitDelay ends the wait for children that keep its pipes open.
	cmd := exec.CommandContext(ctx, string(program), "--raw-out")
	cmd.WaitDelay = 5 * time.Second
	cmd.Stdin = bytes.NewReader(object)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("run %s --raw-out: %w: %s", string(program), err, lastLine(stderr.String()))
	}
	if stdout.Len() > initdata.MaxSize {
		return "", fmt.Errorf("run %s: its policy has %d bytes, the limit is %d", string(program), stdout.Len(), initdata.MaxSize)
	}
	if strings.TrimSpace(stdout.String()) == "" {
		return "", fmt.Errorf("run %s: it wrote no policy: %s", string(program), lastLine(stderr.String()))
	}
	return stdout.String(), nil
}

func lastLine(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return lines[len(lines)-1]
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
