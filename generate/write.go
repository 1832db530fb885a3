package generate

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Output is a file to be written.
type Output struct {
	Path string
	Data []byte
	// Mode is that of a new file. An existing one keeps its own, and its owner, unless Exclusive.
	Mode fs.FileMode
	// Exclusive refuses to replace a file: a key that was made meanwhile is somebody's.
	Exclusive bool
	// Read is what the file held when it was read. One that holds something else by now is not replaced: somebody edited it.
	// Nil for a file that was not read.
	Read []byte
}

// ChangedError says that a file is not replaced since it is not what it was when it was read.
type ChangedError struct{ Path string }

func (e *ChangedError) Error() string {
	return fmt.Sprintf("write %s: somebody else changed it meanwhile; nothing was written", e.Path)
}

// Hint says what to do about it.
func (*ChangedError) Hint() string {
	return "look at what was changed, then run the same command again"
}

// Write writes all outputs or none. Each is complete in a temporary file beside its place, and on the disk, before the
// first one is renamed to it; when a rename fails, the ones before are undone. A reader sees a whole file, the old one or
// the new one, at every moment. A process that is killed between two renames leaves the first outputs new and the others
// old, each of them whole: callers put keys before what names them, so that running again completes the work.
//
// A symbolic link stays one, and what it leads to is replaced.
func Write(outputs []Output) error { return writer{}.write(outputs) }

// writer is Write. A test may stop it, or fail it, before each step.
type writer struct{ before func(step string) error }

func (w writer) step(format string, args ...any) error {
	if w.before == nil {
		return nil
	}
	return w.before(fmt.Sprintf(format, args...))
}

func (w writer) write(outputs []Output) (err error) {
	var staged []*stagedOutput
	defer func() {
		for _, s := range staged {
			s.discard()
		}
	}()
	cleaned := make(map[string]bool)
	for _, o := range outputs {
		if folder := filepath.Dir(o.Path); !cleaned[folder] {
			removeAbandoned(folder)
			cleaned[folder] = true
		}
		s, err := w.stage(o)
		if err != nil {
			return said(o.Path, err)
		}
		staged = append(staged, s)
	}
	for i, s := range staged {
		if err := w.commit(s); err != nil {
			err = said(s.Path, err)
			for _, done := range staged[:i] {
				err = errors.Join(err, done.undo())
			}
			return err
		}
	}
	for _, s := range staged {
		if err := syncDirectory(filepath.Dir(s.target)); err != nil {
			return said(s.Path, err)
		}
	}
	return nil
}

func said(path string, err error) error {
	if _, ok := errors.AsType[*ChangedError](err); ok {
		return err
	}
	return fmt.Errorf("write %s: %w", path, err)
}

// stagedOutput is an output whose bytes are on the disk under another name.
type stagedOutput struct {
	Output
	target    string   // Path with symbolic links followed, so that a link stays one
	temporary *os.File // locked while we live
	old       []byte   // what target held
	info      fs.FileInfo
	existed   bool
}

func (w writer) stage(o Output) (*stagedOutput, error) {
	s := &stagedOutput{Output: o}
	var err error
	if s.target, err = follow(o.Path); err != nil {
		return nil, err
	}
	if err := s.look(); err != nil {
		return nil, err
	}
	if err := w.step("create %s", o.Path); err != nil {
		return nil, err
	}
	if s.temporary, err = os.CreateTemp(filepath.Dir(s.target), "."+filepath.Base(s.target)+temporaryInfix+"*"); err != nil {
		return nil, err
	}
	if err := w.fill(s); err != nil {
		s.discard()
		return nil, err
	}
	return s, nil
}

// follow returns where symbolic links lead, also to a file that is yet to be made.
func follow(path string) (string, error) {
	const most = 40 // as Linux
	for range most {
		to, err := os.Readlink(path)
		if err != nil { // no link
			return path, nil
		}
		if !filepath.IsAbs(to) {
			to = filepath.Join(filepath.Dir(path), to)
		}
		path = to
	}
	return "", syscall.ELOOP
}

