package audit_test

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"portcullis.dev/portcullis/coordinator/audit"
	"portcullis.dev/portcullis/pki"
	"portcullis.dev/portcullis/tests/netlab"
)

// writerEnv makes the test binary a process that records in an endless loop, for a test that kills it.
const writerEnv = "PORTCULLIS_TEST_RECORD_TO"

func TestMain(m *testing.M) {
	if path := os.Getenv(writerEnv); path != "" {
		fmt.Fprintln(os.Stderr, recordForEver(path))
		os.Exit(1)
	}
	netlab.Main(m) // for a disk that is full
}

func jsonLog(l *netlab.Log) *slog.Logger { return slog.New(slog.NewJSONHandler(l, nil)) }

func open(t *testing.T, path string, maxSize int64) (*audit.Log, *netlab.Log) {
	t.Helper()
	said := &netlab.Log{}
	l, err := audit.Open(audit.Config{Path: path, MaxSize: maxSize, Log: jsonLog(said)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l, said
}

// authority is a seed, its root CA, and what signs with it.
func authority(t *testing.T) (*audit.Signer, *x509.Certificate) {
	t.Helper()
	seed, err := pki.NewSeed(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	root, err := pki.NewRootCA(seed.RootKey(), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	s, err := audit.NewSigner(seed)
	if err != nil {
		t.Fatal(err)
	}
	return s, root
}

func issued(n int) audit.Event {
	return &audit.CertificateIssued{Platform: "snp", Serial: fmt.Sprintf("%x", n), NotAfter: time.Unix(int64(n), 0).UTC(), Generation: 1}
}

func record(t *testing.T, l *audit.Log, from, to int) {
	t.Helper()
	for i := from; i <= to; i++ {
		if err := l.Record(issued(i)); err != nil {
			t.Fatal(err)
		}
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func mustVerify(t *testing.T, path string, want audit.Expect) *audit.Report {
	t.Helper()
	r, err := audit.Verify(path, want, nil)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func mustClose(t *testing.T, l *audit.Log) {
	t.Helper()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestEachLineCarriesTheHashOfTheOneBefore(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	l, _ := open(t, path, 0)
	record(t, l, 1, 3)
	mustClose(t, l)
	var events []string
	prev := strings.Repeat("0", 64)
	for i, line := range strings.Split(strings.TrimSuffix(read(t, path), "\n"), "\n") {
		var got struct {
			Seq    int
			Time   time.Time
			Event  string
			Fields map[string]any
			Prev   string
		}
		if err := json.Unmarshal([]byte(line), &got); err != nil {
			t.Fatal(err)
		}
		if got.Seq != i+1 || got.Prev != prev || time.Since(got.Time) > time.Hour {
			t.Errorf("line %d: %+v, want prev %s", i+1, got, prev)
		}
		sum := sha256.Sum256([]byte(line))
		prev = hex.EncodeToString(sum[:])
		events = append(events, got.Event)
	}
	if want := []string{"began", "certificate-issued", "certificate-issued", "certificate-issued", "stopped"}; !slices.Equal(events, want) {
		t.Errorf("events %v, want %v", events, want)
	}
	if r := mustVerify(t, path, audit.Expect{}); r.Hash != prev || r.First != 1 || r.Last != 5 {
		t.Errorf("%+v, want the head %s", r, prev)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}

func TestALogGoesOnWhereItEnded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	for range 3 {
		l, _ := open(t, path, 0)
		record(t, l, 1, 2)
		mustClose(t, l)
	}
	if r := mustVerify(t, path, audit.Expect{}); r.Last != 10 || r.Events["began"] != 1 || r.Events["stopped"] != 3 {
		t.Errorf("%+v", r)
	}
}

func TestTornLastLineIsCutOffAndThatIsRecorded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	l, _ := open(t, path, 0)
	record(t, l, 1, 2)
	mustClose(t, l)
	whole := read(t, path)
	lastLine := whole[strings.LastIndex(strings.TrimSuffix(whole, "\n"), "\n")+1:]
	for _, n := range []int{1, len(lastLine) / 2, len(lastLine) - 1} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			write(t, path, whole+lastLine[:n])
			if _, err := audit.Verify(path, audit.Expect{}, nil); exitCode(err) != 3 || !strings.Contains(err.Error(), "incomplete") {
				t.Errorf("verify of a torn file: %v", err)
			}
			l, said := open(t, path, 0)
			mustClose(t, l)
			var cut *audit.Cut
			if _, err := audit.Verify(path, audit.Expect{}, func(l *audit.Line) error {
				if c, ok := l.Event.(*audit.Cut); ok {
					cut = c
				}
				return nil
			}); err != nil {
				t.Fatal(err)
			}
			sum := sha256.Sum256([]byte(lastLine[:n]))
			if cut == nil || cut.Bytes != n || cut.SHA256 != hex.EncodeToString(sum[:]) {
				t.Errorf("recorded %+v", cut)
			}
			if len(said.Entries("the audit log's last line was incomplete, as after a crash; it is cut off")) != 1 {
				t.Errorf("the log says nothing:\n%s", said)
			}
			if !strings.HasPrefix(read(t, path), whole) {
				t.Error("complete lines were lost")
			}
		})
	}
}

func exitCode(err error) int {
	if e, ok := errors.AsType[interface {
		error
		ExitCode() int
	}](err); ok {
		return e.ExitCode()
	}
	return -1
}

// Each change that a host can make without knowing how lines are hashed, and some that it can.
func TestTamperedLogIsRefusedByVerifyAndByTheNextStart(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "audit.log")
	l, _ := open(t, path, 0)
	record(t, l, 1, 5)
	mustClose(t, l)
	whole := read(t, path)
	lines := strings.SplitAfter(strings.TrimSuffix(whole, "\n")+"\n", "\n")
	lines = lines[:len(lines)-1]
	join := func(parts ...[]string) string { return strings.Join(slices.Concat(parts...), "") }
	for name, text := range map[string]string{
		"a changed field":            strings.Replace(whole, `"serial":"3"`, `"serial":"4"`, 1),
		"a changed time":             strings.Replace(whole, `"time":"20`, `"time":"19`, 1),
		"a line taken out":           join(lines[:3], lines[4:]),
		"a line doubled":             join(lines[:3], lines[2:]),
		"two lines exchanged":        join(lines[:2], lines[3:4], lines[2:3], lines[4:]),
		"a beginning cut off":        join(lines[1:]),
		"a second beginning":         join(lines, lines[:1]),
		"an empty line":              whole + "\n",
		"a line that is no JSON":     whole + "nonsense\n",
		"an unknown event":           strings.Replace(whole, `"event":"stopped"`, `"event":"paused"`, 1),
		"an unknown field":           strings.Replace(whole, `"fields":{}`, `"fields":{"x":1}`, 1),
		"a field twice":              strings.Replace(whole, `"renewal":false}`, `"renewal":false,"renewal":false}`, 1),
		"another spelling":           strings.Replace(whole, `"seq":3,`, `"seq": 3,`, 1),
		"another name":               strings.Replace(whole, `"seq":3,`, `"Seq":3,`, 1),
		"a line that never ends":     whole + strings.Repeat("x", 70<<10),
		"zeros, as after power loss": whole + strings.Repeat("\x00", 70<<10),
		"a number that jumps":        strings.Replace(whole, `"seq":6,`, `"seq":7,`, 1),
		"a carriage return":          strings.Replace(whole, "\n", "\r\n", 1),
	} {
		t.Run(name, func(t *testing.T) {
			if text == whole {
				t.Fatal("nothing was changed")
			}
			changed := filepath.Join(t.TempDir(), "audit.log")
			write(t, changed, text)
			if _, err := audit.Verify(changed, audit.Expect{}, nil); exitCode(err) != 3 {
				t.Errorf("verify: %v", err)
			}
			if l, err := audit.Open(audit.Config{Path: changed, Log: slog.New(slog.DiscardHandler)}); exitCode(err) != 3 {
				t.Errorf("open: %v", err)
				l.Close()
			}
			if read(t, changed) != text {
				t.Error("a file that was refused was changed")
			}
		})
	}
	mustVerify(t, path, audit.Expect{}) // the control
}

func TestEmptyAndMissingLogsAreNoAnswer(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	if _, err := audit.Verify(path, audit.Expect{}, nil); err == nil || exitCode(err) != -1 {
		t.Errorf("a file that is not there: %v", err)
	}
	write(t, path, "")
	if _, err := audit.Verify(path, audit.Expect{}, nil); exitCode(err) != 3 {
		t.Errorf("an empty file: %v", err)
	}
	if _, err := audit.Open(audit.Config{Path: path}); err == nil {
		t.Error("opened without a log")
	}
	if _, err := audit.Open(audit.Config{Log: slog.New(slog.DiscardHandler)}); err == nil {
		t.Error("opened without a path")
	}
}

// Who puts a link or another kind of file there does not choose what is overwritten.
func TestOnlyAFileOfOneProcessIsTaken(t *testing.T) {
	dir := t.TempDir()
	target := filepath.Join(dir, "target")
	write(t, target, "")
	link := filepath.Join(dir, "link")
	if err := os.Symlink(target, link); err != nil {
		t.Fatal(err)
	}
	held := filepath.Join(dir, "held")
	open(t, held, 0)
	for name, path := range map[string]string{
		"a symbolic link": link, "a folder": dir, "a device": "/dev/null", "one that another process has": held,
		"one in no folder": filepath.Join(dir, "no", "audit.log"),
	} {
		if l, err := audit.Open(audit.Config{Path: path, Log: slog.New(slog.DiscardHandler)}); err == nil {
			l.Close()
			t.Errorf("%s was taken", name)
		}
	}
}

func TestRotationCarriesTheChain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	signer, root := authority(t)
	l, _ := open(t, path, 4<<10)
	l.Sign(signer)
	record(t, l, 1, 100)
	mustClose(t, l)
	whole := mustVerify(t, path, audit.Expect{RootCA: root})
	if whole.Events["certificate-issued"] != 100 || len(whole.Files) < 5 || whole.Events["continued"] != len(whole.Files)-1 {
		t.Fatalf("%+v", whole)
	}
	if len(whole.Unproven) > 0 && whole.Unproven[0].Last != whole.Last {
		t.Errorf("not proven: %v", whole.Unproven)
	}
	for _, f := range whole.Files {
		if info, err := os.Stat(f); err != nil || info.Size() > 8<<10 {
			t.Errorf("%s: %v, %v", f, info, err)
		}
	}
	// A restart goes on.
	l, _ = open(t, path, 4<<10)
	record(t, l, 101, 110)
	mustClose(t, l)
	if r := mustVerify(t, path, audit.Expect{}); r.Events["certificate-issued"] != 110 {
		t.Errorf("%+v", r)
	}
	// The first may be kept elsewhere; one in the middle may not be missing.
	if err := os.Remove(whole.Files[0]); err != nil {
		t.Fatal(err)
	}
	if r := mustVerify(t, path, audit.Expect{}); r.First == 1 {
		t.Errorf("%+v", r)
	}
	if err := os.Remove(whole.Files[2]); err != nil {
		t.Fatal(err)
	}
	if _, err := audit.Verify(path, audit.Expect{}, nil); exitCode(err) != 3 {
		t.Errorf("with a file missing: %v", err)
	}
}

// A crash between the two steps of a rotation leaves no newest file, or an empty one.
func TestInterruptedRotationIsFinishedByTheNextStart(t *testing.T) {
	for _, name := range []string{"no newest file", "an empty newest file"} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "audit.log")
			l, _ := open(t, path, 0)
			record(t, l, 1, 3)
			mustClose(t, l)
			if err := os.Rename(path, path+".000000000005"); err != nil {
				t.Fatal(err)
			}
			if strings.HasPrefix(name, "an empty") {
				write(t, path, "")
			} else {
				mustVerify(t, path, audit.Expect{})
			}
			l, _ = open(t, path, 0)
			mustClose(t, l)
			if r := mustVerify(t, path, audit.Expect{}); r.Events["began"] != 1 || r.Events["continued"] != 1 || r.Last != 7 {
				t.Errorf("%+v", r)
			}
		})
	}
}

