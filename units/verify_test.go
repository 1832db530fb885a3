package units_test

import (
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// exposureLimits are where systemd-analyze's "OK" would have room for one thing more: for the guard and the
// Coordinator a second capability, for podvm-attest and podvm-initdata the first.
var exposureLimits = map[string]float64{guard: 1.5, attest: 1.2, initdata: 1.7, credentials: 2.4, proxy: 4.3, coordinator: 1.9}

// verify is what systemd-analyze has against the boot of the image's target, and against our units by name: it looks for a
// unit's program only when the unit is named. Its exit code is 0 for much that it only prints, so any output counts.
func (im *image) verify(t *testing.T) (complaints string) {
	t.Helper()
	dir := t.TempDir()
	im.write(t, dir)
	for _, name := range append([]string{im.target}, im.ours()...) {
		out, err := exec.Command("systemd-analyze", "verify", "--man=no", "--root="+dir, name).CombinedOutput()
		if _, ok := errors.AsType[*exec.ExitError](err); err != nil && !ok {
			t.Fatal(err)
		}
		complaints += string(out)
		if err != nil {
			complaints += fmt.Sprintf("systemd-analyze verify %s: %v\n", name, err)
		}
	}
	return strings.ReplaceAll(complaints, dir, "")
}

var exposureLine = regexp.MustCompile(`(?m)^\W*Overall exposure level for (\S+): ([0-9.]+)`)

// exposure is systemd-analyze's mark for what a service could do, from 0 (nothing) to 10 (anything).
func (im *image) exposure(t *testing.T, service string) float64 {
	t.Helper()
	dir := t.TempDir()
	im.write(t, dir)
	out, err := exec.Command("systemd-analyze", "security", "--offline=true", "--no-pager", "--root="+dir, service).CombinedOutput()
	m := exposureLine.FindSubmatch(out)
	if err != nil || m == nil || string(m[1]) != service {
		t.Fatalf("systemd-analyze security %s: %v:\n%s", filepath.Join(unitFolder, service), err, out)
	}
	mark, err := strconv.ParseFloat(string(m[2]), 64)
	if err != nil {
		t.Fatal(err)
	}
	return mark
}

func TestSystemdHasNothingAgainstTheUnits(t *testing.T) {
	needSystemd(t)
	for _, p := range placements {
		if got := bake(t, p).verify(t); got != "" {
			t.Errorf("%s: systemd-analyze verify:\n%s", p.name, got)
		}
	}
}

func TestServicesCouldDoLittleElse(t *testing.T) {
	needSystemd(t)
	for _, p := range placements {
		for service, limit := range exposureLimits {
			if _, ok := p.own[service]; !ok {
				continue
			}
			got := bake(t, p).exposure(t, service)
			t.Logf("%s: %s: exposure %.1f", p.name, service, got)
			if got >= limit {
				t.Errorf("%s: %s: exposure %.1f, want below %.1f", p.name, service, got, limit)
			}
		}
	}
}
