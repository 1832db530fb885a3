package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"

	"portcullis.dev/portcullis/api"
	"portcullis.dev/portcullis/generate"
)

// advised is an error whose own words, and exit code, stay, and that gets a hint.
type advised struct {
	error
	hint string
}

func (e *advised) Unwrap() error { return e.error }
func (e *advised) Hint() string  { return e.hint }

// advise gives each error a hint that brings none: what to do about it is this command line's to know.
func advise(err error) error {
	if err == nil || hintOf(err) != "" {
		return err
	}
	if _, ok := errors.AsType[*exitError](err); ok { // said already, by the command that failed
		return err
	}
	return &advised{err, hintFor(err)}
}

func hintFor(err error) string {
	if refused, ok := errors.AsType[*api.VerifyError](err); ok {
		return hintForRefused(refused)
	}
	if _, ok := errors.AsType[generate.Faults](err); ok {
		return "portcullis explain CODE says more of a fault; docs/annotations.md explains every annotation"
	}
	for _, known := range []struct {
		err  error
		hint string
	}{
		{syscall.ENOSPC, "make room, then run it again: what was to be replaced is as it was"},
		{syscall.EROFS, "write elsewhere, where that can be written to"},
		{fs.ErrExist, "it is not replaced: somebody may need it. Take another name, or move it away"},
		{fs.ErrPermission, fmt.Sprintf("this runs as user %d: may it read, and write, there?", os.Getuid())},
		{fs.ErrNotExist, "is the path right?" + here()},
		{syscall.ENOTDIR, "is the path right?" + here()},
	} {
		if errors.Is(err, known.err) {
			return known.hint
		}
	}
	return "portcullis help explains each command, docs/ the rest"
}

// here is where relative paths begin.
func here() string {
	folder, err := os.Getwd()
	if err != nil {
		return ""
	}
	return " A relative one begins at " + folder
}

// hintForRefused is what to do about a Coordinator that is not what it must be.
func hintForRefused(refused *api.VerifyError) string {
	switch refused.Check {
	case "active manifest":
		return "none was set (portcullis set), or its owners set another: ask them for the newest, and read it before you rely on it"
	case "evidence", "policy hash":
		return "it runs other software, or elsewhere, than this manifest says: docs/attestation.md tells how to find out what differs"
	case "state":
		return "its seed-share owners run portcullis recover, docs/recovery.md"
	default:
		return "do not rely on this Coordinator, and keep what it answered"
	}
}
