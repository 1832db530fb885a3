package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
)

// image is a container's root and what is started in it.
type image struct {
	name, description string
	layers            []layer
}

// layer is one concern: what changes less often lies below, so that an update fetches what changed.
type layer struct {
	name  string
	files []file
}

// inputs are where the parts of the images lie.
type inputs struct {
	bin     string // folder of the programs that `make build` made
	license string // Portcullis' own
	envoy   string
	libc    string // Debian's package
}

// images are all there are. Each runs as root without root's powers, as generate and coordinator-yaml declare it: the key
// that the Initializer writes is root's alone, and a capability in a container is kept by root only. Envoy is the mesh
// proxy's child, under an id of its own.
func images(in inputs) ([]image, error) {
	programs := map[string]file{}
	for _, name := range []string{"initializer", "meshproxy", "coordinator"} {
		content, err := static(filepath.Join(in.bin, name))
		if err != nil {
			return nil, err
		}
		programs[name] = program("/usr/bin/"+name, content)
	}
	envoy, err := readEnvoy(in.envoy, in.libc)
	if err != nil {
		return nil, err
	}
	terms, err := os.ReadFile(in.license)
	if err != nil {
		return nil, err
	}
	license := data("/usr/share/doc/portcullis/LICENSE", terms)
	roots := []file{data("/etc/ssl/certs/ca-certificates.crt", mozillaRoots())}
	// The folders are where volumes come: a root that cannot be written has no other place for them.
	return []image{
		{"initializer", "Obtains a pod's mesh credentials and renews them.", []layer{
			{"base", base("/contrast/")},
			{"certificates", roots}, // a pinned Coordinator's evidence takes what AMD and Intel publish over TLS
			{"program", []file{programs["initializer"], license}},
		}},
		{"meshproxy", "Runs the pod's Envoy and lifts the guard for it.", []layer{
			{"base", slices.Concat(base("/contrast/", "/run/portcullis/"), []file{
				data("/etc/passwd", []byte("root:x:0:0:root:/:/nonexistent\nenvoy:x:1337:1337:Envoy:/:/nonexistent\n")),
				data("/etc/group", []byte("root:x:0:\nenvoy:x:1337:\n")),
			})},
			{"envoy", envoy},
			{"program", []file{programs["meshproxy"], license}},
		}},
		{"coordinator", "Verifies evidence and certifies pods.", []layer{
			{"base", base("/var/lib/portcullis/")},
			{"certificates", roots},
			{"program", []file{programs["coordinator"], license}},
		}},
	}, nil
}

// base is what a container runtime expects of every root: places to mount on.
func base(folders ...string) []file {
	var files []file
	for _, name := range append([]string{"/dev/", "/proc/", "/sys/"}, folders...) {
		files = append(files, folder(name))
	}
	return files
}

// libraries are the parts of glibc that the pinned Envoy is linked to, as the package names them.
var libraries = []string{"libc.so.6", "libdl.so.2", "libm.so.6", "libpthread.so.0", "librt.so.1"}

const (
	libraryFolder = "/lib/x86_64-linux-gnu/"
	loader        = "ld-linux-x86-64.so.2"
)

// readEnvoy is Envoy with what it is linked to.
func readEnvoy(path, deb string) ([]file, error) {
	envoy, err := pinned(path, "envoy")
	if err != nil {
		return nil, err
	}
	if err := checkLinked(envoy, append(slices.Clone(libraries), loader)); err != nil {
		return nil, fmt.Errorf("read how %s is linked: %w", path, err)
	}
	wanted := map[string]int64{libraryFolder + loader: 0o755, "/usr/share/doc/libc6/copyright": 0o644}
	for _, name := range libraries {
		wanted[libraryFolder+name] = 0o644
	}
	glibc, err := pinned(deb, "libc6_")
	if err != nil {
		return nil, err
	}
	files, err := fromPackage(glibc, wanted)
	if err != nil {
		return nil, fmt.Errorf("take glibc from %s: %w", deb, err)
	}
	return append(files, program("/usr/bin/envoy", envoy), link("/lib64/"+loader, libraryFolder+loader)), nil
}
