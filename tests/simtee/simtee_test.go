package simtee_test

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"portcullis.dev/portcullis/attestation"
	"portcullis.dev/portcullis/attestation/simulated"
	"portcullis.dev/portcullis/tests/simtee"
)

func TestASavedWorldIsTheSameWorld(t *testing.T) {
	w, err := simtee.New(simtee.PublishedKeys())
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "world")
	if err := w.Save(dir); err != nil {
		t.Fatal(err)
	}
	loaded, err := simtee.Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	if loaded.Product != "Milan" {
		t.Errorf("the processor line became %q", loaded.Product)
	}
	measurement := simtee.Measurement(bytes.Repeat([]byte{0xa5}, 48))
	v, err := simulated.NewValidator([]simulated.ReferenceValue{w.Reference(measurement)})
	if err != nil {
		t.Fatal(err)
	}
	data := attestation.NewReportData("test")
	e, err := loaded.Machine(measurement, [32]byte{1}).Issue(t.Context(), data)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := v.Validate(t.Context(), e, data); err != nil {
		t.Error(err)
	}
	root, err := os.ReadFile(filepath.Join(dir, "root.pem"))
	if err != nil || string(root) != w.RootPEM() {
		t.Errorf("root.pem is not the root: %v", err)
	}
	keys := 0
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".key") {
			return err
		}
		keys++
		info, err := d.Info()
		if err == nil && info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v", path, info.Mode())
		}
		return err
	})
	if err != nil || keys != 3 {
		t.Errorf("%d keys: %v", keys, err)
	}
}

func TestABrokenWorldIsNotLoaded(t *testing.T) {
	w, err := simtee.New(simtee.PublishedKeys())
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"root.pem", "root.pem.key", "ask.pem", "ask.pem.key", "vcek.pem", "vcek.pem.key"} {
		for how, breakIt := range map[string]func(path string) error{
			"missing": os.Remove,
			"garbage": func(path string) error { return os.WriteFile(path, []byte("no"), 0o600) },
		} {
			dir := t.TempDir()
			if err := w.Save(dir); err != nil {
				t.Fatal(err)
			}
			if err := breakIt(filepath.Join(dir, name)); err != nil {
				t.Fatal(err)
			}
			if _, err := simtee.Load(dir); err == nil {
				t.Errorf("%s %s: loaded", name, how)
			}
		}
	}
	if _, err := simtee.Load(filepath.Join(t.TempDir(), "nowhere")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no folder: %v", err)
	}
}

func TestNoEvidenceOverNothing(t *testing.T) {
	w, err := simtee.New(simtee.PublishedKeys())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Machine(simtee.Measurement{1}, [32]byte{1}).Issue(t.Context(), attestation.ReportData{}); err == nil {
		t.Error("evidence over no report data was issued")
	}
}