func TestSignaturesProveWhatAProcessWroteAndNoMore(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	signer, root := authority(t)
	l, said := open(t, path, 0)
	if _, err := audit.Verify(path, audit.Expect{RootCA: root}, nil); exitCode(err) != 3 {
		t.Errorf("a log that nobody signed: %v", err)
	}
	if p := l.Sign(signer); p != audit.Unsigned {
		t.Errorf("provenance %q", p)
	}
	record(t, l, 1, 3)
	if err := l.RecordDurably(&audit.ManifestSet{Generation: 1, Signers: []string{}}); err != nil {
		t.Fatal(err)
	}
	if s := l.Status(); s.Signed != s.Seq || s.Err != nil {
		t.Errorf("after a manifest %+v", s)
	}
	heads := said.Entries("audit head")
	if len(heads) != 1 {
		t.Fatalf("the log tells %d heads", len(heads))
	}
	told, err := audit.ParseHead(fmt.Sprintf("%v:%v", heads[0]["seq"], heads[0]["hash"]))
	if err != nil {
		t.Fatal(err)
	}
	signedPart := read(t, path)
	record(t, l, 4, 6)
	killed := read(t, path) // as a process that was killed leaves it
	mustClose(t, l)

	// What is written after the last signature is not proven, whoever wrote it.
	write(t, path, killed)
	r := mustVerify(t, path, audit.Expect{RootCA: root, Head: &told})
	if fmt.Sprint(r.Unproven) != "[lines 7 to 9]" || r.Signed != 5 {
		t.Errorf("%+v", r)
	}
	// And a later process of the same Coordinator does not sign for it.
	l, _ = open(t, path, 0)
	if p := l.Sign(signer); p != audit.Own {
		t.Errorf("provenance %q", p)
	}
	record(t, l, 7, 7)
	mustClose(t, l)
	if r = mustVerify(t, path, audit.Expect{RootCA: root, Head: &told}); fmt.Sprint(r.Unproven) != "[lines 7 to 9]" {
		t.Errorf("%+v", r)
	}
	if r := mustVerify(t, path, audit.Expect{}); r.Foreign != 2 || r.Signed != 0 {
		t.Errorf("without a root CA %+v", r)
	}
	// Another Coordinator's root CA.
	_, other := authority(t)
	if _, err := audit.Verify(path, audit.Expect{RootCA: other}, nil); exitCode(err) != 3 {
		t.Errorf("under another root CA: %v", err)
	}

	// The end cut off: only a head that was kept elsewhere shows it.
	write(t, path, signedPart[:strings.Index(signedPart, `{"seq":4,`)])
	mustVerify(t, path, audit.Expect{})
	for name, h := range map[string]audit.Head{"cut off": told, "of another log": {Seq: 2, Hash: [32]byte{1}}} {
		if _, err := audit.Verify(path, audit.Expect{Head: &h}, nil); exitCode(err) != 3 {
			t.Errorf("%s: %v", name, err)
		}
	}

	// A whole chain of the host's making, with all hashes right and the genuine signature put into it.
	write(t, path, "")
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	l, _ = open(t, path, 0)
	hostSigner, _ := authority(t)
	record(t, l, 1, 4)
	l.Sign(hostSigner)
	mustClose(t, l)
	if _, err := audit.Verify(path, audit.Expect{RootCA: root}, nil); exitCode(err) != 3 {
		t.Errorf("a log of the host's making: %v", err)
	}
	l, _ = open(t, path, 0)
	if p := l.Sign(signer); p != audit.Foreign {
		t.Errorf("provenance %q", p)
	}
	mustClose(t, l)
}

