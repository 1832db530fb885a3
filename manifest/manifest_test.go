package manifest_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"portcullis.dev/portcullis/attestation"
	"portcullis.dev/portcullis/attestation/simulated"
	"portcullis.dev/portcullis/attestation/snp"
	"portcullis.dev/portcullis/attestation/tdx"
	"portcullis.dev/portcullis/manifest"
	"portcullis.dev/portcullis/manifest/strictjson"
	"portcullis.dev/portcullis/pki"
	"portcullis.dev/portcullis/tests/simtdx"
	"portcullis.dev/portcullis/tests/simtee"
)

var (
	hashA = strings.Repeat("aa", 32)
	hashB = strings.Repeat("bb", 32)
)

var reference = sync.OnceValue(func() simulated.ReferenceValue {
	world, err := simtee.New(simtee.PublishedKeys())
	if err != nil {
		panic(err)
	}
	return world.Reference(simtee.Measurement{1})
})

var snpReference = sync.OnceValue(func() snp.ReferenceValue {
	return (&simtee.World{Product: "Milan"}).SNPReference(simtee.Measurement{1})
})

var tdxWorld = sync.OnceValue(func() *simtdx.World {
	world, err := simtdx.New(time.Now())
	if err != nil {
		panic(err)
	}
	return world
})

func tdxReference() tdx.ReferenceValue {
	return tdxWorld().Machine(attestation.PolicyHash{0xaa}).Reference()
}

func tdxRoots() []*x509.Certificate { return []*x509.Certificate{tdxWorld().Root} }

func sans(t testing.TB, texts ...string) []pki.SAN {
	t.Helper()
	var parsed []pki.SAN
	for _, text := range texts {
		san, err := pki.ParseSAN(text)
		if err != nil {
			t.Fatal(err)
		}
		parsed = append(parsed, san)
	}
	return parsed
}

