package main

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

var update = flag.Bool("update", false, "rewrite files-*.txt")

var names = []string{"coordinator", "initializer", "meshproxy"}

// Where the first images are, made by TestMain from what `make oci` has left.
var (
	first    string
	original inputs
)

func TestMain(m *testing.M) {
	if os.Getenv("OCI_TEST_MAIN") != "" {
		main() // the command itself, in a process with an umask and a time zone of its own
		return
	}
	flag.Parse()
	os.Exit(func() int {
		original = inputs{
			bin: "../../bin", license: "../../LICENSE",
			envoy: os.Getenv("PORTCULLIS_ENVOY"), libc: os.Getenv("PORTCULLIS_LIBC"),
		}
		var err error
		if first, err = os.MkdirTemp("", "oci"); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(first)
		if _, err := run(original, "v1.2.3", first); err != nil {
			fmt.Fprintf(os.Stderr, "make the images to test (`make test-oci` makes what they are made of): %v\n", err)
			return 1
		}
		return m.Run()
	}())
}

func open(t *testing.T, dir, name string) v1.Image {
	t.Helper()
	path, err := layout.FromPath(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	index, err := path.ImageIndex()
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	if len(manifest.Manifests) != 1 {
		t.Fatalf("%s has %d images", name, len(manifest.Manifests))
	}
	img, err := path.Image(manifest.Manifests[0].Digest)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

type entry struct {
	tar.Header
	content []byte
}

// entries are what the image's layers hold, the lowest first.
func entries(t *testing.T, img v1.Image) []entry {
	t.Helper()
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	var all []entry
	for _, l := range layers {
		r, err := l.Uncompressed()
		if err != nil {
			t.Fatal(err)
		}
		for tr := tar.NewReader(r); ; {
			h, err := tr.Next()
			if err == io.EOF {
				break
			} else if err != nil {
				t.Fatal(err)
			}
			content, err := io.ReadAll(tr)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, entry{*h, content})
		}
		r.Close()
	}
	return all
}

// tree is every file below dir, with its content.
func tree(t *testing.T, dir string) map[string]string {
	t.Helper()
	files := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		content, err := os.ReadFile(path)
		files[strings.TrimPrefix(path, dir)] = string(content)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func TestTheImagesAreTheSameFromElsewhere(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "another/place with/a-longer-name")
	there := inputs{bin: dir, license: dir + "/LICENSE", envoy: dir + "/envoy", libc: filepath.Join(dir, filepath.Base(original.libc))}
	copies := map[string]string{original.license: there.license, original.envoy: there.envoy, original.libc: there.libc}
	for _, name := range names {
		copies[filepath.Join(original.bin, name)] = filepath.Join(dir, name)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for from, to := range copies {
		content, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(to, content, 0o400); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(to, time.Unix(981173106, 0), time.Unix(981173106, 0)); err != nil {
			t.Fatal(err)
		}
	}
	out := filepath.Join(dir, "out")
	cmd := exec.Command("sh", "-c", `umask 077; exec "$@"`, "sh", os.Args[0], "--bin", there.bin, "--license", there.license,
		"--envoy", there.envoy, "--libc", there.libc, "--version", "v1.2.3", "--out", out)
	cmd.Env = []string{"OCI_TEST_MAIN=1", "TZ=Asia/Kathmandu", "LC_ALL=C", "GOMAXPROCS=1", "PATH=" + os.Getenv("PATH")}
	if b, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, b)
	}
	a, b := tree(t, first), tree(t, out)
	if len(a) < 3*7 {
		t.Errorf("there are only %d files: %v", len(a), slices.Sorted(maps.Keys(a)))
	}
	if !slices.Equal(slices.Sorted(maps.Keys(a)), slices.Sorted(maps.Keys(b))) {
		t.Errorf("the files are %v, and elsewhere %v", slices.Sorted(maps.Keys(a)), slices.Sorted(maps.Keys(b)))
	}
	for name := range a {
		if a[name] != b[name] {
			t.Errorf("%s is another one", name)
		}
	}

	// Were the inputs not read, everything would be the same as well.
	if err := os.Chmod(there.license, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(there.license, []byte("changed\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	all, err := images(there)
	if err != nil {
		t.Fatal(err)
	}
	img := all[slices.IndexFunc(all, func(i image) bool { return i.name == "initializer" })]
	changed, err := img.write("v1.2.3", filepath.Join(dir, "changed"))
	if err != nil {
		t.Fatal(err)
	}
	if was := digests(t)["initializer"]; changed.Digest == was.Digest || changed.Layers[2] == was.Layers[2] || changed.Layers[1] != was.Layers[1] {
		t.Errorf("a changed license makes %+v of %+v", changed, was)
	}
}

func digests(t *testing.T) map[string]built {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(first, "digests.json"))
	if err != nil {
		t.Fatal(err)
	}
	var all map[string]built
	if err := json.Unmarshal(content, &all); err != nil {
		t.Fatal(err)
	}
	return all
}

func TestDigestsAreThoseOfTheImages(t *testing.T) {
	all := digests(t)
	if !slices.Equal(slices.Sorted(maps.Keys(all)), names) {
		t.Fatalf("digests.json has %v", slices.Sorted(maps.Keys(all)))
	}
	for _, name := range names {
		img := open(t, first, name)
		if err := validate.Image(img); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if digest, err := img.Digest(); err != nil || digest.String() != all[name].Digest {
			t.Errorf("%s has the digest %v, and digests.json says %s: %v", name, digest, all[name].Digest, err)
		}
		config, err := img.ConfigFile()
		if err != nil {
			t.Fatal(err)
		}
		if config.OS != "linux" || config.Architecture != "amd64" || config.Config.User != "0:0" ||
			!slices.Equal(config.Config.Entrypoint, []string{"/usr/bin/" + name}) || len(config.Config.Cmd) > 0 ||
			config.Config.Labels["org.opencontainers.image.version"] != "v1.2.3" {
			t.Errorf("%s is configured as %+v", name, config)
		}
	}
}

// fault says what must not be in an image.
func fault(h tar.Header) string {
	base := filepath.Base(h.Name)
	switch {
	case h.Uid != 0 || h.Gid != 0 || h.Uname != "" || h.Gname != "":
		return "it is not root's"
	case h.ModTime.Unix() != 0:
		return "it has a time"
	case h.Mode&0o7000 != 0:
		return "it changes who somebody is"
	case h.Typeflag != tar.TypeSymlink && h.Mode&0o022 != 0:
		return "others can write it"
	case !strings.ContainsRune(string([]byte{tar.TypeReg, tar.TypeDir, tar.TypeSymlink}), rune(h.Typeflag)):
		return "it is no file, folder or link"
	case len(h.PAXRecords) > 0:
		return "it has attributes"
	case slices.Contains([]string{"sh", "bash", "dash", "ash", "zsh", "busybox", "toybox", "perl", "python3", "env", "apt", "dpkg"}, base):
		return "it is a shell, or as good as one"
	}
	return ""
}

func TestFaultsAreSeen(t *testing.T) {
	good := tar.Header{Name: "usr/bin/envoy", Typeflag: tar.TypeReg, Mode: 0o755, ModTime: time.Unix(0, 0)}
	if f := fault(good); f != "" {
		t.Fatalf("a good file: %s", f)
	}
	for want, spoil := range map[string]func(*tar.Header){
		"it is not root's":                 func(h *tar.Header) { h.Gid = 1 },
		"it has a time":                    func(h *tar.Header) { h.ModTime = time.Unix(1, 0) },
		"it changes who somebody is":       func(h *tar.Header) { h.Mode |= 0o4000 },
		"others can write it":              func(h *tar.Header) { h.Mode |= 0o002 },
		"it is no file, folder or link":    func(h *tar.Header) { h.Typeflag = tar.TypeChar },
		"it has attributes":                func(h *tar.Header) { h.PAXRecords = map[string]string{"SCHILY.xattr.security.capability": "x"} },
		"it is a shell, or as good as one": func(h *tar.Header) { h.Name = "bin/sh" },
	} {
		bad := good
		spoil(&bad)
		if f := fault(bad); f != want {
			t.Errorf("want %q, got %q", want, f)
		}
	}
}

func TestNothingElseIsInTheImages(t *testing.T) {
	for _, name := range names {
		var lines []string
		for _, e := range entries(t, open(t, first, name)) {
			if f := fault(e.Header); f != "" {
				t.Errorf("%s: %s: %s", name, e.Name, f)
			}
			line := fmt.Sprintf("%v /%s", e.FileInfo().Mode(), e.Name)
			if e.Linkname != "" {
				line += " -> " + e.Linkname
			}
			lines = append(lines, line)
		}
		slices.SortFunc(lines, func(a, b string) int { return strings.Compare(a[strings.Index(a, " "):], b[strings.Index(b, " "):]) })
		got := strings.Join(slices.Compact(lines), "\n") + "\n" // folders are in every layer that has something in them
		golden := "files-" + name + ".txt"
		if *update {
			if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(golden)
		if err != nil {
			t.Fatal(err)
		}
		if got != string(want) {
			t.Errorf("in the image %s is\n%s\nand %s says\n%s\n(-update rewrites it)", name, got, golden, want)
		}
	}
}

// unpack makes the image's root.
func unpack(t *testing.T, name string) string {
	t.Helper()
	root := filepath.Join(t.TempDir(), "root")
	if err := os.Mkdir(root, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, e := range entries(t, open(t, first, name)) {
		path := filepath.Join(root, filepath.Clean("/"+e.Name))
		var err error
		switch e.Typeflag {
		case tar.TypeDir:
			err = os.MkdirAll(path, e.FileInfo().Mode().Perm())
		case tar.TypeSymlink:
			err = os.Symlink(e.Linkname, path)
		default:
			err = os.WriteFile(path, e.content, e.FileInfo().Mode().Perm())
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return root
}

// inside is a command whose root is the image, which runs as that user and has no network.
func inside(t *testing.T, root string, user int, argv ...string) *exec.Cmd {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env, cmd.Dir = []string{"PATH=/usr/bin"}, "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Chroot: root, Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWPID | syscall.CLONE_NEWIPC, Pdeathsig: syscall.SIGKILL,
	}
	if os.Geteuid() == 0 {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(user), Gid: uint32(user)}
		return cmd
	}
	cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
	cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: user, HostID: os.Getuid(), Size: 1}}
	cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: user, HostID: os.Getgid(), Size: 1}}
	return cmd
}

