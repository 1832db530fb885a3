package killpoint_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"portcullis.dev/portcullis/tests/killpoint"
)

// writerEnv makes the test binary a process that changes a file in five calls.
const writerEnv = "PORTCULLIS_TEST_WRITE_TO"

func TestMain(m *testing.M) {
	if path := os.Getenv(writerEnv); path != "" {
		if err := write(path); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func write(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.WriteAt(bytes.Repeat([]byte("a"), 1024), 0); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if _, err := f.WriteAt(bytes.Repeat([]byte("b"), 1024), 512); err != nil {
		return err
	}
	if _, err := f.WriteAt([]byte("c"), 0); err != nil {
		return err
	}
	return unix.Fdatasync(int(f.Fd()))
}

func run(t *testing.T, killBefore int) (*killpoint.Result, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), writerEnv+"="+path)
	cmd.Stderr = os.Stderr
	p := killpoint.New(path)
	p.KillBefore(killBefore)
	if err := p.Start(cmd); err != nil {
		t.Fatal(err)
	}
	r, err := p.Wait()
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return r, string(data)
}

func TestEachChangeIsAPlaceToKill(t *testing.T) {
	as := strings.Repeat("a", 1024)
	abs := strings.Repeat("a", 512) + strings.Repeat("b", 1024)
	for n, want := range []struct {
		file, durable string
		disks         int
	}{
		1: {"", "", 1},
		2: {as, "", 3}, // lost, whole, torn
		3: {as, as, 1},
		4: {abs, as, 3},
		5: {"c" + abs[1:], as, 5},
	} {
		if n == 0 {
			continue
		}
		r, file := run(t, n)
		if !r.Status.Signaled() || r.Status.Signal() != unix.SIGKILL || len(r.Calls) != n {
			t.Errorf("killed before change %d: status %#x after %v", n, r.Status, r.Calls)
		}
		if file != want.file || string(r.Durable) != want.durable {
			t.Errorf("killed before change %d: the file is %.20q of %d bytes, %d of them durable", n, file, len(file), len(r.Durable))
		}
		disks := r.Disks()
		if len(disks) != want.disks || string(disks[0]) != want.durable {
			t.Errorf("killed before change %d: %d disks, want %d", n, len(disks), want.disks)
		}
		if last := 1<<len(r.Unsynced) - 1; string(disks[last]) != file {
			t.Errorf("killed before change %d: with nothing lost the disk is not the file", n)
		}
	}
}

func TestWithoutAPlaceTheProcessEndsByItself(t *testing.T) {
	r, file := run(t, 0)
	if !r.Status.Exited() || r.Status.ExitStatus() != 0 || len(r.Calls) != 5 {
		t.Errorf("status %#x after %v", r.Status, r.Calls)
	}
	if string(r.Durable) != file || len(r.Unsynced) != 0 {
		t.Errorf("%d of %d bytes are durable", len(r.Durable), len(file))
	}
}
