package generate_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"portcullis.dev/portcullis/generate"
	"portcullis.dev/portcullis/tests/cluster"
)

// The environment of a child that is killed while it writes: where, and before which step.
const (
	environmentFolder = "PORTCULLIS_TEST_WRITE_IN"
	environmentStep   = "PORTCULLIS_TEST_KILL_BEFORE"
)

func TestMain(m *testing.M) {
	folder := os.Getenv(environmentFolder)
	if folder == "" {
		cluster.Main(m)
	}
	last, err := strconv.Atoi(os.Getenv(environmentStep))
	if err != nil {
		panic(err)
	}
	step := 0
	err = generate.WriteStopping(threeFiles(folder), func(string) error {
		if step == last {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
		step++
		return nil
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// threeFiles are a key that is new, a manifest that names it, and YAML. The last two are there before.
func threeFiles(folder string) []generate.Output {
	return []generate.Output{
		{Path: filepath.Join(folder, "owner.pem"), Data: []byte("key"), Mode: 0o600, Exclusive: true},
		{Path: filepath.Join(folder, "manifest.json"), Data: []byte(strings.Repeat("manifest after\n", 9000)), Mode: 0o644},
		{Path: filepath.Join(folder, "shop.yaml"), Data: []byte(strings.Repeat("yaml after\n", 9000)), Mode: 0o644},
	}
}

func threeFilesBefore(t *testing.T) (folder string) {
	t.Helper()
	folder = t.TempDir()
	write(t, filepath.Join(folder, "manifest.json"), "manifest before\n", 0o640)
	write(t, filepath.Join(folder, "shop.yaml"), "yaml before\n", 0o604)
	return folder
}

// steps are those of writing the three files.
func steps(t *testing.T) (names []string) {
	t.Helper()
	if err := generate.WriteStopping(threeFiles(threeFilesBefore(t)), func(step string) error {
		names = append(names, step)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return names
}

func TestAKilledWriteLeavesWholeFilesAndIsCompletedByTheNext(t *testing.T) {
	all := steps(t)
	if len(all) != 12 {
		t.Fatalf("the steps are %q, want four for each of three files", all)
	}
	for n, step := range all {
		t.Run(filepath.Base(step)+" "+strings.Fields(step)[0], func(t *testing.T) {
			folder := threeFilesBefore(t)
			child := exec.Command(os.Args[0])
			child.Env = append(os.Environ(), environmentFolder+"="+folder, fmt.Sprint(environmentStep, "=", n))
			out, err := child.CombinedOutput()
			if status, ok := child.ProcessState.Sys().(syscall.WaitStatus); !ok || !status.Signaled() {
				t.Fatalf("the child was not killed: %v\n%s", err, out)
			}
			outputs := threeFiles(folder)
			for i, before := range []string{"", "manifest before\n", "yaml before\n"} {
				got, err := os.ReadFile(outputs[i].Path)
				if before == "" && errors.Is(err, fs.ErrNotExist) {
					continue
				}
				if err != nil || string(got) != before && string(got) != string(outputs[i].Data) {
					t.Errorf("%s has %d bytes that are neither the old nor the new: %v", outputs[i].Path, len(got), err)
				}
			}
			_, keyErr := os.Stat(outputs[0].Path)
			if string(read(t, outputs[1].Path)) != "manifest before\n" && keyErr != nil {
				t.Error("the manifest is new, but the key that it names is not there")
			}
			outputs[0].Exclusive = keyErr != nil // who finds a key makes none
			if err := generate.Write(outputs); err != nil {
				t.Fatal(err)
			}
			for _, o := range outputs {
				if string(read(t, o.Path)) != string(o.Data) {
					t.Errorf("%s was not completed", o.Path)
				}
			}
			wantNames(t, folder, "manifest.json", "owner.pem", "shop.yaml")
		})
	}
}

func TestAFaultAtAnyStepUndoesEverything(t *testing.T) {
	for n, step := range steps(t) {
		t.Run(filepath.Base(step)+" "+strings.Fields(step)[0], func(t *testing.T) {
			folder := threeFilesBefore(t)
			at := 0
			err := generate.WriteStopping(threeFiles(folder), func(string) error {
				at++
				if at == n+1 {
					return syscall.EIO
				}
				return nil
			})
			if !errors.Is(err, syscall.EIO) || !strings.Contains(err.Error(), filepath.Base(step)) {
				t.Errorf("got %v, want an error that names the file", err)
			}
			wantNames(t, folder, "manifest.json", "shop.yaml")
			if got := string(read(t, filepath.Join(folder, "manifest.json"))); got != "manifest before\n" {
				t.Errorf("the manifest has %d bytes", len(got))
			}
			if got := string(read(t, filepath.Join(folder, "shop.yaml"))); got != "yaml before\n" {
				t.Errorf("the YAML has %d bytes", len(got))
			}
			for name, want := range map[string]fs.FileMode{"manifest.json": 0o640, "shop.yaml": 0o604} {
				if info, err := os.Stat(filepath.Join(folder, name)); err != nil || info.Mode().Perm() != want {
					t.Errorf("%s has mode %v, want %v: %v", name, info.Mode(), want, err)
				}
			}
		})
	}
}

func TestAFileThatSomebodyEditedMeanwhileIsNotReplaced(t *testing.T) {
	for when, edit := range map[string]string{"before the write": "", "before its rename": "rename"} {
		t.Run(when, func(t *testing.T) {
			folder := threeFilesBefore(t)
			path := filepath.Join(folder, "shop.yaml")
			outputs := threeFiles(folder)
			outputs[2].Read = []byte("yaml before\n")
			if edit == "" {
				write(t, path, "a person's edit\n", 0o604)
			}
			err := generate.WriteStopping(outputs, func(step string) error {
				if edit != "" && step == edit+" "+path {
					write(t, path, "a person's edit\n", 0o604)
				}
				return nil
			})
			if _, ok := errors.AsType[*generate.ChangedError](err); !ok {
				t.Errorf("got %v, want a ChangedError", err)
			}
			if got := string(read(t, path)); got != "a person's edit\n" {
				t.Errorf("the edit is lost: %q", got)
			}
			wantNames(t, folder, "manifest.json", "shop.yaml")
			if got := string(read(t, filepath.Join(folder, "manifest.json"))); got != "manifest before\n" {
				t.Error("the manifest was not put back")
			}
		})
	}
	t.Run("removed", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "gone.yaml")
		err := generate.Write([]generate.Output{{Path: path, Data: []byte("x"), Mode: 0o644, Read: []byte("before")}})
		if _, ok := errors.AsType[*generate.ChangedError](err); !ok {
			t.Errorf("got %v, want a ChangedError", err)
		}
	})
}

func TestLinksAreWrittenThrough(t *testing.T) {
	folder := t.TempDir()
	if err := os.Mkdir(filepath.Join(folder, "real"), 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(folder, "real", "old"), "before", 0o600)
	for link, to := range map[string]string{"first": "second", "second": "real/old", "dangling": "real/new", "loop": "loop"} {
		if err := os.Symlink(to, filepath.Join(folder, link)); err != nil {
			t.Fatal(err)
		}
	}
	if err := generate.Write([]generate.Output{
		{Path: filepath.Join(folder, "first"), Data: []byte("after"), Mode: 0o644},
		{Path: filepath.Join(folder, "dangling"), Data: []byte("made"), Mode: 0o644},
	}); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"old": "after", "new": "made"} {
		if got := string(read(t, filepath.Join(folder, "real", name))); got != want {
			t.Errorf("%s has %q, want %q", name, got, want)
		}
	}
	wantNames(t, folder, "dangling", "first", "loop", "real", "second")
	wantNames(t, filepath.Join(folder, "real"), "new", "old")
	err := generate.Write([]generate.Output{{Path: filepath.Join(folder, "loop"), Data: []byte("x"), Mode: 0o644}})
	if !errors.Is(err, syscall.ELOOP) {
		t.Errorf("a loop: got %v", err)
	}
}

func TestAnOwnerIsKeptOrTheFileIsNotReplaced(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("SKIPPED: giving files to others takes root")
	}
	path := filepath.Join(t.TempDir(), "shop.yaml")
	write(t, path, "before", 0o640)
	if err := os.Chown(path, 1234, 5678); err != nil {
		t.Fatal(err)
	}
	if err := generate.Write([]generate.Output{{Path: path, Data: []byte("after"), Mode: 0o644}}); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	owner := info.Sys().(*syscall.Stat_t)
	if owner.Uid != 1234 || owner.Gid != 5678 || info.Mode().Perm() != 0o640 {
		t.Errorf("owner %d, group %d, mode %v, want 1234, 5678, 0640", owner.Uid, owner.Gid, info.Mode())
	}
}

func TestADeviceIsNotReplacedByAFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pipe")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	err := generate.Write([]generate.Output{{Path: path, Data: []byte("x"), Mode: 0o644}})
	if err == nil || !strings.Contains(err.Error(), "it is not a file") {
		t.Errorf("got %v", err)
	}
	if info, err := os.Lstat(path); err != nil || info.Mode().Type() != fs.ModeNamedPipe {
		t.Errorf("the pipe is gone: %v", err)
	}
}

func TestOnlyAbandonedTemporaryFilesAreRemoved(t *testing.T) {
	folder := t.TempDir()
	write(t, filepath.Join(folder, ".gone.yaml.portcullis-1"), "half a fi", 0o600)
	write(t, filepath.Join(folder, ".mine.yaml"), "a person's", 0o600)
	alive, err := os.Create(filepath.Join(folder, ".live.yaml.portcullis-2"))
	if err != nil {
		t.Fatal(err)
	}
	defer alive.Close()
	if err := syscall.Flock(int(alive.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	if err := generate.Write([]generate.Output{{Path: filepath.Join(folder, "new.yaml"), Data: []byte("x"), Mode: 0o644}}); err != nil {
		t.Fatal(err)
	}
	wantNames(t, folder, ".live.yaml.portcullis-2", ".mine.yaml", "new.yaml")
}