func TestEntrypointsRun(t *testing.T) {
	for _, name := range names {
		config, err := open(t, first, name).ConfigFile()
		if err != nil {
			t.Fatal(err)
		}
		root := unpack(t, name)
		out, err := inside(t, root, 0, append(config.Config.Entrypoint, "--help")...).CombinedOutput()
		if err != nil || !strings.Contains(string(out), name+" [flags] ") {
			t.Errorf("%s --help: %v: %s", name, err, out)
		}
		if out, err := inside(t, root, 0, "/bin/sh", "-c", "exit 0").CombinedOutput(); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("a shell in %s: %v: %s", name, err, out)
		}
	}
}

func TestEnvoyStartsInItsImage(t *testing.T) {
	const user = 1337 // the mesh proxy's --envoy-user, by default
	root := unpack(t, "meshproxy")
	out, err := inside(t, root, user, "/usr/bin/envoy", "--version").CombinedOutput()
	if err != nil || !strings.Contains(string(out), "/1.40.0/") {
		t.Fatalf("envoy --version: %v: %s", err, out)
	}
	serve := func() (string, error) {
		cmd := inside(t, root, user, "/usr/bin/envoy", "--disable-hot-restart", "--concurrency", "1", "--config-yaml", "{}")
		stderr, err := cmd.StderrPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		var log bytes.Buffer
		buffer := make([]byte, 4096)
		for {
			n, err := stderr.Read(buffer)
			log.Write(buffer[:n])
			if err != nil {
				return log.String(), cmd.Wait()
			}
			if strings.Contains(log.String(), "starting main dispatch loop") {
				cmd.Process.Signal(syscall.SIGTERM)
			}
		}
	}
	if log, err := serve(); err != nil || !strings.Contains(log, "starting main dispatch loop") {
		t.Errorf("envoy does not serve: %v: %s", err, log)
	}
	if err := os.Remove(filepath.Join(root, libraryFolder, "libm.so.6")); err != nil {
		t.Fatal(err)
	}
	if log, err := serve(); err == nil || !strings.Contains(log, "libm.so.6") {
		t.Errorf("envoy without a library: %v: %s", err, log)
	}
}

