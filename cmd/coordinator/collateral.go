package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"

	"portcullis.dev/portcullis/attestation"
	"portcullis.dev/portcullis/attestation/collateral"
	"portcullis.dev/portcullis/cmd/internal/command"
)

const collateralUsage = `Usage: coordinator collateral --dir DIR [--product NAME]... [--fmspc HEX]... [EVIDENCE FILE]...

Fetches what AMD and Intel publish into the folder that the Coordinator gets as --collateral-dir, and names what it could not
get. Revocation lists, TCB info and QE identity are fetched anew each time: run it more often than they expire, within days.
A file is evidence as JSON; what it takes to judge evidence like that is fetched, the chip's own certificate included.

`

// maxEvidence bounds a file of evidence.
const maxEvidence = 1 << 20

// prefetch fills the folder of collateral.
func prefetch(ctx context.Context, args []string) (err error) {
	dir, urls, err := parseCollateral(args)
	if errors.Is(err, flag.ErrHelp) {
		return nil
	}
	if err != nil {
		return &command.UsageError{Err: err}
	}
	cache, err := collateral.New(collateral.Config{Dir: dir, Log: command.Logger("coordinator")})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, cache.Close()) }()
	return cache.Refresh(ctx, urls)
}

// parseCollateral returns the folder and what is to be in it, each URL once.
func parseCollateral(args []string) (dir string, urls []string, err error) {
	seen := map[string]bool{}
	add := func(more []string, err error) error {
		for _, url := range more {
			if !seen[url] {
				seen[url] = true
				urls = append(urls, url)
			}
		}
		return err
	}
	flags := flag.NewFlagSet("coordinator collateral", flag.ContinueOnError)
	flags.SetOutput(io.Discard) // an error is one line, and command.Main prints it
	flags.StringVar(&dir, "dir", "", "`folder` to fill")
	flags.Func("product", "`name` of a line of AMD processors: Milan, Genoa, Turin; repeats", func(name string) error {
		return add(collateral.SNP(name))
	})
	flags.Func("fmspc", "model of an Intel platform, 12 `digits`; repeats", func(fmspc string) error {
		return add(collateral.TDX(fmspc))
	})
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			fmt.Fprint(os.Stdout, collateralUsage)
			flags.SetOutput(os.Stdout)
			flags.PrintDefaults()
		}
		return "", nil, err
	}
	for _, name := range flags.Args() {
		e, err := readEvidence(name)
		if err == nil {
			err = add(collateral.ForEvidence(e))
		}
		if err != nil {
			return "", nil, fmt.Errorf("%s: %w", name, err)
		}
	}
	switch {
	case dir == "":
		return "", nil, errors.New("no folder: want --dir")
	case len(urls) == 0:
		return "", nil, errors.New("nothing to fetch: want --product, --fmspc or a file of evidence")
	}
	return dir, urls, nil
}

func readEvidence(name string) (e attestation.Evidence, err error) {
	f, err := os.Open(name)
	if err != nil {
		return e, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxEvidence))
	if err != nil {
		return e, err
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	return e, d.Decode(&e)
}
