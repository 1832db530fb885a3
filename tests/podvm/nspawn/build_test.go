package nspawn_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// An image with what no podVM is to have is not built, nor one whose programs cannot start.
func TestNoImageIsBuilt(t *testing.T) {
	if os.Getenv(env) == "" {
		t.Skip("left to make test-image: it builds images, as root")
	}
	overlay := func(name, target string) []string {
		dir := t.TempDir()
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(target), 0o755); err != nil {
			t.Fatal(err)
		}
		return []string{"--overlay", dir}
	}
	for _, c := range []struct {
		name, agent string
		more        []string
		says        string
	}{
		{"a shell", "bin/standin-agent", overlay("usr/bin/sh", "x"), "/usr/bin/sh"},
		{"a generator", "bin/standin-agent", overlay("usr/lib/systemd/system-generators/own", "x"), "/usr/lib/systemd/system-generators/own"},
		{"an agent whose libraries are not there", "/usr/bin/mkfs.erofs", nil, "/usr/bin/kata-agent wants lib"},
		{"no agent", "bin/no-such-agent", nil, "bin/no-such-agent: no such file or directory"},
	} {
		t.Run(c.name, func(t *testing.T) {
			out := filepath.Join(t.TempDir(), "image")
			cmd := exec.Command("image/build.sh", append([]string{"--out", out, "--agent", c.agent}, c.more...)...)
			cmd.Dir = "../../.."
			cmd.Env = append(os.Environ(), "PACKAGES=newest")
			said, err := cmd.CombinedOutput()
			if err == nil {
				t.Fatal("it was built")
			}
			if _, err := os.Stat(out); err == nil {
				t.Error("something was left in its place")
			}
			lines := strings.Split(strings.TrimSpace(string(said)), "\n")
			t.Log(strings.Join(lines[max(0, len(lines)-2):], "; "))
			if !strings.Contains(string(said), c.says) {
				t.Errorf("it does not say %q:\n%s", c.says, said)
			}
		})
	}
}