func TestCorruptedBlobsAreNoticed(t *testing.T) {
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(filepath.Join(first, "initializer"))); err != nil {
		t.Fatal(err)
	}
	if err := validate.Image(open(t, dir, "")); err != nil {
		t.Fatal(err)
	}
	blobs, err := filepath.Glob(dir + "/blobs/sha256/*")
	if err != nil || len(blobs) != 5 { // manifest, configuration, three layers
		t.Fatalf("there are %d blobs: %v", len(blobs), err)
	}
	for _, blob := range blobs {
		content, err := os.ReadFile(blob)
		if err != nil {
			t.Fatal(err)
		}
		spoilt := bytes.Clone(content)
		spoilt[len(spoilt)/2] ^= 1
		if err := os.WriteFile(blob, spoilt, 0o644); err != nil {
			t.Fatal(err)
		}
		if err := check(dir); err == nil {
			t.Errorf("a flipped bit in %s goes unnoticed", filepath.Base(blob))
		}
		if err := os.WriteFile(blob, content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := check(dir); err != nil {
		t.Error(err)
	}
}

// check reads an image as whoever pushes or pulls it does.
func check(dir string) error {
	path, err := layout.FromPath(dir)
	if err != nil {
		return err
	}
	index, err := path.ImageIndex()
	if err != nil {
		return err
	}
	return validate.Index(index)
}

func TestInputsAreRefused(t *testing.T) {
	dir := t.TempDir()
	put := func(name string, content []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, content, 0o755); err != nil {
			t.Fatal(err)
		}
		return path
	}
	read := func(path string) []byte {
		content, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return content
	}
	deb, coordinator := read(original.libc), read(filepath.Join(original.bin, "coordinator"))
	arm := bytes.Clone(coordinator)
	arm[18] = 183 // e_machine: EM_AARCH64
	for want, spoil := range map[string]func(*inputs){
		"is pinned":                 func(in *inputs) { in.libc = put(filepath.Base(in.libc), deb[:len(deb)-1]) },
		"and 8aa137a7d0":            func(in *inputs) { in.envoy = put("envoy", coordinator) },
		"of libc6_":                 func(in *inputs) { in.libc = in.envoy },
		"is linked dynamically":     func(in *inputs) { in.bin = dir; put("initializer", read(original.envoy)) },
		"want a program for x86":    func(in *inputs) { in.bin = dir; put("initializer", arm) },
		"read the program":          func(in *inputs) { in.bin = dir; put("initializer", nil) },
		"no such file":              func(in *inputs) { in.license = dir + "/none" },
		"no such file or directory": func(in *inputs) { *in = inputs{} },
	} {
		in := original
		spoil(&in)
		out := filepath.Join(dir, "out")
		if _, err := run(in, "v1.2.3", out); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q, got %v", want, err)
		}
		if _, err := os.Stat(out); err == nil {
			t.Errorf("%q: something was written", want)
		}
	}
	if _, err := pinned(original.envoy, "other"); err == nil {
		t.Error("a file that nothing pins is taken")
	}
	for name, deb := range map[string][]byte{
		"empty": nil, "no archive": []byte("!<arch>"), "half a header": deb[:8+30], "half a package": deb[:len(deb)/2], "of a size amiss": bytes.Replace(bytes.Clone(deb), []byte("4         `"), []byte("-4        `"), 1),
	} {
		if files, err := fromPackage(deb, map[string]int64{"/lib/x86_64-linux-gnu/libm.so.6": 0o644}); err == nil {
			t.Errorf("a package that is %s gave %d files", name, len(files))
		}
	}
	if err := checkLinked(read(original.envoy), libraries[1:]); err == nil || !strings.Contains(err.Error(), libraries[0]) {
		t.Errorf("an Envoy that wants more than the image has: %v", err)
	}
}

