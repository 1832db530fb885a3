// Package audit keeps the log of what a Coordinator decided: each manifest, each certificate, each refusal of evidence, each
// recovery, a line of JSON for each, in a file that is only ever appended to.
//
// Each line carries the hash of the one before, so a line that was changed, taken out or put in shows. The file lies on the
// host's disk, though, and a host can compute hashes too: it can cut the end off, or write another history from any line on.
// What it cannot do is sign. So the Coordinator signs the head of the chain, the newest line's number and hash, with a key
// that follows from the seed (head.go), at each manifest, at most a minute after any other line, and when it stops. A process
// signs for what it wrote itself and no more: what it found in the file may be the host's. A head that was kept elsewhere, by who
// collects the Coordinator's ordinary log, proves that the file still has the lines before it. What nothing here proves is that
// the lines after a process's last signed head are the Coordinator's.
//
// A Coordinator that cannot write its log certifies nobody: what is not recorded does not happen. How durable a line is
// follows from what it is worth. Manifests and recoveries are on the disk before they are answered. Certificates are handed to
// the kernel before they are answered, so that no crash of the process loses one, and are on the disk within a second: a sync
// for each would cost more than issuing it, and guards against a loss of power alone, while the host, who owns the disk, can lose
// lines whenever it likes.
//
// Nothing in it is secret: events (events.go) are made of names, numbers, hashes and public keys.
package audit

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// DefaultMaxSize is where a file ends and the next begins: some hundred thousand lines, which a start reads in seconds.
	DefaultMaxSize = 64 << 20

	syncInterval = time.Second
	signInterval = time.Minute

	// Refusals cost a stranger one request each. This many are recorded at once, and so many a second afterwards; the
	// others are counted.
	refusalBurst = 100
	refusalRate  = 10
)

// Config says where a log is.
type Config struct {
	// Path is the newest file. Older ones stand beside it, as Path with a dot and the number of their last line.
	Path string
	// MaxSize in bytes is where a file ends; 0 is DefaultMaxSize.
	MaxSize int64
	// Log receives signed heads, and what was found to be wrong.
	Log *slog.Logger
}

// Log is an open audit log. A nil Log records nothing, and never fails: a Coordinator without the flag has none.
type Log struct {
	path    string
	maxSize int64
	log     *slog.Logger

	mu       sync.Mutex
	file     *os.File
	size     int64
	head     Head
	dirty    bool // something was written that may not be on the disk
	broken   error
	failed   error // of the last line; nil when it was written
	failures uint64

	from     uint64 // the first line that this process wrote
	signer   *Signer
	lastHead *HeadSigned // the newest in the file when it was opened
	signed   uint64      // the newest line that a head of this process covers
	signedAt time.Time

	refusals  float64 // how many may be recorded now
	refilled  time.Time
	omitted   int
	stop      chan struct{}
	stopped   chan struct{}
	closeOnce sync.Once
	closed    error
}

// Head is the newest line of a chain.
type Head struct {
	Seq  uint64
	Hash [sha256.Size]byte
}

func (h Head) String() string { return fmt.Sprintf("%d:%x", h.Seq, h.Hash) }

// Open goes on with the log at cfg.Path, or begins it. It reads the newest file whole: a file that is not a chain is refused
// with a *Broken, and an incomplete last line, which a crash leaves, is cut off and recorded as Cut.
func Open(cfg Config) (_ *Log, err error) {
	if cfg.Path == "" || cfg.Log == nil {
		return nil, errors.New("open the audit log: path and log are needed")
	}
	if cfg.MaxSize == 0 {
		cfg.MaxSize = DefaultMaxSize
	}
	now := time.Now()
	l := &Log{
		path: cfg.Path, maxSize: cfg.MaxSize, log: cfg.Log, refusals: refusalBurst, refilled: now, signedAt: now,
		stop: make(chan struct{}), stopped: make(chan struct{}),
	}
	defer func() {
		if err != nil && l.file != nil {
			l.file.Close()
		}
	}()
	if err := l.openFile(0); err != nil {
		return nil, err
	}
	first, err := l.goOn()
	if err != nil {
		return nil, err
	}
	l.from = l.head.Seq + 1
	for _, e := range first {
		if err := l.append(e); err != nil {
			return nil, err
		}
	}
	if err := l.sync(); err != nil {
		return nil, err
	}
	if err := syncFolder(l.path); err != nil {
		return nil, err
	}
	go l.keep()
	return l, nil
}

// openFile opens the newest file for this process alone. A symbolic link is not followed: who may put one there chooses what
// the Coordinator overwrites.
func (l *Log) openFile(flags int) error {
	f, err := os.OpenFile(l.path, os.O_RDWR|os.O_APPEND|os.O_CREATE|unix.O_NOFOLLOW|flags, 0o600)
	if err != nil {
		return fmt.Errorf("open the audit log: %w", err)
	}
	l.file, l.size = f, 0
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return errors.Join(err, fmt.Errorf("open the audit log: %s is not a file", l.path))
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return fmt.Errorf("lock the audit log %s, which another process has: %w", l.path, err)
	}
	return nil
}

