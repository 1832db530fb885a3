package generate

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Output is a file to be written.
type Output struct {
	Path string
	Data []byte
	// Mode is that of a new file. An existing one keeps its own, unless Exclusive.
	Mode fs.FileMode
	// Exclusive refuses to replace a file: a key that was made meanwhile is somebody's.
	Exclusive bool
}

// Write writes all outputs or none. Each is complete in a temporary file beside its place, and on the disk, before the
// first one is renamed to it; when a rename fails, the ones before are undone.
func Write(outputs []Output) (err error) {
	var staged []stagedOutput
	defer func() {
		for _, s := range staged {
			_ = os.Remove(s.temporary)
		}
	}()
	for _, o := range outputs {
		s, err := stage(o)
		if err != nil {
			return fmt.Errorf("write %s: %w", o.Path, err)
		}
		staged = append(staged, s)
	}
	for i, s := range staged {
		if err := s.commit(); err != nil {
			err = fmt.Errorf("write %s: %w", s.Path, err)
			for _, done := range staged[:i] {
				err = errors.Join(err, done.undo())
			}
			return err
		}
	}
	for _, s := range staged {
		if err := syncDirectory(filepath.Dir(s.target)); err != nil {
			return fmt.Errorf("write %s: %w", s.Path, err)
		}
	}
	return nil
}

// stagedOutput is an output whose bytes are on the disk under another name.
type stagedOutput struct {
	Output
	target    string // Path with symbolic links followed, so that a link stays one
	temporary string
	old       []byte // what target held
	existed   bool
}

func stage(o Output) (stagedOutput, error) {
	s := stagedOutput{Output: o, target: o.Path}
	if target, err := filepath.EvalSymlinks(o.Path); err == nil {
		s.target = target
	}
	mode := o.Mode
	switch old, err := os.ReadFile(s.target); {
	case err == nil && o.Exclusive:
		return s, fs.ErrExist
	case err == nil:
		info, err := os.Stat(s.target)
		if err != nil {
			return s, err
		}
		mode, s.old, s.existed = info.Mode().Perm(), old, true
	case !errors.Is(err, fs.ErrNotExist):
		return s, err
	}
	f, err := os.CreateTemp(filepath.Dir(s.target), "."+filepath.Base(s.target)+".*")
	if err != nil {
		return s, err
	}
	s.temporary = f.Name()
	_, err = f.Write(o.Data)
	err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
	if err != nil {
		_ = os.Remove(s.temporary)
	}
	return s, err
}

func (s stagedOutput) commit() error {
	if s.Exclusive { // a link, other than a rename, never replaces
		return os.Link(s.temporary, s.target)
	}
	return os.Rename(s.temporary, s.target)
}

func (s stagedOutput) undo() error {
	if !s.existed {
		return os.Remove(s.target)
	}
	again, err := stage(Output{Path: s.target, Data: s.old})
	if err != nil {
		return fmt.Errorf("restore %s: %w", s.target, err)
	}
	return again.commit()
}

func syncDirectory(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