func TestTheEnvoyIsTheOneThatIsFetched(t *testing.T) {
	script, err := os.ReadFile("../../tools/envoy.sh")
	if err != nil {
		t.Fatal(err)
	}
	pin, _, ok := strings.Cut(pins, "  envoy\n")
	if !ok || !strings.Contains(string(script), "envoy_sha256="+pin+"\n") {
		t.Errorf("tools/envoy.sh does not fetch the pinned %s", pin)
	}
}

func TestRootsAreCertificatesOfAuthorities(t *testing.T) {
	var names []string
	for rest := mozillaRoots(); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			if len(rest) > 0 {
				t.Errorf("%d bytes are no certificate", len(rest))
			}
			break
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		if !c.IsCA && c.Version == 3 {
			t.Errorf("%v is not an authority", c.Subject)
		}
		names = append(names, c.Subject.CommonName)
	}
	if len(names) < 50 || !slices.Contains(names, "DigiCert Global Root G2") {
		t.Errorf("there are %d roots: %q", len(names), names)
	}
}

// Another implementation reads the layout, and what it copies has the same digest.
func TestSkopeoReadsTheImages(t *testing.T) {
	if _, err := exec.LookPath("skopeo"); err != nil {
		t.Skip("skopeo is missing, so no other implementation has read the images: apt-get install skopeo")
	}
	for _, name := range names {
		source := "oci:" + filepath.Join(first, name)
		out, err := exec.CommandContext(t.Context(), "skopeo", "inspect", "--format", "{{.Digest}} {{.Os}}/{{.Architecture}}", source).Output()
		if want := digests(t)[name].Digest + " linux/amd64\n"; err != nil || string(out) != want {
			t.Errorf("skopeo inspect %s: %v: %s, want %s", name, err, out, want)
		}
	}
	to := t.TempDir()
	if out, err := exec.CommandContext(t.Context(), "skopeo", "copy", "--insecure-policy", "--preserve-digests",
		"oci:"+filepath.Join(first, "initializer"), "oci:"+to).CombinedOutput(); err != nil {
		t.Fatalf("skopeo copy: %v: %s", err, out)
	}
	digest, err := open(t, to, "").Digest()
	if want := digests(t)["initializer"].Digest; err != nil || digest.String() != want {
		t.Errorf("the copy has the digest %v, want %s: %v", digest, want, err)
	}
}