// A genuine endorsement beside a signature that is not the key's is no line of any Coordinator.
func TestForgedHeadIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	signer, root := authority(t)
	l, _ := open(t, path, 0)
	l.Sign(signer)
	record(t, l, 1, 1)
	mustClose(t, l)
	var genuine *audit.HeadSigned
	if _, err := audit.Verify(path, audit.Expect{RootCA: root}, func(l *audit.Line) error {
		if h, ok := l.Event.(*audit.HeadSigned); ok {
			genuine = h
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	forged := filepath.Join(t.TempDir(), "audit.log")
	l, _ = open(t, forged, 0)
	record(t, l, 1, 5)
	s := l.Status()
	r := mustVerify(t, forged, audit.Expect{})
	h := *genuine
	h.Seq, h.Hash = s.Seq, r.Hash
	if err := l.Record(&h); err != nil {
		t.Fatal(err)
	}
	mustClose(t, l)
	if _, err := audit.Verify(forged, audit.Expect{RootCA: root}, nil); exitCode(err) != 3 || !strings.Contains(err.Error(), "signature of the head is wrong") {
		t.Errorf("got %v", err)
	}
	// One that names another line than the one before it is no line of a chain, whoever's it is.
	elsewhere := filepath.Join(t.TempDir(), "audit.log")
	l, _ = open(t, elsewhere, 0)
	record(t, l, 1, 5)
	if err := l.Record(genuine); err != nil {
		t.Fatal(err)
	}
	mustClose(t, l)
	if _, err := audit.Verify(elsewhere, audit.Expect{}, nil); exitCode(err) != 3 {
		t.Errorf("a head in another place: %v", err)
	}
}

func TestHeadsAreSignedEveryMinuteAndWhenTheLogIsClosed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	signer, root := authority(t)
	synctest.Test(t, func(t *testing.T) {
		l, _ := open(t, path, 0)
		defer mustClose(t, l)
		l.Sign(signer)
		record(t, l, 1, 3)
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if s := l.Status(); s.Seq != 5 || s.Signed != 5 {
			t.Errorf("after two minutes %+v", s)
		}
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		if s := l.Status(); s.Seq != 5 {
			t.Errorf("with nothing to sign %+v", s)
		}
		record(t, l, 4, 4)
	})
	if r := mustVerify(t, path, audit.Expect{RootCA: root}); r.Signed != 7 || len(r.Unproven) != 0 {
		t.Errorf("after the end %+v", r)
	}
}

func TestRefusalsOfAFloodAreCounted(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	synctest.Test(t, func(t *testing.T) {
		l, _ := open(t, path, 0)
		for range 1000 {
			if err := l.RecordRefusal(&audit.Refused{Route: "/v1/mesh/certificate", Code: "evidence-rejected"}); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(3 * time.Second)
		for range 1000 {
			if err := l.RecordRefusal(&audit.Refused{Route: "/v1/mesh/certificate", Code: "evidence-rejected"}); err != nil {
				t.Fatal(err)
			}
		}
		mustClose(t, l)
	})
	counted := 0
	r, err := audit.Verify(path, audit.Expect{}, func(l *audit.Line) error {
		if o, ok := l.Event.(*audit.RefusalsOmitted); ok {
			counted += o.Count
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if n := r.Events["refused"]; n != 130 || n+counted != 2000 {
		t.Errorf("%d recorded and %d counted of 2000", n, counted)
	}
}

func TestALogThatCannotBeWrittenSaysSo(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	l, _ := open(t, path, 0)
	record(t, l, 1, 1)
	restore, err := l.Unwritable()
	if err != nil {
		t.Fatal(err)
	}
	for _, write := range []func(audit.Event) error{l.Record, l.RecordDurably, l.RecordRefusal} {
		if err := write(issued(2)); err == nil {
			t.Error("recorded on a full disk")
		}
	}
	if s := l.Status(); s.Failures < 3 || s.Err == nil || s.Seq != 2 {
		t.Errorf("%+v", s)
	}
	restore()
	// What the kernel took of a line could not be cut off (/dev/full), so nothing may come after it.
	if err := l.Record(issued(3)); err == nil {
		t.Error("a line was written behind one that may be there in part")
	}
	if err := l.Close(); err == nil {
		t.Error("closed as if nothing had happened")
	}
	if r := mustVerify(t, path, audit.Expect{}); r.Last != 2 {
		t.Errorf("%+v", r)
	}
}

func TestALogGoesOnWhenTheDiskHasRoomAgain(t *testing.T) {
	disk := t.TempDir()
	if err := unix.Mount("none", disk, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(disk, unix.MNT_DETACH)
	path, filler := filepath.Join(disk, "audit.log"), filepath.Join(disk, "filler")
	l, _ := open(t, path, 0)
	write(t, filler, strings.Repeat("x", 48<<10))
	n := 0
	for ; n < 1000 && l.Record(issued(n)) == nil; n++ {
	}
	if err := l.Status().Err; !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("after %d lines: %v", n, err)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	record(t, l, n, n+10)
	if err := l.Status().Err; err != nil {
		t.Error(err)
	}
	mustClose(t, l)
	if r := mustVerify(t, path, audit.Expect{}); r.Events["certificate-issued"] != n+11 {
		t.Errorf("%d lines in all, %+v", n+11, r)
	}
}

func TestNoLogRecordsNothingAndHoldsNothingUp(t *testing.T) {
	var l *audit.Log
	for _, err := range []error{l.Record(issued(1)), l.RecordDurably(issued(1)), l.RecordRefusal(issued(1)), l.SignHead(), l.Close()} {
		if err != nil {
			t.Error(err)
		}
	}
	if l.Sign(nil) != "" || l.Status() != (audit.Status{}) {
		t.Error("no log says something")
	}
}

func TestAClosedLogTakesNothing(t *testing.T) {
	l, _ := open(t, filepath.Join(t.TempDir(), "audit.log"), 0)
	mustClose(t, l)
	if err := l.Record(issued(1)); err == nil {
		t.Error("a closed log recorded something")
	}
	mustClose(t, l)
}

func TestManyAtATimeMakeOneChain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	signer, root := authority(t)
	l, _ := open(t, path, 64<<10)
	l.Sign(signer)
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := range 200 {
				var err error
				switch {
				case i%100 == 0:
					err = l.RecordDurably(issued(w*1000 + i))
				default:
					err = l.Record(issued(w*1000 + i))
				}
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	mustClose(t, l)
	if r := mustVerify(t, path, audit.Expect{RootCA: root}); r.Events["certificate-issued"] != 1600 || len(r.Files) < 2 || len(r.Unproven) > 0 {
		t.Errorf("%+v", r)
	}
}

func recordForEver(path string) error {
	l, err := audit.Open(audit.Config{Path: path, MaxSize: 8 << 10, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	for n := 1; ; n++ {
		if err := l.Record(issued(n)); err != nil {
			return err
		}
		fmt.Println(n)
	}
}

// What was announced was recorded before: it is there after the process was killed, whole and in order.
func TestKilledProcessLosesNoLineThatWasAnnounced(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "audit.log")
	for round := range 3 {
		writer := exec.CommandContext(t.Context(), self)
		writer.Env = append(os.Environ(), writerEnv+"="+path)
		writer.Stderr = os.Stderr
		stdout, err := writer.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := writer.Start(); err != nil {
			t.Fatal(err)
		}
		var said bytes.Buffer
		buffer := make([]byte, 512)
		for said.Len() < 400*(round+1) {
			n, err := stdout.Read(buffer)
			if err != nil {
				t.Fatal(err)
			}
			said.Write(buffer[:n])
		}
		writer.Process.Kill()
		rest := make([]byte, 64<<10)
		for {
			n, err := stdout.Read(rest)
			said.Write(rest[:n])
			if err != nil {
				break
			}
		}
		writer.Wait()
		lines := strings.Fields(said.String()[:strings.LastIndexByte(said.String(), '\n')])
		l, _ := open(t, path, 8<<10)
		mustClose(t, l)
		last := 0
		if _, err := audit.Verify(path, audit.Expect{}, func(l *audit.Line) error {
			if c, ok := l.Event.(*audit.CertificateIssued); ok {
				fmt.Sscanf(c.Serial, "%x", &last)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if announced := lines[len(lines)-1]; fmt.Sprint(last) != announced && fmt.Sprint(last-1) != announced {
			t.Errorf("the last line is %d, and %s was announced", last, announced)
		}
	}
}

func TestParseHead(t *testing.T) {
	h, err := audit.ParseHead("7:" + strings.Repeat("ab", 32))
	if err != nil || h.Seq != 7 || h.String() != "7:"+strings.Repeat("ab", 32) {
		t.Errorf("%v, %v", h, err)
	}
	for _, s := range []string{"", "7", "7:", ":" + strings.Repeat("ab", 32), "0:" + strings.Repeat("ab", 32), "7:ab", "-1:" + strings.Repeat("ab", 32), "x:" + strings.Repeat("ab", 32)} {
		if _, err := audit.ParseHead(s); err == nil {
			t.Errorf("%q was taken", s)
		}
	}
}

func TestASignerIsNotPrinted(t *testing.T) {
	seed, err := pki.NewSeed(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	s, err := audit.NewSigner(seed)
	if err != nil {
		t.Fatal(err)
	}
	d, err := seed.TransactionKey().Bytes()
	if err != nil {
		t.Fatal(err)
	}
	var printed strings.Builder
	for _, verb := range []string{"%v", "%+v", "%#v", "%s"} {
		fmt.Fprintf(&printed, verb+verb+verb, s, *s, struct{ S audit.Signer }{*s})
	}
	if strings.Count(printed.String(), "REDACTED") != 12 {
		t.Errorf("printed %s", printed.String())
	}
	if strings.Contains(printed.String(), hex.EncodeToString(d)) || strings.Contains(printed.String(), new(big.Int).SetBytes(d).String()) {
		t.Error("the key is printed")
	}
}

func BenchmarkRecord(b *testing.B) {
	l, err := audit.Open(audit.Config{Path: filepath.Join(b.TempDir(), "audit.log"), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	for b.Loop() {
		if err := l.Record(issued(1)); err != nil {
			b.Fatal(err)
		}
	}
}
