package judge_test

import (
	"slices"
	"strings"
	"testing"

	"portcullis.dev/portcullis/attestation"
	"portcullis.dev/portcullis/attestation/internal/judge"
)

func TestNothingExpectedRejects(t *testing.T) {
	accept := func(struct{}) (int, *attestation.Rejected) { return 0, nil }
	if i, r := judge.Any(nil, accept); i != -1 || r == nil || r.Field != "PLATFORM" {
		t.Errorf("got %d and %v, want PLATFORM rejected", i, r)
	}
}

func TestTheClosestReferenceValueIsTold(t *testing.T) {
	bad := func(field string) judge.Check {
		return func() *attestation.Rejected { return judge.Rejected(field, "1", "0") }
	}
	good := func() *attestation.Rejected { return nil }
	references := [][]judge.Check{{bad("A")}, {good, bad("B")}, {bad("C"), good}}
	try := func(checks []judge.Check) (int, *attestation.Rejected) { return judge.First(checks...) }
	if i, r := judge.Any(references, try); i != -1 || r == nil || r.Field != "B" {
		t.Errorf("got %d and %v, want B rejected", i, r)
	}
	if i, r := judge.Any(append(references, []judge.Check{good}), try); i != 3 || r != nil {
		t.Errorf("got %d and %v, want the fourth to accept", i, r)
	}
}

func TestAPanicIsARejectionWithoutClaims(t *testing.T) {
	validate := func() (claims attestation.Claims, err error) {
		defer judge.Recover(&claims, &err)
		claims.Platform = attestation.SNP
		panic("hostile bytes")
	}
	claims, err := validate()
	if r, ok := err.(*attestation.Rejected); !ok || !strings.Contains(r.Got, "hostile bytes") || claims.Platform != "" {
		t.Errorf("got %+v and %v, want a rejection and no claims", claims, err)
	}
}

func TestAPolicyHashIsWholeAndNotZero(t *testing.T) {
	for _, bad := range [][]byte{nil, make([]byte, 32), make([]byte, 31), {1}, append(make([]byte, 32), 1)} {
		if r := judge.PolicyHash("HOST_DATA", bad); r == nil || r.Field != "HOST_DATA" {
			t.Errorf("%x: got %v, want HOST_DATA rejected", bad, r)
		}
	}
	if r := judge.PolicyHash("HOST_DATA", append(make([]byte, 31), 1)); r != nil {
		t.Error(r)
	}
}

func TestHexIsExact(t *testing.T) {
	for text, want := range map[string]string{
		"":       "is missing, want 4 ",
		"abc":    "is not 4 ",
		"ab":     "is not 4 ",
		"abcdef": "is not 4 ",
		"ABCD":   "is not 4 ",
		"abcx":   "is not 4 ",
		" abcd":  "is not 4 ",
		"0000":   "is all zero",
	} {
		if _, err := judge.ParseHex(text, 2); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %q", text, err, want)
		}
	}
	if b, err := judge.ParseHex("00ff", 2); err != nil || len(b) != 2 || b[1] != 0xff {
		t.Errorf("got %x and %v", b, err)
	}
}

func TestANumberIsWrittenDown(t *testing.T) {
	for _, n := range []int{-1, 256} {
		if _, err := judge.ParseNumber(&n, 255); err == nil || !strings.Contains(err.Error(), "want 0 to 255") {
			t.Errorf("%d: got %v", n, err)
		}
	}
	if _, err := judge.ParseNumber(nil, 255); err == nil || !strings.Contains(err.Error(), "is missing") {
		t.Errorf("none: got %v", err)
	}
	zero := 0
	if _, err := judge.ParseNumber(&zero, 255); err != nil {
		t.Error(err)
	}
}

func TestCompareTellsEachThingOnce(t *testing.T) {
	wrong := []*attestation.Rejected{
		judge.Rejected("POLICY.DEBUG", "0", "1"), judge.Rejected("POLICY", "0", "2"), judge.Rejected("TCB.SNP", "2", "1"),
		judge.Rejected("CHAIN.ASK", "one", "none"), judge.Rejected("TCB.SNP", "3", "1"),
	}
	var got []string
	for _, c := range judge.Compare([]string{"POLICY.DEBUG", "POLICY", "POLICY.SMT", "TCB", "TCBX"}, wrong) {
		line := c.Field
		if c.Wrong != nil {
			line += " wants " + c.Wrong.Want
		}
		got = append(got, line)
	}
	want := []string{
		"POLICY.DEBUG wants 0", "POLICY wants 0", "POLICY.SMT", "TCB.SNP wants 2", "TCB.SNP wants 3", "TCBX", "CHAIN.ASK wants one",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

func TestAllTellsEverythingThatIsWrong(t *testing.T) {
	ok := func() *attestation.Rejected { return nil }
	no := func() *attestation.Rejected { return judge.Rejected("A", "0", "1") }
	if wrong := judge.All(no, ok, no); len(wrong) != 2 {
		t.Errorf("got %v", wrong)
	}
	if wrong := judge.All(ok); len(wrong) != 0 {
		t.Errorf("got %v", wrong)
	}
}

func TestAPanicWhileComparingIsWrongInEachReferenceValue(t *testing.T) {
	inspect := func() (all [][]attestation.Comparison) {
		defer judge.RecoverComparisons(2, &all)
		panic("hostile bytes")
	}
	all := inspect()
	if len(all) != 2 || len(all[1]) != 1 || all[1][0].Field != "REPORT" || all[1][0].Wrong == nil {
		t.Errorf("got %v", all)
	}
}