// goOn finds the head of what is there, and says what is to be recorded about it.
func (l *Log) goOn() ([]Event, error) {
	c := chain{}
	read, err := c.read(l.path, l.file, func(line *Line) error {
		if h, ok := line.Event.(*HeadSigned); ok {
			l.lastHead = h
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	l.head, l.size = c.head, read.complete
	var first []Event
	if len(read.torn) > 0 {
		if err := l.file.Truncate(read.complete); err != nil {
			return nil, fmt.Errorf("cut the incomplete last line off the audit log: %w", err)
		}
		sum := sha256.Sum256(read.torn)
		l.log.Warn("the audit log's last line was incomplete, as after a crash; it is cut off",
			"file", l.path, "bytes", len(read.torn), "sha256", hex.EncodeToString(sum[:]), "after", l.head.Seq)
		first = append(first, &Cut{Bytes: len(read.torn), SHA256: hex.EncodeToString(sum[:])})
	}
	if c.head.Seq > 0 {
		return first, nil
	}
	// An empty file: of a chain that begins, or one whose last rotation was interrupted.
	older, err := olderFiles(l.path)
	if err != nil {
		return nil, err
	}
	if len(older) == 0 {
		return append([]Event{&Began{}}, first...), nil
	}
	last := older[len(older)-1]
	if l.head, err = lastHead(last); err != nil {
		return nil, err
	}
	return append([]Event{&Continued{After: filepath.Base(last)}}, first...), nil
}

// lastHead reads a file that is complete.
func lastHead(path string) (Head, error) {
	f, err := os.Open(path)
	if err != nil {
		return Head{}, fmt.Errorf("open the audit log: %w", err)
	}
	defer f.Close()
	c := chain{}
	read, err := c.read(path, f, nil)
	switch {
	case err != nil:
		return Head{}, err
	case len(read.torn) > 0 || c.head.Seq == 0:
		return Head{}, &Broken{File: path, Line: read.lines + 1, Reason: "the line is incomplete, in a file that is"}
	}
	return c.head, nil
}

// Record writes an event. When it returns nil, the kernel has the line; it is on the disk within a second.
func (l *Log) Record(e Event) error {
	if l == nil {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.append(e)
}

// RecordDurably writes an event. When it returns nil, the line and all before it are on the disk, and the head is signed where
// there is a Signer.
func (l *Log) RecordDurably(e Event) error {
	if l == nil {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.append(e); err != nil {
		return err
	}
	if err := l.signHead(); err != nil {
		return err
	}
	return l.sync()
}

// RecordRefusal writes an event of which a stranger can make as many as it likes: beyond a rate they are only counted.
func (l *Log) RecordRefusal(e Event) error {
	if l == nil {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	l.refusals = min(refusalBurst, l.refusals+refusalRate*now.Sub(l.refilled).Seconds())
	l.refilled = now
	if l.refusals < 1 {
		l.omitted++
		return nil
	}
	l.refusals--
	return l.append(e)
}

// Sign makes the log sign its head from now on. It says what the newest signed head in the file that was opened is worth to
// this signer, for the record of a recovery.
func (l *Log) Sign(s *Signer) Provenance {
	if l == nil {
		return ""
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.signer = s
	switch {
	case l.lastHead == nil:
		return Unsigned
	case l.lastHead.verify(&s.key.PublicKey) != nil:
		return Foreign
	default:
		return Own
	}
}

// SignHead signs the head now, and brings it to the disk.
func (l *Log) SignHead() error {
	if l == nil {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.signHead(); err != nil {
		return err
	}
	return l.sync()
}

// Status is what a log tells about itself.
type Status struct {
	Seq      uint64 // the newest line's number
	Signed   uint64 // the newest line that a head signed by this process covers
	Failures uint64 // lines that could not be written
	Err      error  // why the last line could not be written
}

// Status of a nil Log is empty.
func (l *Log) Status() Status {
	if l == nil {
		return Status{}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return Status{Seq: l.head.Seq, Signed: l.signed, Failures: l.failures, Err: errors.Join(l.broken, l.failed)}
}

// Close records that the Coordinator stopped, signs the head, and closes the file.
func (l *Log) Close() error {
	if l == nil {
		return nil
	}
	l.closeOnce.Do(func() {
		close(l.stop)
		<-l.stopped
		l.mu.Lock()
		defer l.mu.Unlock()
		err := errors.Join(l.tellOmitted(), l.append(&Stopped{}))
		if err == nil {
			err = errors.Join(l.signHead(), l.sync())
		}
		l.broken = errors.New("the audit log is closed")
		l.closed = errors.Join(err, l.file.Close())
	})
	return l.closed
}

// keep brings lines to the disk, and their heads to whoever reads the ordinary log.
func (l *Log) keep() {
	defer close(l.stopped)
	tick := time.NewTicker(syncInterval)
	defer tick.Stop()
	for {
		select {
		case <-l.stop:
			return
		case <-tick.C:
		}
		l.mu.Lock()
		err := l.tellOmitted()
		if time.Since(l.signedAt) >= signInterval {
			err = errors.Join(err, l.signHead())
		}
		dirty, file := l.dirty && l.broken == nil, l.file
		l.dirty = l.dirty && !dirty
		l.mu.Unlock()
		if dirty { // nobody waits for the disk meanwhile
			if syncErr := file.Sync(); syncErr != nil && !errors.Is(syncErr, fs.ErrClosed) { // rotation syncs what it closes
				l.mu.Lock()
				err = errors.Join(err, l.lost(syncErr))
				l.mu.Unlock()
			}
		}
		if err != nil {
			l.log.Error("the audit log cannot be kept", "file", l.path, "reason", err)
		}
	}
}

// The rest runs under mu.

func (l *Log) tellOmitted() error {
	if l.omitted == 0 {
		return nil
	}
	err := l.append(&RefusalsOmitted{Count: l.omitted})
	if err == nil {
		l.omitted = 0
	}
	return err
}

// signHead signs what is written, unless that was done.
func (l *Log) signHead() error {
	if l.signer == nil || l.signed == l.head.Seq {
		return nil
	}
	h, err := l.signer.sign(l.from, l.head)
	if err != nil {
		return err
	}
	if err := l.write(h); err != nil {
		return err
	}
	l.signed, l.signedAt = l.head.Seq, time.Now()
	l.log.Info("audit head", "file", l.path, "seq", h.Seq, "hash", h.Hash, "signature", h.Signature)
	return nil
}

func (l *Log) append(e Event) error {
	if l.size > 0 && l.size >= l.maxSize && l.broken == nil {
		if err := l.rotate(); err != nil {
			l.failures++
			l.failed = err
			return err
		}
	}
	return l.write(e)
}

func (l *Log) write(e Event) error {
	err := l.broken
	if err == nil {
		err = l.writeLine(e)
	}
	l.failed = err
	if err != nil {
		l.failures++
	}
	return err
}

// writeLine writes a whole line or nothing.
func (l *Log) writeLine(e Event) error {
	text, err := encode(Line{Seq: l.head.Seq + 1, Time: time.Now().UTC(), Event: e, Prev: l.head.Hash})
	if err != nil {
		return err
	}
	l.dirty = true
	if _, err := l.file.Write(append(text, '\n')); err != nil {
		err = fmt.Errorf("write the audit log: %w", err)
		// The disk may have room again later, unless a part of a line stays behind: what came after it would be lost.
		if cut := l.file.Truncate(l.size); cut != nil {
			l.broken = errors.Join(err, fmt.Errorf("cut off the part that was written: %w", cut))
		}
		return err
	}
	l.size += int64(len(text)) + 1
	l.head = Head{Seq: l.head.Seq + 1, Hash: sha256.Sum256(text)}
	return nil
}

// sync brings all that is written to the disk.
func (l *Log) sync() error {
	if l.broken != nil {
		return l.broken
	}
	if err := l.file.Sync(); err != nil {
		return l.lost(err)
	}
	l.dirty = false
	return nil
}

// lost ends the log: after a sync that failed nobody knows which lines the disk has, and the next sync would say that all is
// well.
func (l *Log) lost(err error) error {
	err = fmt.Errorf("bring the audit log to the disk: %w", err)
	if l.broken == nil {
		l.broken = err
	}
	l.failures++
	return err
}

// rotate puts the file aside and begins the next, which goes on with the chain.
func (l *Log) rotate() error {
	if err := errors.Join(l.signHead(), l.sync()); err != nil {
		return err
	}
	old, aside := l.file, fmt.Sprintf("%s.%012d", l.path, l.head.Seq)
	if _, err := os.Lstat(aside); !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("put the audit log aside: %s is there already", aside)
	}
	if err := os.Rename(l.path, aside); err != nil {
		return fmt.Errorf("put the audit log aside: %w", err)
	}
	// From here on a failure is for the next start, which finds the file that was put aside.
	err := l.openFile(os.O_EXCL)
	if err == nil {
		err = l.write(&Continued{After: filepath.Base(aside)})
	}
	if err == nil {
		err = errors.Join(l.sync(), syncFolder(l.path))
	}
	if err != nil {
		l.broken = errors.Join(l.broken, err)
	}
	return errors.Join(err, old.Close())
}

func syncFolder(path string) error {
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return fmt.Errorf("bring the audit log's folder to the disk: %w", err)
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return fmt.Errorf("bring the audit log's folder to the disk: %w", err)
	}
	return nil
}
