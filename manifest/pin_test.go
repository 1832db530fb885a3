package manifest_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"strings"
	"testing"

	"portcullis.dev/portcullis/attestation"
	"portcullis.dev/portcullis/attestation/simulated"
	"portcullis.dev/portcullis/attestation/snp"
	"portcullis.dev/portcullis/manifest"
	"portcullis.dev/portcullis/tests/simtee"
)

func newPin(t *testing.T) manifest.Pin {
	t.Helper()
	w, err := simtee.New(simtee.PublishedKeys())
	if err != nil {
		t.Fatal(err)
	}
	return manifest.Pin{
		PolicyHash:      attestation.PolicyHash{1},
		ReferenceValues: manifest.ReferenceValues{Simulated: []simulated.ReferenceValue{w.Reference(simtee.Measurement{1})}},
		WorkloadOwners:  manifest.OwnersDigest{2},
	}
}

func TestAPinIsReadAsItWasWritten(t *testing.T) {
	p := newPin(t)
	text, err := p.Text()
	if err != nil {
		t.Fatal(err)
	}
	if strings.ContainsAny(text, "\n$") {
		t.Errorf("%q is no argument: it has more than one line, or what Kubernetes would expand", text)
	}
	read, err := manifest.ParsePin(text)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := read.Text(); err != nil || again != text {
		t.Errorf("read and written again it is %s, %v, want %s", again, err, text)
	}
}

func TestAPinIsReadStrictly(t *testing.T) {
	good, err := new(newPin(t)).Text()
	if err != nil {
		t.Fatal(err)
	}
	values := good[strings.Index(good, `"ReferenceValues"`):strings.Index(good, `,"WorkloadOwners"`)]
	hash, owners, zero := strings.Repeat("a", 64), strings.Repeat("b", 64), strings.Repeat("0", 64)
	first, second := newPin(t).PolicyHash.String(), newPin(t).WorkloadOwners.String()
	pin := func(hash, owners string) string {
		return `{"PolicyHash":"` + hash + `",` + values + `,"WorkloadOwners":"` + owners + `"}`
	}
	if _, err := manifest.ParsePin(pin(hash, owners)); err != nil {
		t.Fatalf("the table's pin is wrong: %v", err)
	}
	for name, tc := range map[string]struct{ text, fault string }{
		"empty":                 {"", "line 1, column 1"},
		"a space":               {" ", "line 1"},
		"null":                  {"null", "null is not a value here"},
		"a list":                {"[]", "want an object"},
		"not JSON":              {"PolicyHash", "line 1"},
		"an empty object":       {"{}", "PolicyHash: it is missing"},
		"no policy hash":        {strings.Replace(good, `"PolicyHash":"`+first+`",`, "", 1), "PolicyHash: it is missing"},
		"no reference values":   {strings.Replace(good, values+",", "", 1), "ReferenceValues: there are none"},
		"empty references":      {strings.Replace(good, values, `"ReferenceValues":{"SNP":[]}`, 1), "ReferenceValues: there are none"},
		"no workload owners":    {strings.Replace(good, `,"WorkloadOwners":"`+second+`"`, "", 1), "WorkloadOwners: they are missing"},
		"zero policy hash":      {pin(zero, owners), "PolicyHash: policy hash is all zero"},
		"zero workload owners":  {pin(hash, zero), "WorkloadOwners: owners' digest is all zero"},
		"short workload owners": {pin(hash, "02"), "is not 64 lower-case"},
		"upper case":            {pin(hash, strings.Repeat("A", 64)), "is not 64 lower-case"},
		"an unknown field":      {strings.Replace(good, "{", `{"Any":true,`, 1), "Any: "},
		"another case":          {strings.Replace(good, "WorkloadOwners", "workloadOwners", 1), "workloadOwners: "},
		"a field twice":         {strings.Replace(good, "{", `{"PolicyHash":"`+hash+`",`, 1), "occurs twice"},
		"something behind it":   {good + "{}", "something follows"},
		"a bad measurement":     {strings.Replace(good, `"Measurement":"01`, `"Measurement":"`, 1), "ReferenceValues.Simulated[0].Measurement"},
		"too long":              {good + strings.Repeat(" ", 64<<10), "at most 65536 are allowed"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := manifest.ParsePin(tc.text); err == nil || !strings.Contains(err.Error(), tc.fault) {
				t.Errorf("got %v, want an error that says %q", err, tc.fault)
			}
		})
	}
}

func TestAPinTrustsNoHardwareBesideASimulatedTEE(t *testing.T) {
	p := newPin(t)
	p.ReferenceValues.SNP = []snp.ReferenceValue{{}}
	if _, err := p.Text(); err == nil || !strings.Contains(err.Error(), "must not also trust what only looks like it") {
		t.Errorf("got %v", err)
	}
}

// The zero value, and every part of it, denies, whoever made it.
func TestAnIncompletePinJudgesNothing(t *testing.T) {
	for name, alter := range map[string]func(*manifest.Pin){
		"zero":                func(p *manifest.Pin) { *p = manifest.Pin{} },
		"no policy hash":      func(p *manifest.Pin) { p.PolicyHash = attestation.PolicyHash{} },
		"no reference values": func(p *manifest.Pin) { p.ReferenceValues = manifest.ReferenceValues{} },
		"no workload owners":  func(p *manifest.Pin) { p.WorkloadOwners = manifest.OwnersDigest{} },
	} {
		p := newPin(t)
		alter(&p)
		if v, err := p.Validator(manifest.ValidatorOptions{}); err == nil {
			t.Errorf("%s: there is a validator %v", name, v)
		}
		if text, err := p.Text(); err == nil {
			t.Errorf("%s: it is written as %s", name, text)
		}
	}
	if err := new(manifest.Pin).CheckOwners([]*manifest.Transition{{Manifest: new(manifest.Manifest)}}); err == nil {
		t.Error("no owners are taken for no owners")
	}
	if err := new(newPin(t)).CheckOwners(nil); err == nil {
		t.Error("no history has the right owners")
	}
}

func TestTheOwnersDigestIsOfKeysAndThreshold(t *testing.T) {
	m := &manifest.Manifest{WorkloadOwnerThreshold: 2}
	if m.OwnersDigest() != (manifest.OwnersDigest{}) {
		t.Error("a manifest without owners has a digest")
	}
	var keys []string
	for range 3 {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		owner, err := manifest.NewOwnerKey(&key.PublicKey)
		if err != nil {
			t.Fatal(err)
		}
		m.WorkloadOwnerKeys = append(m.WorkloadOwnerKeys, owner)
		digest := sha256.Sum256(owner.SPKI())
		keys = append(keys, hex.EncodeToString(digest[:]))
	}
	slices.Sort(keys)
	want := manifest.OwnersDigest(sha256.Sum256([]byte("portcullis owners v1:2:" + strings.Join(keys, ":"))))
	if got := m.OwnersDigest(); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	slices.Reverse(m.WorkloadOwnerKeys)
	if got := m.OwnersDigest(); got != want {
		t.Errorf("in another order it is %s, want %s", got, want)
	}
	for name, alter := range map[string]func(*manifest.Manifest){
		"threshold":     func(m *manifest.Manifest) { m.WorkloadOwnerThreshold = 1 },
		"one key fewer": func(m *manifest.Manifest) { m.WorkloadOwnerKeys = m.WorkloadOwnerKeys[:2] },
	} {
		other := *m
		if alter(&other); other.OwnersDigest() == want {
			t.Errorf("%s: the digest is the same", name)
		}
	}
}
