// Command oci writes the OCI images of Portcullis' containers, as folders that every registry client can push: without a
// container runtime, without a registry, without the network. A pod's measured policy names its images by digest, so
// whoever wants to know what a digest stands for builds it again: the same sources give the same bytes, on any machine.
//
// The images hold programs and what these read, and no more: a shell in a confidential container is a tool for whoever
// breaks in, since nobody else is to come in there.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

func main() {
	var in inputs
	flags := flag.NewFlagSet("oci", flag.ExitOnError)
	flags.StringVar(&in.bin, "bin", "bin", "the folder of the built programs")
	flags.StringVar(&in.license, "license", "LICENSE", "Portcullis' license")
	flags.StringVar(&in.envoy, "envoy", "", "the pinned Envoy")
	flags.StringVar(&in.libc, "libc", "", "the pinned Debian package of glibc")
	version := flags.String("version", "", "Portcullis' version, such as v1.2.3")
	out := flags.String("out", "bin/oci", "the folder to write to")
	flags.Parse(os.Args[1:])
	if flags.NArg() > 0 || !regexp.MustCompile(`^v[0-9]+\.[0-9]+\.[0-9]+$`).MatchString(*version) {
		fmt.Fprintf(os.Stderr, "oci: want a --version such as v1.2.3, not %q, and no arguments but flags\n", *version)
		os.Exit(2)
	}
	digests, err := run(in, *version, *out)
	if err != nil {
		fmt.Fprintf(os.Stderr, "oci: write the images to %s: %v\n", *out, err)
		os.Exit(1)
	}
	for _, name := range slices.Sorted(maps.Keys(digests)) {
		fmt.Printf("%-12s %s %6.1f MB\n", name, digests[name].Digest, float64(digests[name].Size)/1e6)
	}
}

// built is what digests.json says of an image.
type built struct {
	Digest string `json:"digest"` // of the manifest: what a registry and a pod's policy call the image
	Size   int64  `json:"size"`   // in bytes, as it is pulled
	Layers []part `json:"layers"`
}

type part struct {
	Name   string `json:"name"`
	Digest string `json:"digest"`
	DiffID string `json:"diffID"` // of the archive, uncompressed
	Size   int64  `json:"size"`
}

// run writes a folder for each image, and digests.json, to out. Nothing is written if a part is missing or not what is wanted.
func run(in inputs, version, out string) (map[string]built, error) {
	all, err := images(in)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(out, 0o755); err != nil {
		return nil, err
	}
	digests := map[string]built{}
	for _, img := range all {
		b, err := img.write(version, filepath.Join(out, img.name))
		if err != nil {
			return nil, fmt.Errorf("image %s: %w", img.name, err)
		}
		digests[img.name] = b
	}
	list, err := json.MarshalIndent(digests, "", "  ")
	if err != nil {
		return nil, err
	}
	file := filepath.Join(out, "digests.json")
	if err := os.WriteFile(file+".new", append(list, '\n'), 0o644); err != nil {
		return nil, err
	}
	return digests, os.Rename(file+".new", file)
}

// write builds the image and puts it into dir as an OCI layout, whole or not at all.
func (img image) write(version, dir string) (built, error) {
	packed, layers, err := img.build(version)
	if err != nil {
		return built{}, err
	}
	digest, err := packed.Digest()
	if err != nil {
		return built{}, err
	}
	manifest, err := packed.Manifest()
	if err != nil {
		return built{}, err
	}
	raw, err := packed.RawManifest()
	if err != nil {
		return built{}, err
	}
	b := built{Digest: digest.String(), Size: int64(len(raw)) + manifest.Config.Size, Layers: layers}
	for _, l := range layers {
		b.Size += l.Size
	}
	next := dir + ".new"
	if err := os.RemoveAll(next); err != nil {
		return built{}, err
	}
	path, err := layout.Write(next, empty.Index)
	if err != nil {
		return built{}, err
	}
	if err := path.AppendImage(packed, layout.WithPlatform(v1.Platform{OS: "linux", Architecture: "amd64"})); err != nil {
		return built{}, err
	}
	if err := os.RemoveAll(dir); err != nil {
		return built{}, err
	}
	return b, os.Rename(next, dir)
}

func (img image) build(version string) (v1.Image, []part, error) {
	var adds []mutate.Addendum
	var parts []part
	epoch := v1.Time{Time: time.Unix(0, 0).UTC()}
	for _, l := range img.layers {
		packed, err := l.build()
		if err != nil {
			return nil, nil, err
		}
		digest, err := packed.Digest()
		if err != nil {
			return nil, nil, err
		}
		diffID, err := packed.DiffID()
		if err != nil {
			return nil, nil, err
		}
		size, err := packed.Size()
		if err != nil {
			return nil, nil, err
		}
		parts = append(parts, part{l.name, digest.String(), diffID.String(), size})
		adds = append(adds, mutate.Addendum{Layer: packed, History: v1.History{Created: epoch, CreatedBy: "layer " + l.name}})
	}
	packed, err := mutate.ConfigFile(
		mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON),
		&v1.ConfigFile{
			OS: "linux", Architecture: "amd64", Created: epoch,
			RootFS: v1.RootFS{Type: "layers"},
			Config: v1.Config{
				Entrypoint: []string{"/usr/bin/" + img.name},
				Env:        []string{"PATH=/usr/bin"}, // for probes, which name the program alone, and for the mesh proxy's Envoy
				User:       "0:0",
				WorkingDir: "/",
				Labels: map[string]string{
					"org.opencontainers.image.title":       "portcullis " + img.name,
					"org.opencontainers.image.description": img.description,
					"org.opencontainers.image.version":     version,
					"org.opencontainers.image.licenses":    "Apache-2.0",
				},
			},
		})
	if err != nil {
		return nil, nil, err
	}
	packed, err = mutate.Append(packed, adds...)
	return packed, parts, err
}
