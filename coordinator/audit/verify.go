package audit

import (
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"time"
)

// Expect is what a log is compared with. The zero value expects a chain, and nothing of whose it is.
type Expect struct {
	// RootCA is the Coordinator's. A log without a head that its key vouches for is refused.
	RootCA *x509.Certificate
	// Head is one that was kept elsewhere. A log that does not lead through it is refused: its end was cut off, or it is
	// another.
	Head *Head
}

// ParseHead reads SEQ:HASH, as the Coordinator logs both.
func ParseHead(s string) (Head, error) {
	number, hash, _ := strings.Cut(s, ":")
	seq, err := strconv.ParseUint(number, 10, 64)
	b, hexErr := hex.DecodeString(hash)
	if err != nil || hexErr != nil || seq == 0 || len(b) != len(Head{}.Hash) {
		return Head{}, fmt.Errorf("head %q, want SEQ:HASH, a number from 1 and 64 hexadecimal digits", s)
	}
	return Head{Seq: seq, Hash: [32]byte(b)}, nil
}

// Report is what a log was found to be.
type Report struct {
	// Files are those that were read, oldest first.
	Files []string `json:"files"`
	// First and Last are the numbers of the lines that are there. First is 1 unless older files are missing.
	First uint64 `json:"first"`
	Last  uint64 `json:"last"`
	// Hash is the last line's, Time its time.
	Hash string    `json:"hash"`
	Time time.Time `json:"time"`
	// Signed is the newest line that a signed head proves; 0 for none, or where no root CA was given. Unproven are those
	// that none proves, before and after it: what a process wrote in its last minute before it was killed, or somebody else did.
	Signed   uint64  `json:"signed"`
	Unproven []Range `json:"unproven"`
	// Foreign is how many signed heads are another Coordinator's, or where no root CA was given, anybody's.
	Foreign int `json:"foreign"`
	// Events counts the lines by event.
	Events map[string]int `json:"events"`
}

// Range is lines, both ends included.
type Range struct {
	First uint64 `json:"first"`
	Last  uint64 `json:"last"`
}

func (r Range) String() string {
	if r.First == r.Last {
		return fmt.Sprintf("line %d", r.First)
	}
	return fmt.Sprintf("lines %d to %d", r.First, r.Last)
}

// Refusal says that a chain is not the one that was expected.
type Refusal struct{ Reason string }

func (r *Refusal) Error() string { return "the audit log is refused: " + r.Reason }

// ExitCode is 3: it was checked, and it is another.
func (*Refusal) ExitCode() int { return 3 }

// Verify reads a log, the newest file and all that was put aside for it, and calls each, if it is not nil, for every line. What
// each saw before an error is not to be relied on.
func Verify(path string, want Expect, each func(*Line) error) (*Report, error) {
	files, err := olderFiles(path)
	if err != nil {
		return nil, err
	}
	switch _, err := os.Stat(path); {
	case err == nil:
		files = append(files, path)
	case !errors.Is(err, fs.ErrNotExist) || len(files) == 0: // between the two steps of a rotation the newest is missing
		return nil, fmt.Errorf("open the audit log: %w", err)
	}
	v := verification{want: want, report: &Report{Files: files, Unproven: []Range{}, Events: map[string]int{}}, each: each}
	if want.RootCA != nil {
		key, ok := want.RootCA.PublicKey.(*ecdsa.PublicKey)
		if !ok {
			return nil, &Refusal{fmt.Sprintf("the root CA's key is a %T, want ECDSA", want.RootCA.PublicKey)}
		}
		v.root = key
	}
	for i, file := range files {
		if err := v.read(file, i == len(files)-1); err != nil {
			return nil, err
		}
	}
	return v.conclude()
}

type verification struct {
	want   Expect
	root   *ecdsa.PublicKey
	chain  chain
	report *Report
	each   func(*Line) error
	met    bool   // the expected head
	proven uint64 // the newest line of which it is known whether it is proven
}

// unproven takes down that the lines up to last, of which nothing is known yet, are not proven.
func (v *verification) unproven(last uint64) {
	if v.proven < last {
		v.report.Unproven = append(v.report.Unproven, Range{v.proven + 1, last})
	}
}

func (v *verification) read(file string, newest bool) error {
	f, err := os.Open(file)
	if err != nil {
		return fmt.Errorf("open the audit log: %w", err)
	}
	defer f.Close()
	read, err := v.chain.read(file, f, v.line)
	if err != nil {
		return err
	}
	if len(read.torn) > 0 {
		reason := "the line is incomplete, in a file that is"
		if newest {
			reason = "the line is incomplete: the Coordinator crashed, or is writing it now"
		}
		return &Broken{File: file, Line: read.lines + 1, Reason: reason}
	}
	return nil
}

func (v *verification) line(l *Line) error {
	if v.report.First == 0 {
		v.report.First, v.proven = l.Seq, l.Seq-1
	}
	// v.chain.head is the line's own by now.
	if v.want.Head != nil && v.chain.head == *v.want.Head {
		v.met = true
	}
	v.report.Events[l.Name()]++
	v.report.Time = l.Time
	if h, ok := l.Event.(*HeadSigned); ok {
		own := false
		if v.root != nil {
			var err error
			if own, err = h.verifyUnder(v.root); err != nil {
				return &Refusal{fmt.Sprintf("line %d: %v", l.Seq, err)}
			}
		}
		if own {
			v.unproven(h.From - 1)
			v.report.Signed, v.proven = h.Seq, l.Seq // the signature is the line's own proof
		} else {
			v.report.Foreign++
		}
	}
	if v.each != nil {
		return v.each(l)
	}
	return nil
}

func (v *verification) conclude() (*Report, error) {
	r, head := v.report, v.chain.head
	r.Last, r.Hash = head.Seq, hex.EncodeToString(head.Hash[:])
	switch {
	case head.Seq == 0:
		return nil, &Refusal{"it is empty"}
	case v.want.Head != nil && !v.met && v.want.Head.Seq > head.Seq:
		return nil, &Refusal{fmt.Sprintf("it ends with line %d, and line %d was there once: its end was cut off", head.Seq, v.want.Head.Seq)}
	case v.want.Head != nil && !v.met:
		return nil, &Refusal{fmt.Sprintf("line %d is not the one with the hash %x: it is another log", v.want.Head.Seq, v.want.Head.Hash)}
	case v.root != nil && r.Signed == 0:
		return nil, &Refusal{"no line of it is signed by the Coordinator of this root CA"}
	}
	v.unproven(head.Seq)
	return r, nil
}
