// Package command is what every binary's main shares: signals, the log, and the exit codes that scripts rely on.
package command

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"unicode"
)

// The exit codes of every command. An error chooses its own with a method ExitCode() int; any other error exits Failed.
const (
	OK     = 0
	Failed = 1
	Usage  = 2 // usage or malformed input
	No     = 3 // a check was made and the answer is no
)

// Main runs a command until it returns or SIGINT or SIGTERM cancels its context, and exits with the error's code.
// An error is printed as one line; an error with a method Hint() string is followed by that hint on a line of its own.
func Main(name string, run func(ctx context.Context, args []string) error) {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	os.Exit(report(name, err))
}

// SecondSignal is closed by the second SIGINT or SIGTERM: whoever sends it does not want to wait for what the first one began.
func SecondSignal() <-chan struct{} {
	signals, second := make(chan os.Signal, 2), make(chan struct{})
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	go func() {
		<-signals
		<-signals
		close(second)
	}()
	return second
}

// Logger writes JSON lines to standard error, as log collectors of Kubernetes expect it.
func Logger(name string) *slog.Logger {
	return slog.New(slog.NewJSONHandler(os.Stderr, nil)).With("component", name)
}

// UsageError wraps what a person got wrong on the command line.
type UsageError struct{ Err error }

func (e *UsageError) Error() string { return e.Err.Error() }
func (e *UsageError) Unwrap() error { return e.Err }

// ExitCode is Usage.
func (e *UsageError) ExitCode() int { return Usage }

// printable is text without what a terminal obeys: parts of an error come from a hostile network.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if r != '\n' && r != '\t' && unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r) {
			return unicode.ReplacementChar
		}
		return r
	}, text)
}

func report(name string, err error) int {
	if err == nil {
		return OK
	}
	fmt.Fprintf(os.Stderr, "%s: %s\n", name, printable(err.Error()))
	if h, ok := errors.AsType[interface {
		error
		Hint() string
	}](err); ok {
		fmt.Fprintf(os.Stderr, "hint: %s\n", printable(h.Hint()))
	}
	if c, ok := errors.AsType[interface {
		error
		ExitCode() int
	}](err); ok {
		return c.ExitCode()
	}
	return Failed
}
