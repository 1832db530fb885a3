package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"debug/elf"
	_ "embed"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/ulikunitz/xz"
	"golang.org/x/crypto/x509roots/fallback/bundle"
)

// pins are the digests of what others built, as sha256sum writes and checks them.
//
//go:embed pins.sha256
var pins string

// pinned reads a file, and refuses one that is not the pinned one whose name begins so. The file's own name may be another.
func pinned(file, name string) ([]byte, error) {
	content, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	got := fmt.Sprintf("%x", sha256.Sum256(content))
	for line := range strings.Lines(pins) {
		want, pin, _ := strings.Cut(strings.TrimSpace(line), "  ")
		if !strings.HasPrefix(pin, name) {
			continue
		}
		if got != want {
			return nil, fmt.Errorf("%s has the SHA-256 %s, and %s of %s is pinned", file, got, want, pin)
		}
		return content, nil
	}
	return nil, fmt.Errorf("%s: nothing of the name %s is pinned in pins.sha256", file, name)
}

// static reads a program, and refuses one that would not start in a root without libraries.
func static(file string) ([]byte, error) {
	content, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	f, err := parseELF(content)
	if err != nil {
		return nil, fmt.Errorf("read the program %s: %w", file, err)
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP || p.Type == elf.PT_DYNAMIC {
			return nil, fmt.Errorf("%s is linked dynamically: want what `make build` makes", file)
		}
	}
	return content, nil
}

// checkLinked refuses a program that wants another library than those.
func checkLinked(content []byte, libraries []string) error {
	f, err := parseELF(content)
	if err != nil {
		return err
	}
	needed, err := f.ImportedLibraries()
	if err != nil {
		return err
	}
	for _, name := range needed {
		if !slices.Contains(libraries, name) {
			return fmt.Errorf("it is linked to %s, and the image has %s", name, strings.Join(libraries, ", "))
		}
	}
	return nil
}

func parseELF(content []byte) (*elf.File, error) {
	f, err := elf.NewFile(bytes.NewReader(content))
	if err != nil {
		return nil, err
	}
	if f.Machine != elf.EM_X86_64 || f.Type != elf.ET_EXEC && f.Type != elf.ET_DYN {
		return nil, fmt.Errorf("it is of type %v for %v: want a program for x86-64", f.Type, f.Machine)
	}
	return f, nil
}

// fromPackage takes the wanted files, with those modes, out of a Debian package.
func fromPackage(deb []byte, wanted map[string]int64) ([]file, error) {
	archive, err := packed(deb)
	if err != nil {
		return nil, err
	}
	var files []file
	for reader := tar.NewReader(archive); ; {
		header, err := reader.Next()
		if err == io.EOF {
			break
		} else if err != nil {
			return nil, err
		}
		name := path.Join("/", header.Name)
		mode, ok := wanted[name]
		if !ok || header.Typeflag != tar.TypeReg {
			continue
		}
		content, err := io.ReadAll(reader)
		if err != nil {
			return nil, err
		}
		files = append(files, file{name: name, mode: mode, content: content})
	}
	if len(files) != len(wanted) {
		return nil, fmt.Errorf("%d of %d files are there", len(files), len(wanted))
	}
	return files, nil
}

// packed is the archive of a Debian package's files. See deb(5): an ar archive, whose member data.tar.xz it is.
func packed(deb []byte) (io.Reader, error) {
	const header = 60 // of a member: name 16 bytes, 32 of no matter here, size 10, and an end
	rest, ok := bytes.CutPrefix(deb, []byte("!<arch>\n"))
	for ok && len(rest) >= header {
		name := strings.TrimRight(string(rest[:16]), " /")
		size, err := strconv.Atoi(strings.TrimRight(string(rest[48:58]), " "))
		if err != nil || size < 0 || size > len(rest)-header {
			break
		}
		if name == "data.tar.xz" {
			return xz.NewReader(bytes.NewReader(rest[header : header+size]))
		}
		rest = rest[min(header+size+size%2, len(rest)):]
	}
	return nil, errors.New("it is no Debian package with a data.tar.xz")
}

// mozillaRoots are Mozilla's roots as Go's own module of them has them, pinned by go.sum. Left out are those that Mozilla
// trusts under a condition: a file of certificates has no word for it.
func mozillaRoots() []byte {
	var roots bytes.Buffer
	for root := range bundle.Roots() {
		if root.Constraint == nil {
			pem.Encode(&roots, &pem.Block{Type: "CERTIFICATE", Bytes: root.Certificate})
		}
	}
	return roots.Bytes()
}
