package audit

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"time"
)

// maxLine bounds a line, and with it what a reader holds in memory.
const maxLine = 64 << 10

// Line is one line of a log.
type Line struct {
	Seq   uint64 // from 1
	Time  time.Time
	Event Event
	Prev  [sha256.Size]byte // the hash of the line before; all zero before the first
}

// Name is the event's, as it stands in the line.
func (l *Line) Name() string { return l.Event.event() }

// wire is a line's JSON: one object without spaces, its names in this order. The line's hash is SHA-256 of these bytes,
// without the line feed.
type wire struct {
	Seq    uint64          `json:"seq"`
	Time   time.Time       `json:"time"`
	Event  string          `json:"event"`
	Fields json.RawMessage `json:"fields"`
	Prev   string          `json:"prev"`
}

func encode(l Line) ([]byte, error) {
	fields, err := json.Marshal(l.Event)
	if err != nil {
		return nil, fmt.Errorf("encode the audit event %s: %w", l.Event.event(), err)
	}
	text, err := json.Marshal(wire{
		Seq: l.Seq, Time: l.Time, Event: l.Event.event(), Fields: fields, Prev: hex.EncodeToString(l.Prev[:]),
	})
	if err != nil {
		return nil, fmt.Errorf("encode the audit event %s: %w", l.Event.event(), err)
	}
	if len(text) >= maxLine {
		return nil, fmt.Errorf("encode the audit event %s: %d bytes, want fewer than %d", l.Event.event(), len(text), maxLine)
	}
	return text, nil
}

// decode reads what encode writes, byte for byte: a line that says the same in other bytes, or says something twice, is not
// one that a Coordinator wrote.
func decode(text []byte) (*Line, error) {
	var w wire
	if err := json.Unmarshal(text, &w); err != nil {
		return nil, errors.New("it is not an audit line")
	}
	kind, known := events[w.Event]
	if !known {
		return nil, fmt.Errorf("the event %.40q is not known", w.Event)
	}
	event := reflect.New(kind).Interface().(Event)
	if err := json.Unmarshal(w.Fields, event); err != nil {
		return nil, fmt.Errorf("the fields of the event %s are malformed", w.Event)
	}
	l := &Line{Seq: w.Seq, Time: w.Time, Event: event}
	prev, err := hex.DecodeString(w.Prev)
	if err != nil || len(prev) != len(l.Prev) {
		return nil, errors.New("prev is not a hash")
	}
	l.Prev = [sha256.Size]byte(prev)
	if again, err := encode(*l); err != nil || !bytes.Equal(again, text) {
		return nil, errors.New("it is not in the form in which lines are written")
	}
	return l, nil
}

// Broken says where a log is not a chain.
type Broken struct {
	File   string
	Line   int // in the file, from 1
	Reason string
}

func (b *Broken) Error() string {
	return fmt.Sprintf("the audit log is broken: %s, line %d: %s", b.File, b.Line, b.Reason)
}

// ExitCode is 3: it was checked, and it is not a chain.
func (*Broken) ExitCode() int { return 3 }

// Hint says what to do.
func (*Broken) Hint() string {
	return "somebody changed the file, or the disk did; keep it as evidence, put it aside, and compare it with heads that were collected elsewhere"
}

// chain is where a reader is.
type chain struct{ head Head }

// reading is what one file held.
type reading struct {
	lines    int
	complete int64  // bytes of complete lines
	torn     []byte // what stood behind the last line feed
}

// read goes through a file, line by line, and calls each for every line that is the next one.
func (c *chain) read(file string, from io.Reader, each func(*Line) error) (reading, error) {
	var done reading
	lines := bufio.NewReaderSize(from, maxLine)
	for {
		text, err := lines.ReadSlice('\n')
		broken := func(format string, args ...any) error {
			return &Broken{File: file, Line: done.lines + 1, Reason: fmt.Sprintf(format, args...)}
		}
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
			return done, broken("it is longer than %d bytes", maxLine)
		case errors.Is(err, io.EOF):
			done.torn = bytes.Clone(text)
			return done, nil
		case err != nil:
			return done, fmt.Errorf("read the audit log %s: %w", file, err)
		}
		text = text[:len(text)-1]
		line, err := decode(text)
		if err != nil {
			return done, broken("%v", err)
		}
		if reason := c.follows(line); reason != "" {
			return done, broken("%s", reason)
		}
		c.head = Head{Seq: line.Seq, Hash: sha256.Sum256(text)}
		done.lines++
		done.complete += int64(len(text)) + 1
		if each != nil {
			if err := each(line); err != nil {
				return done, err
			}
		}
	}
}

// follows says why a line is not the next one of the chain; "" when it is. A reader that has seen nothing takes the first line
// of a chain, and that of a file whose predecessors are not there.
func (c *chain) follows(l *Line) string {
	_, began := l.Event.(*Began)
	_, continued := l.Event.(*Continued)
	switch {
	case c.head.Seq == 0 && !began && !continued:
		return "the first line neither begins nor continues a chain: lines before it are missing"
	case began != (l.Seq == 1) || began != (l.Prev == [sha256.Size]byte{}):
		return "a chain begins with line 1, and with no other"
	case c.head.Seq == 0:
		return ""
	case l.Seq != c.head.Seq+1:
		return fmt.Sprintf("it has the number %d, want %d", l.Seq, c.head.Seq+1)
	case l.Prev != c.head.Hash:
		return fmt.Sprintf("its prev is not the hash of line %d: one of both was changed", c.head.Seq)
	}
	if h, ok := l.Event.(*HeadSigned); ok && (h.Seq != c.head.Seq || h.Hash != hex.EncodeToString(c.head.Hash[:])) {
		return "it signs another line than the one before it"
	}
	return ""
}

var rotated = regexp.MustCompile(`^\.[0-9]{12,20}$`)

// olderFiles are those that were put aside for path, oldest first.
func olderFiles(path string) ([]string, error) {
	found, err := filepath.Glob(globEscape(path) + ".*")
	if err != nil {
		return nil, fmt.Errorf("look for older files of the audit log: %w", err)
	}
	number := func(file string) uint64 {
		n, _ := strconv.ParseUint(file[len(path)+1:], 10, 64) // the expression admits numbers only
		return n
	}
	found = slices.DeleteFunc(found, func(file string) bool { return !rotated.MatchString(file[len(path):]) })
	slices.SortFunc(found, func(a, b string) int {
		if number(a) < number(b) {
			return -1
		}
		return 1
	})
	return found, nil
}

// globEscape takes a path's own characters literally.
func globEscape(path string) string {
	var b bytes.Buffer
	for _, c := range path {
		switch c {
		case '*', '?', '[', '\\':
			b.WriteByte('\\')
		}
		b.WriteRune(c)
	}
	return b.String()
}
