package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// file is an entry of a layer: a folder if its name ends in a slash, a link if it has a target. Owner and times are
// everybody's: root, and the beginning of time.
type file struct {
	name    string
	mode    int64
	target  string
	content []byte
}

func folder(name string) file       { return file{name: name, mode: 0o755} }
func link(name, target string) file { return file{name: name, mode: 0o777, target: target} }

func program(name string, content []byte) file {
	return file{name: name, mode: 0o755, content: content}
}

func data(name string, content []byte) file { return file{name: name, mode: 0o644, content: content} }

// archive writes files as a tar archive in which nothing depends on where, when or by whom it was made: sorted, with all
// folders on the way.
func archive(w io.Writer, files []file) error {
	all := map[string]file{}
	for _, f := range files {
		if _, twice := all[f.name]; twice || !strings.HasPrefix(f.name, "/") || path.Clean(f.name) != strings.TrimSuffix(f.name, "/") {
			return fmt.Errorf("%q is twice in a layer, or no path", f.name)
		}
		all[f.name] = f
		for dir := path.Dir(path.Clean(f.name)); dir != "/"; dir = path.Dir(dir) {
			all[dir+"/"] = folder(dir + "/")
		}
	}
	names := make([]string, 0, len(all))
	for name := range all {
		names = append(names, name)
	}
	slices.Sort(names)
	tw := tar.NewWriter(w)
	for _, name := range names {
		if err := all[name].writeTo(tw); err != nil {
			return fmt.Errorf("archive %s: %w", name, err)
		}
	}
	return tw.Close()
}

func (f file) writeTo(tw *tar.Writer) error {
	header := &tar.Header{Name: f.name[1:], Mode: f.mode, ModTime: time.Unix(0, 0), Format: tar.FormatUSTAR}
	switch {
	case strings.HasSuffix(f.name, "/"):
		header.Typeflag = tar.TypeDir
		return tw.WriteHeader(header)
	case f.target != "":
		header.Typeflag, header.Linkname = tar.TypeSymlink, f.target
		return tw.WriteHeader(header)
	}
	header.Typeflag, header.Size = tar.TypeReg, int64(len(f.content))
	if err := tw.WriteHeader(header); err != nil {
		return err
	}
	_, err := tw.Write(f.content)
	return err
}

// build packs the layer. Its digest is that of the compressed bytes, which depend on the Go release, as the programs do; its
// diff ID is that of the archive alone.
func (l layer) build() (v1.Layer, error) {
	var packed bytes.Buffer
	zw, err := gzip.NewWriterLevel(&packed, gzip.DefaultCompression)
	if err != nil {
		return nil, err
	}
	if err := archive(zw, l.files); err != nil {
		return nil, fmt.Errorf("layer %s: %w", l.name, err)
	}
	if err := zw.Close(); err != nil {
		return nil, err
	}
	open := func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(packed.Bytes())), nil }
	return tarball.LayerFromOpener(open, tarball.WithMediaType(types.OCILayer))
}
