package meshproxy

import (
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"portcullis.dev/portcullis/meshproxy/envoy"
)

// Files between the two users. The supervisor is root without the capabilities that make root see every file, so it works
// as any owner does: files for Envoy belong to root and to Envoy's group, which may read them and not change them. The
// supervisor is in that group (confine.Self): a file's owner may give it to a group that it is in, and the one thing that is
// Envoy's own, the admin socket, is for the group too.

const (
	dirEnvoyReads  = 0o750
	dirEnvoyWrites = 0o770
	fileEnvoyReads = 0o440
)

// envoyDir is Envoy's directory, as its master sees it.
type envoyDir struct {
	envoy.Dir
	gid uint32
}

// make makes the directory anew.
func (d envoyDir) make(runDir string, bootstrap []byte) error {
	if err := os.MkdirAll(runDir, 0o755); err != nil {
		return err
	}
	// A fresh volume is everybody's; Envoy could put a directory of its own in place of ours.
	if err := os.Chmod(runDir, 0o755); err != nil {
		return err
	}
	if err := os.RemoveAll(string(d.Dir)); err != nil {
		return err
	}
	for _, dir := range []struct {
		path string
		mode fs.FileMode
	}{
		{string(d.Dir), dirEnvoyReads},
		{d.AdminDir(), dirEnvoyWrites},
		{string(d.Credentials()), dirEnvoyReads},
		{string(d.Tickets()), dirEnvoyReads},
	} {
		if err := d.mkdir(dir.path, dir.mode); err != nil {
			return err
		}
	}
	return d.write(d.Bootstrap(), bootstrap)
}

// publish puts a new version of all files of p in force, by one rename, and removes the one before.
func (d envoyDir) publish(p envoy.Published, files map[string][]byte) error {
	dir := string(p)
	link := filepath.Join(dir, envoy.DataLink)
	before, err := os.Readlink(link)
	if err != nil && !os.IsNotExist(err) {
		return err
	}
	n, _ := strconv.Atoi(strings.TrimPrefix(before, "..")) // zero before the first
	version := ".." + strconv.Itoa(n+1)
	if err := d.mkdir(filepath.Join(dir, version), dirEnvoyReads); err != nil {
		return err
	}
	for name, content := range files {
		if err := d.write(filepath.Join(dir, version, name), content); err != nil {
			return err
		}
	}
	next := filepath.Join(dir, "..next")
	if err := os.Symlink(version, next); err != nil {
		return err
	}
	if err := os.Rename(next, link); err != nil {
		return err
	}
	if before == "" {
		return nil
	}
	return os.RemoveAll(filepath.Join(dir, before))
}

// mkdir and write do not rely on the umask, nor on which group a new file gets: a directory with the setgid bit, such as
// a volume of a pod with an fsGroup, would choose another.
func (d envoyDir) mkdir(path string, mode fs.FileMode) error {
	if err := os.Mkdir(path, 0o700); err != nil {
		return err
	}
	return d.hand(path, mode)
}

func (d envoyDir) write(path string, content []byte) error {
	if err := os.WriteFile(path, content, 0o600); err != nil {
		return err
	}
	return d.hand(path, fileEnvoyReads)
}

func (d envoyDir) hand(path string, mode fs.FileMode) error {
	if err := os.Chown(path, -1, int(d.gid)); err != nil {
		return err
	}
	return os.Chmod(path, mode)
}
