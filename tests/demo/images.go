package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// unpackImages unpacks what `make oci` wrote, and makes the containers' roots of it, instead of the podVM's own files.
func unpackImages(layouts string) (roots string, err error) {
	content, err := os.ReadFile(filepath.Join(layouts, "digests.json"))
	if err != nil {
		return "", fmt.Errorf("%w: make oci writes the images", err)
	}
	var digests map[string]struct {
		Layers []struct{ Digest string }
	}
	if err := json.Unmarshal(content, &digests); err != nil {
		return "", err
	}
	if roots, err = os.MkdirTemp("", "portcullis-images-"); err != nil {
		return "", err
	}
	if err := os.Chmod(roots, 0o755); err != nil {
		return roots, err
	}
	for tag, image := range images {
		name, _, _ := strings.Cut(strings.TrimPrefix(tag, "portcullis.dev/"), ":")
		if name == "demo-shop" { // an application, which is not ours
			continue
		}
		layers := digests[name].Layers
		if len(layers) == 0 {
			return roots, fmt.Errorf("%s has no image %s", layouts, name)
		}
		root := filepath.Join(roots, name)
		if err := os.Mkdir(root, 0o755); err != nil {
			return roots, err
		}
		for _, l := range layers {
			blob := filepath.Join(layouts, name, "blobs", strings.Replace(l.Digest, ":", "/", 1))
			if out, err := exec.Command("tar", "-xzpf", blob, "-C", root).CombinedOutput(); err != nil {
				return roots, fmt.Errorf("unpack a layer of %s: %w: %s", name, err, out)
			}
		}
		for _, file := range []string{"resolv.conf", "hosts"} { // to mount on, as container runtimes make them
			path := filepath.Join(root, "etc", file)
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				return roots, err
			}
			if err := os.WriteFile(path, nil, 0o644); err != nil {
				return roots, err
			}
		}
		image.Folder = name
		images[tag] = image
	}
	return roots, nil
}
