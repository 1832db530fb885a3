package snp_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/google/go-sev-guest/abi"
	"github.com/google/uuid"

	"portcullis.dev/portcullis/attestation"
	"portcullis.dev/portcullis/tests/simtee"
)

// mutator makes bad evidence of good, by a program of bytes: an instruction, and what it takes.
type mutator struct {
	program []byte
	good    attestation.Evidence
	parts   []abi.CertTableEntry
	foreign [][]byte // certificates that do not belong here
}

func newMutator(t testing.TB, s *scene) *mutator {
	t.Helper()
	w, ek, signer := s.machine.World, abi.VcekGUID, s.machine.World.ASK.Raw
	key := w.VCEK.Raw
	if s.reference.SigningKey == "VLEK" {
		ek, key, signer = abi.VlekGUID, w.VLEK.Raw, w.ASVK.Raw
	}
	m := &mutator{
		good: s.issue(t),
		// Nothing that nobody looks at, such as an ARK: to change it makes no difference.
		parts: []abi.CertTableEntry{
			{GUID: uuid.MustParse(ek), RawCert: key}, {GUID: uuid.MustParse(abi.AskGUID), RawCert: signer},
		},
	}
	for _, other := range []*simtee.World{w, worlds["Genoa"](), forger()} {
		for _, c := range [][]byte{other.ARK.Raw, other.ASK.Raw, other.VCEK.Raw} {
			if !slices.Equal(c, key) && !slices.Equal(c, signer) {
				m.foreign = append(m.foreign, c)
			}
		}
	}
	m.good.Certificates = simtee.Table(m.parts...)
	return m
}

// next takes a number below n from the program, which ends in zeros.
func (m *mutator) next(n int) int {
	var word [2]byte
	m.program = m.program[copy(word[:], m.program):]
	return (int(word[0])<<8 | int(word[1])) % n
}

// mutate runs a program. The second result says whether the evidence is still the good one.
func (m *mutator) mutate(program []byte) (attestation.Evidence, bool) {
	m.program = program
	e := attestation.Evidence{
		Platform: m.good.Platform, Report: slices.Clone(m.good.Report), Certificates: slices.Clone(m.good.Certificates),
	}
	for first := true; first || len(m.program) > 0; first = false {
		m.step(&e)
	}
	return e, e.Platform == m.good.Platform && slices.Equal(e.Report, m.good.Report) &&
		slices.Equal(e.Certificates, m.good.Certificates)
}

// fields are where those of ATTESTATION_REPORT begin (AMD document 56860).
var fields = []int{
	0x00, 0x04, 0x08, 0x10, 0x20, 0x30, 0x34, 0x38, 0x40, 0x48, 0x4c, 0x50, 0x90, 0xc0, 0xe0, 0x110, 0x140, 0x160, 0x180,
	0x188, 0x18b, 0x1a0, 0x1e0, 0x1e8, 0x1eb, 0x1ec, 0x1ef, 0x1f0, 0x1f8, 0x200, 0x208, 0x2a0, 0x2e8, 0x330, 0x4a0,
}

func (m *mutator) step(e *attestation.Evidence) {
	part := func(of []byte) []byte {
		if len(of) == 0 {
			return nil
		}
		from := m.next(len(of))
		return of[from : from+1+m.next(min(len(of)-from, 64))]
	}
	field := func() []byte {
		i := m.next(len(fields) - 1)
		if len(e.Report) < fields[i+1] {
			return nil
		}
		return e.Report[fields[i]:fields[i+1]]
	}
	fill := func(b []byte) {
		for i := range b {
			b[i] = byte(m.next(256))
		}
	}
	flip := func(b []byte) {
		if len(b) > 0 {
			b[m.next(len(b))] ^= 1 << m.next(8)
		}
	}
	switch m.next(16) {
	case 0, 1:
		flip(e.Report)
	case 2:
		flip(field())
	case 3:
		fill(field())
	case 4:
		clear(field())
	case 5:
		fill(part(e.Report))
	case 6:
		e.Report = e.Report[:m.next(len(e.Report)+1)]
	case 7:
		e.Report = append(e.Report, make([]byte, 1+m.next(4096))...)
	case 8:
		copy(part(e.Report), part(m.good.Report))
	case 9, 10:
		flip(e.Certificates)
	case 11:
		flip(e.Certificates[:min(len(e.Certificates), 3*abi.CertTableEntrySize)])
	case 12:
		e.Certificates = e.Certificates[:m.next(len(e.Certificates)+1)]
	case 13:
		parts := slices.Clone(m.parts)
		switch i := m.next(len(parts)); m.next(4) {
		case 0:
			parts[i].RawCert = m.foreign[m.next(len(m.foreign))]
		case 1:
			parts[0].RawCert, parts[1].RawCert = parts[1].RawCert, parts[0].RawCert
		case 2:
			parts = slices.Delete(parts, i, i+1)
		case 3:
			parts[i].RawCert = slices.Clone(parts[i].RawCert)
			fill(part(parts[i].RawCert))
		}
		e.Certificates = simtee.Table(parts...)
	case 14:
		fill(part(e.Certificates))
	case 15:
		e.Platform = []attestation.Platform{"", attestation.TDX, attestation.Simulated, "SNP"}[m.next(4)]
	}
}

