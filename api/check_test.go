package api_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"strings"
	"testing"
	"time"

	"portcullis.dev/portcullis/api"
	"portcullis.dev/portcullis/attestation"
	"portcullis.dev/portcullis/attestation/simulated"
	"portcullis.dev/portcullis/manifest"
	"portcullis.dev/portcullis/pki"
	"portcullis.dev/portcullis/tests/simcoordinator"
	"portcullis.dev/portcullis/tests/simtee"
)

// verified is a Coordinator's answer with everything that it is judged by.
type verified struct {
	world   *simtee.World
	machine *simtee.Machine
	trusted *manifest.Manifest
	nonce   []byte
	resp    *api.AttestResponse
}

var (
	image             = simtee.Measurement{0x5a}
	coordinatorPolicy = attestation.PolicyHash{0xc0}
)

func answer(t *testing.T) *verified {
	t.Helper()
	world, err := simtee.New(simtee.PublishedKeys())
	if err != nil {
		t.Fatal(err)
	}
	owner, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	key, err := manifest.NewOwnerKey(&owner.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	v := &verified{world: world, machine: world.Machine(image, coordinatorPolicy), nonce: bytes.Repeat([]byte{7}, api.NonceSize)}
	var steps []simcoordinator.Step
	for _, other := range []attestation.PolicyHash{{1}, {2}} {
		m := &manifest.Manifest{
			Policies:          map[attestation.PolicyHash]manifest.Policy{coordinatorPolicy: {Role: manifest.RoleCoordinator}, other: {}},
			ReferenceValues:   manifest.ReferenceValues{Simulated: []simulated.ReferenceValue{world.Reference(simtee.Measurement{1}), world.Reference(image)}},
			WorkloadOwnerKeys: []manifest.OwnerKey{key}, WorkloadOwnerThreshold: 1,
		}
		text, err := m.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if v.trusted, err = manifest.Parse(text); err != nil {
			t.Fatal(err)
		}
		steps = append(steps, simcoordinator.Step{Text: text, Signers: []*ecdsa.PrivateKey{owner}})
	}
	history, err := simcoordinator.History(steps)
	if err != nil {
		t.Fatal(err)
	}
	if v.resp, err = simcoordinator.Answer(t.Context(), v.machine, v.nonce, history); err != nil {
		t.Fatal(err)
	}
	return v
}

func (v *verified) verify(t *testing.T) (*api.Verified, error) {
	t.Helper()
	return api.VerifyCoordinator(t.Context(), v.resp, v.nonce, v.trusted, manifest.ValidatorOptions{})
}

// What is listed as checked is what was checked: all of it, in order, with what came.
func TestChecksSayWhatWasChecked(t *testing.T) {
	v := answer(t)
	got, err := v.verify(t)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	fields := map[string]string{}
	for _, c := range got.Checks {
		if !c.OK || c.Want == "" || c.Got == "" {
			t.Errorf("got %+v", c)
		}
		if c.Name == api.CheckEvidence && c.Of != "" {
			fields[c.Of] = c.Got
			continue
		}
		names = append(names, strings.TrimSpace(c.Name+" "+c.Of))
	}
	want := "state, answer, evidence, policy hash, HPKE key, history manifest 1 of 2, history manifest 2 of 2, workload owners manifest 1 of 2, " +
		"workload owners manifest 2 of 2, root CA, mesh CA, successors, seed shares, active manifest"
	if strings.Join(names, ", ") != want {
		t.Errorf("got  %s\nwant %s", strings.Join(names, ", "), want)
	}
	if fields["MEASUREMENT"] != image.String() || fields["POLICY.DEBUG"] != "0" || len(fields) < 20 {
		t.Errorf("the evidence's fields are %v", fields)
	}
	data, err := v.resp.ReportData(v.nonce)
	if err != nil {
		t.Fatal(err)
	}
	if sum := data.Bytes(); fields["REPORT_DATA"] != hex.EncodeToString(sum[:]) {
		t.Errorf("REPORT_DATA is %s", fields["REPORT_DATA"])
	}
	if got.Reference != "ReferenceValues.Simulated[1]" {
		t.Errorf("accepted by %q", got.Reference)
	}
}

// A check that fails is the last one, and the only one that did not pass.
func TestACheckThatFailsIsTold(t *testing.T) {
	for name, test := range map[string]struct {
		spoil func(*testing.T, *verified)
		last  string
	}{
		"state":                   {func(_ *testing.T, v *verified) { v.resp.Recovery = &api.Recovery{Nonce: v.nonce} }, "state"},
		"a nonce of another size": {func(_ *testing.T, v *verified) { v.nonce = v.nonce[1:] }, "answer"},
		"an old answer":           {func(_ *testing.T, v *verified) { v.nonce = bytes.Repeat([]byte{8}, api.NonceSize) }, "evidence REPORT_DATA"},
		"another image": {func(t *testing.T, v *verified) {
			v.machine = v.world.Machine(simtee.Measurement{0xbe}, coordinatorPolicy)
			v.attest(t)
		}, "evidence MEASUREMENT"},
		"another pod": {func(t *testing.T, v *verified) {
			v.machine = v.world.Machine(image, attestation.PolicyHash{2})
			v.attest(t)
		}, "policy hash"},
		"no HPKE key": {func(t *testing.T, v *verified) {
			v.resp.HPKEKey = v.resp.HPKEKey[1:]
			v.attest(t)
		}, "HPKE key"},
		"an unsigned change": {func(t *testing.T, v *verified) {
			v.resp.History[1].Signatures = nil
			v.attest(t)
		}, "history manifest 2 of 2"},
		"a history that begins with nonsense": {func(t *testing.T, v *verified) {
			v.resp.History[0].Manifest = []byte("{}")
			v.attest(t)
		}, "history manifest 1 of 2"},
		"other owners": {func(t *testing.T, v *verified) {
			foreign := answer(t)
			v.trusted, v.resp.History = foreign.trusted, v.resp.History[:1]
			v.attest(t)
		}, "workload owners manifest 1 of 1"},
		"a mesh CA that is none": {func(t *testing.T, v *verified) {
			v.resp.MeshCA = v.resp.MeshCA[1:]
			v.attest(t)
		}, "mesh CA"},
		"a mesh CA with successors that the manifest does not allow": {func(t *testing.T, v *verified) {
			key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
			if err != nil {
				t.Fatal(err)
			}
			root, err := pki.NewRootCA(key, time.Now())
			if err != nil {
				t.Fatal(err)
			}
			mesh, err := pki.NewMeshCAWithSuccessors(root, key, v.resp.TransitionHash(), time.Now())
			if err != nil {
				t.Fatal(err)
			}
			v.resp.RootCA, v.resp.MeshCA = root.Raw, mesh.Certificate.Raw
			v.attest(t)
		}, "successors"},
		"shares of nobody": {func(_ *testing.T, v *verified) { v.resp.Shares = make([]api.SealedShare, 1) }, "seed shares"},
		"another manifest": {func(t *testing.T, v *verified) {
			v.resp.History = v.resp.History[:1]
			v.attest(t)
		}, "active manifest"},
	} {
		t.Run(name, func(t *testing.T) {
			v := answer(t)
			test.spoil(t, v)
			got, err := v.verify(t)
			refused, ok := errors.AsType[*api.VerifyError](err)
			if !ok || got != nil {
				t.Fatalf("got %v, %v", got, err)
			}
			for i, c := range refused.Checks {
				if c.OK != (i < len(refused.Checks)-1) {
					t.Errorf("check %d of %d: %+v", i+1, len(refused.Checks), c)
				}
			}
			last := refused.Checks[len(refused.Checks)-1]
			if strings.TrimSpace(last.Name+" "+last.Of) != test.last || refused.Check != last.Name {
				t.Errorf("refused for %q, %+v, want %q", refused.Check, last, test.last)
			}
		})
	}
}

func (v *verified) attest(t *testing.T) {
	t.Helper()
	if err := simcoordinator.Attest(t.Context(), v.machine, v.nonce, v.resp); err != nil {
		t.Fatal(err)
	}
}

// disagreeing accepts everything and finds everything wrong.
type disagreeing struct{ *verified }

func (d disagreeing) Validate(context.Context, attestation.Evidence, attestation.ReportData) (attestation.Claims, error) {
	return attestation.Claims{Platform: attestation.SNP, PolicyHash: coordinatorPolicy}, nil
}

func (d disagreeing) Inspect(context.Context, attestation.Evidence, attestation.ReportData) [][]attestation.Comparison {
	return [][]attestation.Comparison{{}, {{Field: "A"}, {Field: "B", Wrong: &attestation.Rejected{Field: "B"}}}}
}

// Fields are listed as right only by a reference value that is right in all of them.
func TestEvidenceThatNoReferenceValueAcceptsIsRefused(t *testing.T) {
	v := answer(t)
	data, err := v.resp.ReportData(v.nonce)
	if err != nil {
		t.Fatal(err)
	}
	got := new(api.Verified)
	err = got.Judge(t.Context(), disagreeing{v}, v.resp.Evidence, data)
	if refused, ok := errors.AsType[*api.VerifyError](err); !ok || refused.Check != api.CheckEvidence || got.Checks[0].OK {
		t.Errorf("got %v, %+v", err, got.Checks)
	}
	if (api.Check{}).OK {
		t.Error("the zero check has passed")
	}
}
