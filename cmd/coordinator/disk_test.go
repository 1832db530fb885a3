package main

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"portcullis.dev/portcullis/api"
	"portcullis.dev/portcullis/attestation"
	"portcullis.dev/portcullis/manifest"
)

// mountDisk mounts a disk of that size. The test's namespace is its own, so nobody else sees it.
func mountDisk(t *testing.T, size string) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
		t.Fatalf("mount a disk: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// fill writes until the disk is full.
func fill(t *testing.T, name string) {
	t.Helper()
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for block := make([]byte, 4096); err == nil; {
		_, err = f.Write(block)
	}
	if !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("fill the disk: %v", err)
	}
}

// A set that the disk has no place for is refused, and the Coordinator goes on with what it had: the same authority, in
// memory and on the disk. When there is place again, the same set succeeds.
func TestASetOnAFullDiskIsRefusedAndTheRestGoesOn(t *testing.T) {
	k := newKilled(t)
	_, one := k.prepare(t)
	for i := range 500 { // more than the file has place for
		k.second.Policies[attestation.PolicyHash{3, byte(i >> 8), byte(i)}] = manifest.Policy{}
	}
	text, err := k.second.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if k.second, err = manifest.Parse(text); err != nil {
		t.Fatal(err)
	}
	dir := mountDisk(t, "1m")
	db, filler := filepath.Join(dir, "coordinator.db"), filepath.Join(dir, "filler")
	if err := os.WriteFile(db, one, 0o600); err != nil {
		t.Fatal(err)
	}
	p := launch(t, db, nil)
	k.recover(t, p.Client, k.first)
	before := k.verify(t, p.Client, k.first)
	fill(t, filler)

	for range 3 {
		err := k.set(t, p.Client, k.second, k.afterOne())
		if refused, ok := errors.AsType[*api.Error](err); !ok || refused.Code != api.CodeInternal {
			t.Fatalf("a set on a full disk: %v, want the code %s", err, api.CodeInternal)
		}
	}
	if after := k.verify(t, p.Client, k.first); !after.MeshCA.Equal(before.MeshCA) {
		t.Error("the mesh CA changed with a set that was refused")
	}
	if _, err := p.Nonce(ctxFor(t)); err != nil {
		t.Errorf("it does not serve pods any more: %v", err)
	}

	// Nor does a restart find anything else.
	p.kill(t)
	p = launch(t, db, nil)
	if got := k.state(t, p.Client); got != k.afterOne() {
		t.Fatalf("goes on from transition %x", got)
	}
	k.recover(t, p.Client, k.first)

	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	if err := k.set(t, p.Client, k.second, k.afterOne()); err != nil {
		t.Errorf("set with place on the disk: %v", err)
	}
	p.kill(t)
	k.goesOn(t, db, true)
}

// A Coordinator that could not keep a manifest does not start, neither without a store nor with one.
func TestACoordinatorDoesNotStartOnADiskWithoutPlaceOrReadOnly(t *testing.T) {
	k := newKilled(t)
	_, one := k.prepare(t)
	full := mountDisk(t, "64k")
	fill(t, filepath.Join(full, "filler"))
	readOnly := mountDisk(t, "256k")
	if err := os.WriteFile(filepath.Join(readOnly, "one.db"), one, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("", readOnly, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct{ db, want string }{
		"full, no store":        {filepath.Join(full, "coordinator.db"), "no space left on device"},
		"read-only, no store":   {filepath.Join(readOnly, "coordinator.db"), "read-only file system"},
		"read-only, with store": {filepath.Join(readOnly, "one.db"), "read-only file system"},
	} {
		t.Run(name, func(t *testing.T) {
			cmd := exec.CommandContext(ctxFor(t), "coordinator",
				"--listen", "127.0.0.1:0", "--no-guard", "--allow-simulated-tee", "--tee", "socket", "--db", tc.db)
			out, err := cmd.CombinedOutput()
			failed, ok := errors.AsType[*exec.ExitError](err)
			if !ok || failed.ExitCode() != 1 {
				t.Errorf("%v, want exit code 1", err)
			}
			lines := strings.TrimSpace(string(out))
			if !strings.Contains(lines, tc.want) || !strings.Contains(lines, tc.db) || strings.Contains(lines, "goroutine") {
				t.Errorf("it says\n%s\nwant %q and %s", lines, tc.want, tc.db)
			}
		})
	}
	leftovers, err := filepath.Glob(filepath.Join(full, "*.new-*"))
	if err != nil || len(leftovers) > 0 {
		t.Errorf("left behind: %v, %v", leftovers, err)
	}
}