// judged complains about evidence that was accepted, though it is not the good one, and of anything but a clear refusal.
func judged(t testing.TB, v attestation.Validator, e attestation.Evidence, good bool) {
	claims, err := v.Validate(context.Background(), e, reportData)
	if good {
		if err != nil {
			t.Errorf("good evidence was refused: %v", err)
		}
		return
	}
	if err == nil || claims.PolicyHash.Valid() {
		t.Errorf("forged evidence was accepted: report %x, certificates %x", e.Report, e.Certificates)
		return
	}
	r, rejected := errors.AsType[*attestation.Rejected](err)
	_, unavailable := errors.AsType[*attestation.Unavailable](err)
	if !rejected && !unavailable || rejected && strings.Contains(r.Got, "panic") {
		t.Errorf("got %v, want a rejection without a panic", err)
	}
}

// stage is a scene whose KDS has revocation lists and nothing else: certificates have to be in the evidence.
func stage(s *scene) *scene {
	s.kds.Answer = func(_ context.Context, url string, body []byte) ([]byte, error) {
		if !strings.HasSuffix(url, "/crl") {
			return nil, errors.New("no route to host")
		}
		return body, nil
	}
	return s
}

// A hundredth of what a soak runs.
func TestNoMutatedEvidenceIsAccepted(t *testing.T) {
	rounds := 10_000
	if os.Getenv("PORTCULLIS_SOAK") == "1" {
		rounds = 1_000_000
	}
	workers := runtime.GOMAXPROCS(0)
	var group errgroup.Group
	for worker := range workers {
		s := stage(set("Milan"))
		if worker%2 == 1 {
			s.cloud()
		}
		group.Go(func() error {
			v, m := s.validator(t), newMutator(t, s)
			judged(t, v, m.good, true)
			r := rand.New(rand.NewPCG(1, uint64(worker)))
			for range rounds / workers {
				program := make([]byte, 4+r.IntN(40))
				for i := range program {
					program[i] = byte(r.Uint32())
				}
				e, good := m.mutate(program)
				judged(t, v, e, good)
				if t.Failed() {
					return nil
				}
			}
			judged(t, v, m.good, true)
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		t.Error(err)
	}
}

func FuzzValidate(f *testing.F) {
	s := stage(set("Milan"))
	v, m := s.validator(f), newMutator(f, s)
	for step := range 16 {
		f.Add([]byte{0, byte(step), 1, 2, 3, 4, 5, 6})
	}
	f.Fuzz(func(t *testing.T, program []byte) {
		e, good := m.mutate(program)
		judged(t, v, e, good)
	})
}

func TestTruncatedEvidenceIsRefusedAtEveryLength(t *testing.T) {
	s := stage(set("Milan"))
	v, m := s.validator(t), newMutator(t, s)
	for n := range m.good.Report {
		judged(t, v, attestation.Evidence{
			Platform: attestation.SNP, Report: m.good.Report[:n], Certificates: m.good.Certificates,
		}, false)
	}
	for n := range m.good.Certificates {
		judged(t, v, attestation.Evidence{
			Platform: attestation.SNP, Report: m.good.Report, Certificates: m.good.Certificates[:n],
		}, false)
	}
}