func hash(t testing.TB, text string) attestation.PolicyHash {
	t.Helper()
	h, err := attestation.ParsePolicyHash(text)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func newKey(t testing.TB, curve elliptic.Curve) (*ecdsa.PrivateKey, manifest.OwnerKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	owner, err := manifest.NewOwnerKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	return key, owner
}

func newSeedshareOwner(t testing.TB) manifest.SeedshareOwner {
	t.Helper()
	key, err := pki.NewSeedshareKey()
	if err != nil {
		t.Fatal(err)
	}
	owner, err := manifest.NewSeedshareOwner(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return owner
}

// whole is a manifest that uses every field.
func whole(t testing.TB) *manifest.Manifest {
	t.Helper()
	_, alice := newKey(t, elliptic.P256())
	_, bob := newKey(t, elliptic.P384())
	validity, err := manifest.NewValidity(36 * time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	overlap, err := manifest.NewOverlap(24 * time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return &manifest.Manifest{
		Policies: map[attestation.PolicyHash]manifest.Policy{
			hash(t, hashA): {SANs: sans(t, "coordinator"), Role: manifest.RoleCoordinator},
			hash(t, hashB): {SANs: sans(t, "*.shop.svc", "10.0.0.1"), WorkloadSecretID: "apps/v1/StatefulSet/db", Pod: "StatefulSet shop/db"},
		},
		ReferenceValues:        manifest.ReferenceValues{Simulated: []simulated.ReferenceValue{reference()}},
		WorkloadOwnerKeys:      []manifest.OwnerKey{alice, bob},
		WorkloadOwnerThreshold: 2,
		SeedshareOwnerKeys:     []manifest.SeedshareOwner{newSeedshareOwner(t), newSeedshareOwner(t)},
		SeedshareThreshold:     1,
		CertificateValidity:    validity,
		Successors:             &manifest.Successors{MaxOverlap: overlap},
		AllowWildcardSANs:      true,
	}
}

func encode(t testing.TB, m *manifest.Manifest) string {
	t.Helper()
	text, err := m.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestParseReadsWhatEncodeWrites(t *testing.T) {
	want := whole(t)
	text := encode(t, want)
	got, err := manifest.Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	if string(got.Text()) != text || got.Hash() != sha256.Sum256([]byte(text)) {
		t.Error("Text and Hash are not those of the text")
	}
	if again := encode(t, got); again != text {
		t.Errorf("encoded again:\n%s", cmp.Diff(text, again))
	}
	if !slices.Equal(got.CoordinatorPolicies(), []attestation.PolicyHash{hash(t, hashA)}) {
		t.Errorf("coordinator policies %v", got.CoordinatorPolicies())
	}
	if got.Overlap() != 24*time.Hour {
		t.Errorf("read an overlap of %v", got.Overlap())
	}
	if got.CertificateValidity.Duration() != 36*time.Hour || got.WorkloadOwnerThreshold != 2 || !got.Simulated() {
		t.Errorf("read %+v", got)
	}
	if diff := cmp.Diff(want.Policies, got.Policies, cmp.Comparer(func(a, b pki.SAN) bool { return a == b })); diff != "" {
		t.Errorf("policies (-want +got):\n%s", diff)
	}
}

func TestCertificateValidityDefaultsToThirtyDays(t *testing.T) {
	m := whole(t)
	m.CertificateValidity = manifest.Validity{}
	text := encode(t, m)
	if strings.Contains(text, "CertificateValidity") {
		t.Error("the unset field is written")
	}
	parsed, err := manifest.Parse([]byte(text))
	if err != nil || parsed.CertificateValidity.Duration() != 720*time.Hour {
		t.Errorf("validity %v, %v", parsed.CertificateValidity.Duration(), err)
	}
}

// What a manifest does not say, it does not allow.
func TestWithoutSuccessorsThereIsNoOverlap(t *testing.T) {
	m := whole(t)
	m.Successors = nil
	text := encode(t, m)
	if strings.Contains(text, "Successors") {
		t.Error("the unset field is written")
	}
	parsed, err := manifest.Parse([]byte(text))
	if err != nil || parsed.Overlap() != 0 {
		t.Errorf("overlap %v, %v", parsed.Overlap(), err)
	}
	for name, m := range map[string]*manifest.Manifest{"nil": nil, "zero": {}, "empty successors": {Successors: &manifest.Successors{}}} {
		if m.Overlap() != 0 {
			t.Errorf("%s: overlap %v", name, m.Overlap())
		}
	}
	m.Successors = &manifest.Successors{}
	if _, err := m.Encode(); err == nil {
		t.Error("successors without an overlap were written")
	}
}

func TestParseReportsFaults(t *testing.T) {
	base := whole(t)
	text := encode(t, base)
	replace := func(old, new string) string {
		if strings.Count(text, old) == 0 {
			t.Fatalf("the manifest has no %q:\n%s", old, text)
		}
		return strings.Replace(text, old, new, 1)
	}
	altered := func(alter func(m *manifest.Manifest)) string {
		m := whole(t)
		alter(m)
		_, err := m.Encode()
		malformed, ok := errors.AsType[*manifest.Error](err)
		if !ok {
			t.Fatalf("Encode: %v", err)
		}
		return "!" + malformed.Faults.Error()
	}
	policyA, policyB := `Policies["`+hashA+`"]`, `Policies["`+hashB+`"]`
	tests := map[string]struct {
		text string // or the fault of Encode, after "!"
		want []string
	}{
		"empty": {"", []string{"line 1, column 1: unexpected EOF"}},
		"nothing in it": {`{}`, []string{
			`Policies: no policy has the role "coordinator"`, "ReferenceValues: there are none",
		}},
		"not an object":        {`[]`, []string{"want an object, got an array"}},
		"two documents":        {text + text, []string{"something follows the value"}},
		"too large":            {text + strings.Repeat(" ", manifest.MaxSize), []string{"at most 1048576"}},
		"unknown field":        {replace(`"Policies"`, `"Extra": 1, "Policies"`), []string{"Extra: unknown field"}},
		"another case":         {replace(`"AllowWildcardSANs"`, `"allowWildcardSANs"`), []string{"allowWildcardSANs: unknown field; did you mean AllowWildcardSANs", `"*.shop.svc" satisfies peers`}},
		"duplicate policy":     {replace(`"`+hashB+`"`, `"`+hashA+`"`), []string{policyA + ": the name occurs twice"}},
		"policy hash in caps":  {replace(hashB, strings.ToUpper(hashB)), []string{"is not 64 lower-case hexadecimal digits"}},
		"all-zero policy hash": {replace(hashB, strings.Repeat("0", 64)), []string{"policy hash is all zero"}},
		"SNP beside simulated": {
			altered(func(m *manifest.Manifest) { m.ReferenceValues.SNP = []snp.ReferenceValue{snpReference()} }),
			[]string{"ReferenceValues.Simulated: it stands beside SNP or TDX"},
		},
		"TDX beside simulated": {
			altered(func(m *manifest.Manifest) { m.ReferenceValues.TDX = []tdx.ReferenceValue{tdxReference()} }),
			[]string{"ReferenceValues.Simulated: it stands beside SNP or TDX"},
		},
		"field of SNP missing": {
			altered(func(m *manifest.Manifest) {
				r := snpReference()
				r.Product, r.AllowedChipIDs = "", []string{}
				m.ReferenceValues = manifest.ReferenceValues{SNP: []snp.ReferenceValue{snpReference(), r}}
			}),
			[]string{"ReferenceValues.SNP[1].Product: is missing", "ReferenceValues.SNP[1].AllowedChipIDs: is missing"},
		},
		"field of TDX wrong": {
			altered(func(m *manifest.Manifest) {
				r := tdxReference()
				r.RTMR0, r.AcceptedTCBStatuses = "any", []string{"Revoked"}
				m.ReferenceValues = manifest.ReferenceValues{TDX: []tdx.ReferenceValue{r}}
			}),
			[]string{"ReferenceValues.TDX[0].RTMR0: ", `ReferenceValues.TDX[0].AcceptedTCBStatuses[0]: "Revoked" is not one of`},
		},
		"empty SNP and TDX": {
			altered(func(m *manifest.Manifest) {
				m.ReferenceValues = manifest.ReferenceValues{SNP: []snp.ReferenceValue{}, TDX: []tdx.ReferenceValue{}}
			}),
			[]string{"ReferenceValues: there are none"},
		},
		"empty successors":    {replace(`"MaxOverlap": "24h0m0s"`, ``), []string{"Successors.MaxOverlap: is missing"}},
		"no overlap":          {replace(`"24h0m0s"`, `""`), []string{`Successors.MaxOverlap: "" is not a duration`}},
		"overlap 0":           {replace(`"24h0m0s"`, `"0s"`), []string{"Successors.MaxOverlap: overlap 0s, want 10m0s to 720h0m0s"}},
		"overlap below zero":  {replace(`"24h0m0s"`, `"-24h"`), []string{"Successors.MaxOverlap: overlap -24h0m0s"}},
		"overlap too short":   {replace(`"24h0m0s"`, `"9m59s"`), []string{"Successors.MaxOverlap: overlap 9m59s"}},
		"overlap too long":    {replace(`"24h0m0s"`, `"721h"`), []string{"Successors.MaxOverlap: overlap 721h0m0s"}},
		"overlap a number":    {replace(`"24h0m0s"`, `24`), []string{"Successors.MaxOverlap: want a string, got a number"}},
		"successors a word":   {replace("{\n    \"MaxOverlap\": \"24h0m0s\"\n  }", `"any"`), []string{"Successors: want an object, got a string"}},
		"successors null":     {replace("{\n    \"MaxOverlap\": \"24h0m0s\"\n  }", `null`), []string{"Successors: null is not a value here"}},
		"unknown in it":       {replace(`"MaxOverlap":`, `"MinOverlap": "1h", "MaxOverlap":`), []string{"Successors.MinOverlap: unknown field"}},
		"unknown role":        {replace(`"Role": "coordinator"`, `"Role": "Coordinator"`), []string{policyA + `.Role: role "Coordinator", want "coordinator" or no role`}},
		"bad SAN":             {replace(`"10.0.0.1"`, `"10.0.0.01"`), []string{policyB + `.SANs[1]: SAN "10.0.0.01"`}},
		"bad secret ID":       {replace("apps/v1/StatefulSet/db", "apps v1"), []string{policyB + `.WorkloadSecretID: character ' '`}},
		"empty secret ID":     {replace("apps/v1/StatefulSet/db", ""), []string{policyB + ".WorkloadSecretID: 0 characters"}},
		"bad pod":             {replace("StatefulSet shop/db", "db\\u001b"), []string{policyB + `.Pod: character '\x1b'`}},
		"empty pod":           {replace("StatefulSet shop/db", ""), []string{policyB + ".Pod: 0 characters"}},
		"validity 0":          {replace(`"36h0m0s"`, `"0s"`), []string{"CertificateValidity: validity 0s, want 1m0s to 2160h0m0s"}},
		"validity too long":   {replace(`"36h0m0s"`, `"2161h"`), []string{"CertificateValidity: validity 2161h0m0s"}},
		"validity below zero": {replace(`"36h0m0s"`, `"-1h"`), []string{"CertificateValidity: validity -1h0m0s"}},
		"validity a number":   {replace(`"36h0m0s"`, `36`), []string{"CertificateValidity: want a string, got a number"}},
		"validity in days":    {replace(`"36h0m0s"`, `"2d"`), []string{`CertificateValidity: "2d" is not a duration such as 720h`}},
		"owner key not PEM":   {replace(`-----BEGIN PUBLIC KEY-----`, `x`), []string{"WorkloadOwnerKeys[0]: read a public key"}},
		"null":                {replace(`"AllowWildcardSANs": true`, `"AllowWildcardSANs": null`), []string{"AllowWildcardSANs: null is not a value", "*.shop.svc"}},
		"bad measurement":     {replace(reference().Measurement, "00"), []string{"ReferenceValues.Simulated[0].Measurement: "}},
		"field of the TCB missing": {
			regexp.MustCompile(`"SNP": \d+,`).ReplaceAllString(text, ""), []string{"ReferenceValues.Simulated[0].MinimumTCB.SNP: is missing"},
		},
		"threshold missing": {
			replace(`"WorkloadOwnerThreshold": 2,`, ``), []string{"WorkloadOwnerThreshold: 0, want 1 to 2"},
		},
		"threshold too high": {
			replace(`"WorkloadOwnerThreshold": 2`, `"WorkloadOwnerThreshold": 3`), []string{"WorkloadOwnerThreshold: 3, want 1 to 2"},
		},
		"threshold below zero": {
			replace(`"WorkloadOwnerThreshold": 2`, `"WorkloadOwnerThreshold": -1`), []string{"WorkloadOwnerThreshold: -1, want 1 to 2"},
		},
		"threshold a fraction": {
			replace(`"WorkloadOwnerThreshold": 2`, `"WorkloadOwnerThreshold": 1.5`), []string{"WorkloadOwnerThreshold: number 1.5 is not a int"},
		},
		"threshold without keys": {
			altered(func(m *manifest.Manifest) { m.WorkloadOwnerKeys = nil }),
			[]string{"WorkloadOwnerThreshold: 2, but there are no WorkloadOwnerKeys"},
		},
		"one owner twice": {
			altered(func(m *manifest.Manifest) { m.WorkloadOwnerKeys[1] = m.WorkloadOwnerKeys[0] }),
			[]string{"WorkloadOwnerKeys[1]: the same key as WorkloadOwnerKeys[0]"},
		},
		"no seed-share threshold": {
			altered(func(m *manifest.Manifest) { m.SeedshareThreshold = 0 }),
			[]string{"SeedshareThreshold: 0, want 1 to 2, the number of SeedshareOwnerKeys"},
		},
		"seed-share threshold too high": {
			altered(func(m *manifest.Manifest) { m.SeedshareThreshold = 3 }),
			[]string{"SeedshareThreshold: 3, want 1 to 2"},
		},
		"seed-share threshold without keys": {
			altered(func(m *manifest.Manifest) { m.SeedshareOwnerKeys = nil }),
			[]string{"SeedshareThreshold: 1, but there are no SeedshareOwnerKeys"},
		},
		"one seed-share signing key twice": {
			altered(func(m *manifest.Manifest) { m.SeedshareOwnerKeys[1].SigningKey = m.SeedshareOwnerKeys[0].SigningKey }),
			[]string{"SeedshareOwnerKeys[1].SigningKey: the same key as SeedshareOwnerKeys[0].SigningKey"},
		},
		"one seed-share HPKE key twice": {
			altered(func(m *manifest.Manifest) { m.SeedshareOwnerKeys[1].HPKEKey = m.SeedshareOwnerKeys[0].HPKEKey }),
			[]string{"SeedshareOwnerKeys[1].HPKEKey: the same key as SeedshareOwnerKeys[0].HPKEKey"},
		},
		"too many seed-share owners": {
			altered(func(m *manifest.Manifest) {
				for range 31 {
					m.SeedshareOwnerKeys = append(m.SeedshareOwnerKeys, newSeedshareOwner(t))
				}
			}),
			[]string{"SeedshareOwnerKeys: there are 33, at most 32 are allowed"},
		},
		"empty seed-share owner": {
			replace(`"SeedshareOwnerKeys": [`, `"SeedshareOwnerKeys": [{},`),
			[]string{"SeedshareOwnerKeys[0].HPKEKey: is missing", "SeedshareOwnerKeys[0].SigningKey: is missing"},
		},
		"seed-share HPKE key not PEM": {
			replace(`"HPKEKey": "-----BEGIN`, `"HPKEKey": "`), []string{"SeedshareOwnerKeys[0].HPKEKey: read an HPKE public key: want a PEM block"},
		},
		"seed-share owner with another field": {
			replace(`"HPKEKey"`, `"Extra": 1, "HPKEKey"`), []string{"SeedshareOwnerKeys[0].Extra: unknown field"},
		},
		"no coordinator": {
			altered(func(m *manifest.Manifest) { delete(m.Policies, hash(t, hashA)) }),
			[]string{`Policies: no policy has the role "coordinator"`},
		},
		"no reference values": {
			altered(func(m *manifest.Manifest) { m.ReferenceValues = manifest.ReferenceValues{} }),
			[]string{"ReferenceValues: there are none"},
		},
		"wildcard not acknowledged": {
			altered(func(m *manifest.Manifest) { m.AllowWildcardSANs = false }),
			[]string{policyB + `.SANs[0]: "*.shop.svc" satisfies peers that ask for other names; AllowWildcardSANs`},
		},
		"one SAN under two policies": {
			altered(func(m *manifest.Manifest) {
				m.Policies[hash(t, hashB)] = manifest.Policy{SANs: sans(t, "db", "coordinator")}
			}),
			[]string{policyB + `.SANs[1]: "coordinator" is listed at ` + policyA + `.SANs[0] already`},
		},
		"one SAN twice": {
			altered(func(m *manifest.Manifest) {
				m.Policies[hash(t, hashB)] = manifest.Policy{SANs: sans(t, "db", "db")}
			}),
			[]string{policyB + `.SANs[1]: "db" is listed at ` + policyB + `.SANs[0] already`},
		},
		"everything at once": {
			strings.NewReplacer(`"36h0m0s"`, `"1s"`, `"10.0.0.1"`, `"coordinator"`, `"Policies"`, `"policies2": 1, "Policies"`,
				`"WorkloadOwnerThreshold": 2`, `"WorkloadOwnerThreshold": 9`).Replace(text),
			[]string{"policies2: unknown field", "CertificateValidity: validity 1s", "already", "WorkloadOwnerThreshold: 9"},
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			var faults []string
			if encoded, ok := strings.CutPrefix(test.text, "!"); ok {
				faults = strings.Split(encoded, "; ")
				if len(test.want) == 1 {
					faults = []string{encoded} // a fault's own words may have a semicolon in them
				}
			} else {
				m, err := manifest.Parse([]byte(test.text))
				malformed, ok := errors.AsType[*manifest.Error](err)
				if !ok || m != nil {
					t.Fatalf("Parse: %v, %v, want an *Error and no manifest", m, err)
				}
				if malformed.ExitCode() != 2 {
					t.Errorf("exit code %d", malformed.ExitCode())
				}
				faults = malformed.Faults.Strings()
			}
			if len(faults) != len(test.want) {
				t.Fatalf("faults:\n%s\nwant:\n%s", strings.Join(faults, "\n"), strings.Join(test.want, "\n"))
			}
			for _, want := range test.want {
				if !slices.ContainsFunc(faults, func(f string) bool { return strings.Contains(f, want) }) {
					t.Errorf("faults:\n%s\nwant one that says %q", strings.Join(faults, "\n"), want)
				}
			}
		})
	}
}

func TestZeroManifestAdmitsNobody(t *testing.T) {
	m := &manifest.Manifest{}
	if _, err := m.Encode(); err == nil {
		t.Error("the zero manifest encodes")
	}
	if len(m.CoordinatorPolicies()) != 0 {
		t.Error("the zero manifest has coordinators")
	}
	v, err := m.Validator(manifest.ValidatorOptions{})
	if err == nil {
		world, err := simtee.New(simtee.PublishedKeys())
		if err != nil {
			t.Fatal(err)
		}
		data := attestation.NewReportData("test")
		evidence, err := world.Machine(simtee.Measurement{1}, hash(t, hashA)).Issue(t.Context(), data)
		if err != nil {
			t.Fatal(err)
		}
		if claims, err := v.Validate(t.Context(), evidence, data); err == nil {
			t.Errorf("the zero manifest's validator accepts %+v", claims)
		}
	}
	for name, m := range map[string]*manifest.Manifest{"zero": m, "nil": nil, "threshold 0": {WorkloadOwnerKeys: whole(t).WorkloadOwnerKeys}} {
		if err := manifest.VerifyOwners(m, [32]byte{1}, nil); err == nil {
			t.Errorf("%s: a transition without signatures is accepted", name)
		}
	}
	if len((manifest.OwnerKey{}).SPKI()) != 0 {
		t.Error("the zero owner key has an SPKI")
	}
	if _, err := (manifest.OwnerKey{}).MarshalText(); err == nil {
		t.Error("the zero owner key encodes")
	}
	if _, err := (*manifest.Transition)(nil).Next([]byte(encode(t, whole(t))), nil); err == nil {
		t.Error("a transition follows nothing")
	}
}

// The exact numbers are part of the protocol: a data owner may compute them with sha256sum.
func TestTransitionHashIsTheDocumentedOne(t *testing.T) {
	text := []byte("a manifest")
	manifestHash := sha256.Sum256(text)
	first := sha256.Sum256(append(manifestHash[:], make([]byte, 32)...))
	if got := manifest.TransitionHash(text, [32]byte{}); got != first {
		t.Errorf("first transition %x, want %x", got, first)
	}
	second := sha256.Sum256(append(manifestHash[:], first[:]...))
	if got := manifest.TransitionHash(text, first); got != second {
		t.Errorf("second transition %x, want %x", got, second)
	}
	if got, want := string(manifest.SignedMessage(first)), "portcullis transition v1:"+hex.EncodeToString(first[:]); got != want {
		t.Errorf("signed message %q, want %q", got, want)
	}
}

func TestSeedshareOwnersNeverChange(t *testing.T) {
	m := whole(t)
	alice, owner := newKey(t, elliptic.P256())
	m.WorkloadOwnerKeys, m.WorkloadOwnerThreshold = []manifest.OwnerKey{owner}, 1
	sign := func(text string, previous [32]byte) []manifest.Signature {
		digest := sha256.Sum256(manifest.SignedMessage(manifest.TransitionHash([]byte(text), previous)))
		signature, err := ecdsa.SignASN1(rand.Reader, alice, digest[:])
		if err != nil {
			t.Fatal(err)
		}
		return []manifest.Signature{{PublicKey: owner.SPKI(), Signature: signature}}
	}
	text := encode(t, m)
	first, err := manifest.First([]byte(text), sign(text, [32]byte{}))
	if err != nil {
		t.Fatal(err)
	}
	owners := slices.Clone(m.SeedshareOwnerKeys)
	for name, test := range map[string]struct {
		alter func()
		want  []string
	}{
		"nothing":          {func() { m.AllowWildcardSANs = true }, nil},
		"another owner":    {func() { m.SeedshareOwnerKeys = []manifest.SeedshareOwner{owners[0], newSeedshareOwner(t)} }, []string{"SeedshareOwnerKeys"}},
		"another order":    {func() { m.SeedshareOwnerKeys = []manifest.SeedshareOwner{owners[1], owners[0]} }, []string{"SeedshareOwnerKeys"}},
		"one more":         {func() { m.SeedshareOwnerKeys = append(slices.Clone(owners), newSeedshareOwner(t)) }, []string{"SeedshareOwnerKeys"}},
		"one less":         {func() { m.SeedshareOwnerKeys = owners[:1] }, []string{"SeedshareOwnerKeys"}},
		"another HPKE key": {func() { m.SeedshareOwnerKeys[0].HPKEKey = newSeedshareOwner(t).HPKEKey }, []string{"SeedshareOwnerKeys"}},
		"threshold":        {func() { m.SeedshareThreshold = 2 }, []string{"SeedshareThreshold"}},
		"all gone": {
			func() { m.SeedshareOwnerKeys, m.SeedshareThreshold = nil, 0 }, []string{"SeedshareOwnerKeys", "SeedshareThreshold"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			m.SeedshareOwnerKeys, m.SeedshareThreshold = slices.Clone(owners), 1
			test.alter()
			text := encode(t, m)
			_, err := first.Next([]byte(text), sign(text, first.Hash))
			if test.want == nil {
				if err != nil {
					t.Error(err)
				}
				return
			}
			malformed, ok := errors.AsType[*manifest.Error](err)
			if !ok {
				t.Fatalf("Next: %v, want an *Error", err)
			}
			var paths []string
			for _, f := range malformed.Faults {
				paths = append(paths, f.Path)
			}
			if !slices.Equal(paths, test.want) {
				t.Errorf("faults at %q, want %q", paths, test.want)
			}
		})
	}
	for i, o := range owners {
		if got := first.Manifest.SeedshareOwner(o.SigningKey.SPKI()); got != i {
			t.Errorf("owner %d is number %d", i, got)
		}
	}
	if (&manifest.Manifest{SeedshareOwnerKeys: make([]manifest.SeedshareOwner, 1)}).SeedshareOwner(nil) != -1 {
		t.Error("no key is an owner's")
	}
	if _, err := (manifest.HPKEKey{}).MarshalText(); err == nil {
		t.Error("the zero HPKE key encodes")
	}
}

func TestOwnersSignWithOpenSSL(t *testing.T) {
	openssl, err := exec.LookPath("openssl")
	if err != nil {
		t.Fatal("openssl is needed: apt-get install openssl")
	}
	key, owner := newKey(t, elliptic.P384())
	private, err := pki.EncodePrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "owner.pem")
	if err := os.WriteFile(file, private.Reveal(), 0o600); err != nil {
		t.Fatal(err)
	}
	m := whole(t)
	m.WorkloadOwnerKeys, m.WorkloadOwnerThreshold = []manifest.OwnerKey{owner}, 1
	text := []byte(encode(t, m))
	sign := exec.CommandContext(t.Context(), openssl, "dgst", "-sha256", "-sign", file)
	sign.Stdin = bytes.NewReader(manifest.SignedMessage(manifest.TransitionHash(text, [32]byte{})))
	signature, err := sign.Output()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := manifest.First(text, []manifest.Signature{{PublicKey: owner.SPKI(), Signature: signature}}); err != nil {
		t.Error(err)
	}
	signature[len(signature)-1] ^= 1
	_, err = manifest.First(text, []manifest.Signature{{PublicKey: owner.SPKI(), Signature: signature}})
	if refused, ok := errors.AsType[*manifest.SignatureError](err); !ok || refused.ExitCode() != 3 {
		t.Errorf("First with a wrong signature: %v", err)
	}
}

// For any owners, threshold and signers: accepted exactly when enough different owners signed this transition and
// nobody else did anything.
func TestThresholdCountsDifferentOwners(t *testing.T) {
	const owners = 4
	var private []*ecdsa.PrivateKey
	var public []manifest.OwnerKey
	for range owners + 1 { // one stranger
		key, owner := newKey(t, elliptic.P256())
		private, public = append(private, key), append(public, owner)
	}
	rapid.Check(t, func(t *rapid.T) {
		m := &manifest.Manifest{
			WorkloadOwnerKeys:      public[:rapid.IntRange(1, owners).Draw(t, "owners")],
			WorkloadOwnerThreshold: rapid.IntRange(1, owners).Draw(t, "threshold"),
		}
		signers := rapid.SliceOfN(rapid.IntRange(0, owners), 0, 6).Draw(t, "signers")
		transition := [32]byte{1}
		digest := sha256.Sum256(manifest.SignedMessage(transition))
		var signatures []manifest.Signature
		distinct, strangers := map[int]bool{}, false
		for _, i := range signers {
			signature, err := ecdsa.SignASN1(rand.Reader, private[i], digest[:])
			if err != nil {
				t.Fatal(err)
			}
			signatures = append(signatures, manifest.Signature{PublicKey: public[i].SPKI(), Signature: signature})
			distinct[i] = true
			strangers = strangers || i >= len(m.WorkloadOwnerKeys)
		}
		want := !strangers && len(distinct) >= m.WorkloadOwnerThreshold
		if err := manifest.VerifyOwners(m, transition, signatures); (err == nil) != want {
			t.Fatalf("VerifyOwners: %v, want accepted: %v", err, want)
		}
	})
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{}`))
	f.Add([]byte(encode(f, whole(f))))
	f.Fuzz(func(t *testing.T, text []byte) {
		m, err := manifest.Parse(text)
		if (m == nil) != (err != nil) {
			t.Fatalf("Parse: %v, %v", m, err)
		}
		if m == nil {
			return
		}
		if _, err := m.Encode(); err != nil {
			t.Fatalf("a manifest that parses does not encode: %v", err)
		}
		if len(m.CoordinatorPolicies()) == 0 {
			t.Fatal("a manifest without coordinators parses")
		}
	})
}

// docs/manifest.md has one heading for each field, with its path, and none for anything else.
func TestDocumentationListsEveryField(t *testing.T) {
	text, err := os.ReadFile("../docs/manifest.md")
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]bool{}
	fields("", reflect.TypeFor[manifest.Manifest](), want)
	got := map[string]bool{}
	for _, match := range regexp.MustCompile("(?m)^#+ `([^`]+)`$").FindAllStringSubmatch(string(text), -1) {
		got[match[1]] = true
	}
	if diff := cmp.Diff(slices.Sorted(maps.Keys(want)), slices.Sorted(maps.Keys(got))); diff != "" {
		t.Errorf("headings of docs/manifest.md (-fields +headings):\n%s", diff)
	}
	for _, number := range []string{"1m", "2160h", "720h", "10m", "253"} {
		if !strings.Contains(string(text), number) {
			t.Errorf("docs/manifest.md does not say %s", number)
		}
	}
}

// The examples in docs/manifest.md have every field and are well-formed, but for the certificate and keys they abbreviate.
func TestDocumentationsExampleIsAManifest(t *testing.T) {
	text, err := os.ReadFile("../docs/manifest.md")
	if err != nil {
		t.Fatal(err)
	}
	examples := regexp.MustCompile("(?s)```json\n(.*?)```").FindAllStringSubmatch(string(text), -1)
	if len(examples) != 2 {
		t.Fatalf("docs/manifest.md has %d examples, want a manifest and its other reference values", len(examples))
	}
	example := examples[0][1] + examples[1][1]
	var values manifest.ReferenceValues
	if err := strictjson.Unmarshal([]byte(examples[1][1]), &values); err != nil {
		t.Fatal(err)
	}
	for _, fault := range values.Simulated[0].Validate() {
		if !strings.HasPrefix(fault, "RootCA: ") {
			t.Errorf("the example has a fault: %s", fault)
		}
	}
	_, err = manifest.Parse([]byte(examples[0][1]))
	malformed, ok := errors.AsType[*manifest.Error](err)
	if !ok {
		t.Fatalf("Parse: %v, want faults of the abbreviated parts", err)
	}
	abbreviated := []string{
		"WorkloadOwnerKeys[0]", "WorkloadOwnerKeys[1]", "SeedshareOwnerKeys[0].HPKEKey", "SeedshareOwnerKeys[0].SigningKey",
	}
	for _, fault := range malformed.Faults {
		if !slices.Contains(abbreviated, fault.Path) {
			t.Errorf("the example has a fault: %s", fault.Error())
		}
	}
	want := map[string]bool{}
	fields("", reflect.TypeFor[manifest.Manifest](), want)
	for path := range want {
		name := path[strings.LastIndexAny(path, ".")+1:]
		if !strings.Contains(example, `"`+strings.TrimSuffix(name, "[]")+`"`) && !strings.HasSuffix(path, `["<policy hash>"]`) {
			t.Errorf("the example lacks %s", path)
		}
	}
}

// fields lists the paths of everything that a manifest may contain.
func fields(path string, t reflect.Type, into map[string]bool) {
	for _, f := range strictjson.Fields(t) {
		at := strings.TrimPrefix(path+"."+f.Name, ".")
		into[at] = true
		inner := f.Type
		switch inner.Kind() {
		case reflect.Map:
			at += `["<policy hash>"]`
			inner = inner.Elem()
			into[at] = true
		case reflect.Slice:
			at += "[]"
			inner = inner.Elem()
		}
		if inner.Kind() == reflect.Pointer {
			inner = inner.Elem()
		}
		if inner.Kind() == reflect.Struct && inner.PkgPath() != "portcullis.dev/portcullis/pki" && !isText(inner) {
			fields(at, inner, into)
		}
	}
}

func isText(t reflect.Type) bool {
	_, ok := reflect.PointerTo(t).MethodByName("UnmarshalText")
	return ok
}
