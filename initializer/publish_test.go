package initializer_test

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"portcullis.dev/portcullis/initializer"
)

// tmpfs mounts a file system in memory for a test, which needs root.
func tmpfs(t *testing.T, at string) {
	t.Helper()
	if err := os.MkdirAll(at, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", at, "tmpfs", 0, "mode=0777"); err != nil {
		t.Skipf("SKIPPED: this mounts a file system, as root: %v", err)
	}
	t.Cleanup(func() { syscall.Unmount(at, syscall.MNT_DETACH) })
}

// The pod's volume gets what the Initializer holds, once it is mounted, and anew when it is mounted anew.
func TestTheVolumeIsFilledWhenItIsThere(t *testing.T) {
	volume := filepath.Join(t.TempDir(), "ephemeral", "contrast-secrets")
	inBubble(t, func(t *testing.T, a *authority, p *pod) {
		a.secretID = "shop"
		p.Volume = volume
		p.run(t, p.ready) // nobody waits for a volume
		for range 2 {
			tmpfs(t, volume)
			p.run(t, func() bool { return initializer.Ready(volume, time.Now()) == nil })
			own, err := os.ReadFile(filepath.Join(p.Dir, "tls-config/certChain.pem"))
			copied, err2 := os.ReadFile(filepath.Join(volume, "tls-config/certChain.pem"))
			if err != nil || err2 != nil || string(own) != string(copied) {
				t.Errorf("the volume has other credentials: %v, %v", err, err2)
			}
			if _, err := os.Stat(filepath.Join(volume, "secrets/workload-secret-seed")); err != nil {
				t.Error(err)
			}
			if err := syscall.Unmount(volume, 0); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// Keys go into no folder that is only called like the volume, to no disk, and through no link.
func TestKeysGoToNoOtherPlace(t *testing.T) {
	dir := t.TempDir()
	memory := filepath.Join(dir, "memory")
	tmpfs(t, memory)
	link := filepath.Join(dir, "link")
	if err := os.Symlink(memory, link); err != nil {
		t.Fatal(err)
	}
	folder := filepath.Join(dir, "folder")
	if err := os.Mkdir(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, volume := range map[string]string{"a folder": folder, "a link": link, "not memory": "/proc"} {
		inBubble(t, func(t *testing.T, a *authority, p *pod) {
			p.Volume = volume
			p.run(t, p.ready)
			began := time.Now()
			p.run(t, func() bool { return time.Since(began) > 3*time.Second })
			if name != "a folder" && !strings.Contains(p.log.String(), "the pod's volume does not get the credentials") {
				t.Errorf("%s: nobody says so", name)
			}
		})
	}
	for _, d := range []string{folder, memory} {
		if entries, err := os.ReadDir(d); err != nil || len(entries) > 0 {
			t.Errorf("%s has %v, %v", d, entries, err)
		}
	}
}
