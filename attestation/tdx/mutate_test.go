package tdx_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"

	"portcullis.dev/portcullis/attestation"
	"portcullis.dev/portcullis/attestation/tdx"
	"portcullis.dev/portcullis/tests/simtdx"
)

// Where things are in a quote of a simtdx.Machine: [from, to).
var regions = [][2]int{
	{0, 2},
	{2, 4},
	{4, 8},
	{12, 28},
	{48, 64},     // TEE_TCB_SVN
	{64, 112},    // MRSEAM
	{168, 176},   // TDATTRIBUTES
	{176, 184},   // XFAM
	{184, 232},   // MRTD
	{232, 280},   // MRCONFIGID
	{376, 568},   // RTMRs
	{568, 632},   // REPORTDATA
	{632, 636},   // size of the signature data
	{636, 700},   // signature
	{700, 764},   // attestation key
	{764, 766},   // certification data type
	{766, 770},   // and size
	{770, 1154},  // QE report
	{1154, 1218}, // QE report signature
	{1218, 1220}, // size of the authentication data
	{1220, 1252}, // authentication data
	{1252, 1254}, // type of the chain
	{1254, 1258}, // and size
	{1258, 4000}, // chain
}

// mutator spoils evidence: blindly, by field, and by mixing it with other evidence that is good in itself.
type mutator struct {
	good  []byte
	other [][]byte // good over other report data, of another policy too, and of another world
}

func newMutator(t testing.TB, m *simtdx.Machine, good []byte) *mutator {
	t.Helper()
	u := &mutator{good: good}
	// With attestation keys of their own: for one key, a QE report and its signature are as good as another.
	plan := *m.World.Plan
	plan.Keys.Attestation = world(t).Plan.Keys.Attestation
	same := *m.World
	same.Plan = &plan
	for i, other := range []*simtdx.Machine{
		same.Machine(policy), same.Machine(attestation.PolicyHash{1}), world(t).Machine(policy),
	} {
		e, err := other.Issue(t.Context(), attestation.NewReportData("test", []byte{byte(i)}))
		if err != nil {
			t.Fatal(err)
		}
		u.other = append(u.other, e.Report)
	}
	return u
}

// mutate changes something, most often one thing.
func (u *mutator) mutate(r *rand.Rand) []byte {
	b := bytes.Clone(u.good)
	for range 1 + r.IntN(2)*r.IntN(3) {
		b = u.once(r, b)
	}
	return b
}

func (u *mutator) once(r *rand.Rand, b []byte) []byte {
	if len(b) == 0 {
		return b
	}
	region := regions[r.IntN(len(regions))]
	from, to := min(region[0], len(b)), min(region[1], len(b))
	at := r.IntN(len(b))
	switch r.IntN(11) {
	case 0: // a bit anywhere
		b[at] ^= 1 << r.IntN(8)
	case 1: // a byte anywhere
		b[at] = byte(r.Uint32())
	case 2: // a bit in a field
		if from < to {
			b[from+r.IntN(to-from)] ^= 1 << r.IntN(8)
		}
	case 3: // a field of one value
		fill := byte(r.Uint32())
		for i := from; i < to; i++ {
			b[i] = fill
		}
	case 4: // a field of noise
		for i := from; i < to; i++ {
			b[i] = byte(r.Uint32())
		}
	case 5: // a field of other evidence
		other := u.other[r.IntN(len(u.other))]
		copy(b[from:to], other[min(from, len(other)):min(to, len(other))])
	case 6: // the rest of other evidence
		other := u.other[r.IntN(len(u.other))]
		b = append(b[:from:from], other[min(from, len(other)):]...)
	case 7: // cut off
		b = b[:at]
	case 8: // cut out
		b = slices.Delete(b, at, min(len(b), at+1+r.IntN(64)))
	case 9: // put in
		b = slices.Insert(b, at, make([]byte, 1+r.IntN(64))...)
	case 10: // a size
		size := [][2]int{{632, 4}, {766, 4}, {1218, 2}, {1254, 4}}[r.IntN(4)]
		if size[0]+4 > len(b) {
			return b
		}
		value := []uint32{0, 1, r.Uint32(), 0xffffffff, 0x80000000, uint32(r.IntN(8000))}[r.IntN(6)]
		if size[1] == 2 {
			binary.LittleEndian.PutUint16(b[size[0]:], uint16(value))
		} else {
			binary.LittleEndian.PutUint32(b[size[0]:], value)
		}
	}
	return b
}

// check wants a refusal that is not a panic, or the same evidence in another spelling (PEM has many).
func check(t testing.TB, v attestation.Validator, good, mutated []byte) {
	t.Helper()
	_, err := v.Validate(t.Context(), attestation.Evidence{Platform: attestation.TDX, Report: mutated}, reportData)
	var r *attestation.Rejected
	switch {
	case err == nil:
		if !bytes.Equal(tdx.Meaning(mutated), tdx.Meaning(good)) {
			t.Fatalf("accepted: %s", difference(mutated, good))
		}
	case !errors.As(err, &r):
		t.Fatalf("got %v, want a rejection", err)
	case strings.Contains(r.Got, "panic"):
		t.Fatalf("%v: %s", err, difference(mutated, good))
	}
}

func difference(mutated, good []byte) string {
	at := 0
	for at < min(len(mutated), len(good)) && mutated[at] == good[at] {
		at++
	}
	return fmt.Sprintf("%d bytes, which differ from the good %d from byte %d on", len(mutated), len(good), at)
}

// 10^4 mutations, and with PORTCULLIS_SOAK=1 10^6.
func TestNoMutatedEvidenceIsAccepted(t *testing.T) {
	n := 10_000
	if os.Getenv("PORTCULLIS_SOAK") == "1" {
		n = 1_000_000
	}
	w := world(t, func(p *simtdx.Plan) { p.Keys = simtdx.PublishedKeys() })
	m := w.Machine(policy)
	v := validator(t, options(w), m.Reference())
	good := issue(t, m).Report
	u, r := newMutator(t, m, good), rand.New(rand.NewPCG(1, 0))
	for range n {
		check(t, v, good, u.mutate(r))
	}
	if collateral, agreed := tdx.Remembered(v); collateral > 1 {
		t.Errorf("remembered %d, %d findings for forged evidence", collateral, agreed)
	}
}

func FuzzValidate(f *testing.F) {
	w := world(f, func(p *simtdx.Plan) { p.Keys = simtdx.PublishedKeys() }) // what a worker found good is good to all
	m := w.Machine(policy)
	v := validator(f, options(w), m.Reference())
	good := issue(f, m).Report
	u := newMutator(f, m, good)
	f.Add(uint64(0), []byte(nil))
	f.Add(uint64(1), good)
	f.Fuzz(func(t *testing.T, seed uint64, b []byte) {
		check(t, v, good, u.mutate(rand.New(rand.NewPCG(seed, 0))))
		check(t, v, good, b)
	})
}
