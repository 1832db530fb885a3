package collateral

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// A disk is the folder in which documents outlive the process. Each is a file of its own, named after its URL:
//
//	SHA-256 of all that follows the newline, in hexadecimal \n
//	{"url": "...", "fetched": "...", "header": {...}, "body": "<base64>"}
//
// The checksum finds what a crash or a bad disk left half. It is not there against an attacker: the vendors' signatures are.
// Several processes may use one folder, such as one that fetches beforehand and one that serves.
type disk struct {
	name string
	root *os.Root // nothing in the folder leads out of it
}

const (
	maxFiles = 4096
	maxFile  = 4 << 20 // a document's maxBody in base64, and more
	suffix   = ".collateral"
	// unfinished begins the name of a file that is being written.
	unfinished = ".new-"
)

type file struct {
	URL     string      `json:"url"`
	Fetched time.Time   `json:"fetched"`
	Header  http.Header `json:"header"`
	Body    []byte      `json:"body"`
}

func openDisk(dir string) (*disk, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the collateral's folder: %w", err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("open the collateral's folder: %w", err)
	}
	return &disk{name: dir, root: root}, nil
}

func (d *disk) Close() error { return d.root.Close() }

func fileName(url string) string {
	sum := sha256.Sum256([]byte(url))
	return hex.EncodeToString(sum[:]) + suffix
}

func (d *disk) path(url string) string { return filepath.Join(d.name, fileName(url)) }

// load returns nil when there is no such file, and an error when there is one that is not what store wrote.
func (d *disk) load(url string) (*entry, error) {
	// Without O_NONBLOCK a pipe in the file's place would hold the process up.
	f, err := d.root.OpenFile(fileName(url), os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, errors.Join(errors.New("it is not a regular file"), err)
	}
	text, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, err
	}
	if len(text) > maxFile {
		return nil, fmt.Errorf("it is longer than %d bytes", maxFile)
	}
	sum, content, ok := bytes.Cut(text, []byte("\n"))
	if want := sha256.Sum256(content); !ok || string(sum) != hex.EncodeToString(want[:]) {
		return nil, errors.New("its checksum is wrong: it is half-written, or none of ours")
	}
	var document file
	if err := json.Unmarshal(content, &document); err != nil {
		return nil, err
	}
	if document.URL != url {
		return nil, fmt.Errorf("it is about %.120q", document.URL)
	}
	return &entry{url: url, header: document.Header, body: document.Body, fetched: document.Fetched}, nil
}

// store replaces a document's file. It is there whole, or not at all.
func (d *disk) store(e *entry, now time.Time) error {
	content, err := json.Marshal(file{URL: e.url, Fetched: e.fetched, Header: e.header, Body: e.body})
	if err != nil {
		return err
	}
	sum := sha256.Sum256(content)
	if err := d.makeRoom(fileName(e.url), now); err != nil {
		return err
	}
	temporary := unfinished + rand.Text()
	if err := d.write(temporary, []byte(hex.EncodeToString(sum[:])+"\n"), content); err != nil {
		return errors.Join(err, d.root.Remove(temporary))
	}
	if err := d.root.Rename(temporary, fileName(e.url)); err != nil {
		return errors.Join(err, d.root.Remove(temporary))
	}
	return nil
}

func (d *disk) write(name string, parts ...[]byte) (err error) {
	f, err := d.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	for _, part := range parts {
		if _, err := f.Write(part); err != nil {
			return err
		}
	}
	return f.Sync() // before the rename: else a crash may leave the name without the content
}

// makeRoom removes the oldest of our files when there are too many, and what writers that died left behind.
func (d *disk) makeRoom(coming string, now time.Time) error {
	entries, err := fs.ReadDir(d.root.FS(), ".")
	if err != nil {
		return err
	}
	type old struct {
		name string
		time time.Time
	}
	var ours []old
	for _, e := range entries {
		info, err := e.Info()
		switch {
		case err != nil: // another process was faster
		case strings.HasPrefix(e.Name(), unfinished) && now.Sub(info.ModTime()) > time.Hour:
			_ = d.root.Remove(e.Name()) // if it fails, the next one tries again
		case strings.HasSuffix(e.Name(), suffix) && e.Name() != coming:
			ours = append(ours, old{e.Name(), info.ModTime()})
		}
	}
	slices.SortFunc(ours, func(a, b old) int { return a.time.Compare(b.time) })
	for len(ours) >= maxFiles {
		if err := d.root.Remove(ours[0].name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("make room for a document: %w", err)
		}
		ours = ours[1:]
	}
	return nil
}