// look sees what is in the target's place now.
func (s *stagedOutput) look() error {
	info, err := os.Stat(s.target)
	switch {
	case errors.Is(err, fs.ErrNotExist) && s.Read != nil:
		return &ChangedError{s.Path}
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case s.Exclusive:
		return fs.ErrExist
	case !info.Mode().IsRegular(): // a device would be replaced by a file
		return fmt.Errorf("it is not a file (%v)", info.Mode().Type())
	}
	if s.old, err = os.ReadFile(s.target); err != nil {
		return err
	}
	if s.Read != nil && !bytes.Equal(s.old, s.Read) {
		return &ChangedError{s.Path}
	}
	s.info, s.existed = info, true
	return nil
}

func (w writer) fill(s *stagedOutput) error {
	if err := lock(s.temporary); err != nil {
		return err
	}
	if err := w.step("fill %s", s.Path); err != nil {
		return err
	}
	if _, err := s.temporary.Write(s.Data); err != nil {
		return err
	}
	if err := s.dress(); err != nil {
		return err
	}
	if err := w.step("sync %s", s.Path); err != nil {
		return err
	}
	return s.temporary.Sync()
}

// dress gives the temporary file the owner and the mode of what it replaces.
func (s *stagedOutput) dress() error {
	if !s.existed {
		return s.temporary.Chmod(s.Mode)
	}
	mine, err := s.temporary.Stat()
	if err != nil {
		return err
	}
	is, want := mine.Sys().(*syscall.Stat_t), s.info.Sys().(*syscall.Stat_t)
	if is.Uid != want.Uid || is.Gid != want.Gid {
		if err := s.temporary.Chown(int(want.Uid), int(want.Gid)); err != nil {
			return fmt.Errorf("it belongs to user %d, group %d, which it could not be given back to: %w", want.Uid, want.Gid, err)
		}
	}
	return s.temporary.Chmod(s.info.Mode().Perm())
}

func (w writer) commit(s *stagedOutput) error {
	if err := w.step("rename %s", s.Path); err != nil {
		return err
	}
	if s.Exclusive { // a link, other than a rename, never replaces
		return os.Link(s.temporary.Name(), s.target)
	}
	// What was written since it was read is somebody's work. Between this look and the rename is a moment that no look closes.
	if s.existed {
		if now, err := os.ReadFile(s.target); err != nil || !bytes.Equal(now, s.old) {
			return &ChangedError{s.Path}
		}
	}
	return os.Rename(s.temporary.Name(), s.target)
}

func (s *stagedOutput) undo() error {
	if !s.existed {
		return os.Remove(s.target)
	}
	again, err := writer{}.stage(Output{Path: s.target, Data: s.old})
	if err != nil {
		return fmt.Errorf("restore %s: %w", s.target, err)
	}
	defer again.discard()
	return writer{}.commit(again)
}

// discard forgets the temporary file, and removes it unless it was renamed.
func (s *stagedOutput) discard() {
	_ = os.Remove(s.temporary.Name())
	_ = s.temporary.Close()
}

// temporaryInfix tells our temporary files, .NAME.portcullis-NUMBER, from everybody else's.
const temporaryInfix = ".portcullis-"

// lock marks a temporary file as one that somebody still writes. The kernel takes the lock away from whoever is killed.
func lock(f *os.File) error { return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) }

// removeAbandoned removes what processes that were killed left in a folder: it may be half a file, or a key. One of a
// living process is locked. What cannot be removed is harmless.
func removeAbandoned(folder string) {
	entries, _ := os.ReadDir(folder) // staging says why a folder cannot be read
	for _, e := range entries {
		if !e.Type().IsRegular() || !strings.HasPrefix(e.Name(), ".") || !strings.Contains(e.Name(), temporaryInfix) {
			continue
		}
		path := filepath.Join(folder, e.Name())
		f, err := os.Open(path)
		if err != nil {
			continue
		}
		if lock(f) == nil {
			_ = os.Remove(path)
		}
		_ = f.Close()
	}
}

func syncDirectory(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
