package simulated_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"portcullis.dev/portcullis/attestation/simulated"
)

func TestEveryFaultOfAReferenceValueIsNamed(t *testing.T) {
	w := world(t)
	n := func(v int) *int { return &v }
	for _, tc := range []struct {
		name  string
		spoil func(*simulated.ReferenceValue)
		fault string
	}{
		{"no root", func(r *simulated.ReferenceValue) { r.RootCA = "" }, "RootCA: is missing"},
		{"root is not PEM", func(r *simulated.ReferenceValue) { r.RootCA = "root" }, "RootCA: is not one certificate"},
		{"text before the root", func(r *simulated.ReferenceValue) { r.RootCA = "x\n" + r.RootCA }, "RootCA: is not one certificate"},
		{"two roots", func(r *simulated.ReferenceValue) { r.RootCA += r.RootCA }, "RootCA: is not one certificate"},
		{"root is a key", func(r *simulated.ReferenceValue) {
			r.RootCA = strings.ReplaceAll(r.RootCA, "CERTIFICATE", "PUBLIC KEY")
		}, "RootCA: is not one certificate"},
		{"root is garbage", func(r *simulated.ReferenceValue) {
			r.RootCA = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
		}, "RootCA: is not a certificate"},
		{"root is the ASK", func(r *simulated.ReferenceValue) {
			r.RootCA = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: w.ASK.Raw}))
		}, "RootCA: is not self-signed"},
		{"root is of another kind", func(r *simulated.ReferenceValue) { r.RootCA = ecdsaRoot(t) }, "RootCA: is not an AMD root key"},
		{"root of an unknown processor", func(r *simulated.ReferenceValue) {
			r.RootCA = world(t, func(ark, _, _ *x509.Certificate) { ark.Subject.CommonName = "ARK-Turin" }).RootPEM()
		}, `RootCA: has the common name "ARK-Turin"`},
		{"root without a processor", func(r *simulated.ReferenceValue) {
			r.RootCA = world(t, func(ark, _, _ *x509.Certificate) { ark.Subject.CommonName = "Milan" }).RootPEM()
		}, `RootCA: has the common name "Milan"`},
		{"no measurement", func(r *simulated.ReferenceValue) { r.Measurement = "" }, "Measurement: is missing"},
		{"short measurement", func(r *simulated.ReferenceValue) { r.Measurement = r.Measurement[2:] }, "96 lower-case"},
		{"long measurement", func(r *simulated.ReferenceValue) { r.Measurement += "00" }, "96 lower-case"},
		{"odd measurement", func(r *simulated.ReferenceValue) { r.Measurement = r.Measurement[1:] }, "96 lower-case"},
		{"upper-case measurement", func(r *simulated.ReferenceValue) { r.Measurement = strings.ToUpper(r.Measurement) }, "96 lower-case"},
		{"measurement is not hexadecimal", func(r *simulated.ReferenceValue) {
			r.Measurement = strings.Repeat("xy", 48)
		}, "96 lower-case"},
		{"all-zero measurement", func(r *simulated.ReferenceValue) { r.Measurement = strings.Repeat("00", 48) }, "Measurement: is all zero"},
		{"no minimum", func(r *simulated.ReferenceValue) { r.MinimumTCB = simulated.TCB{} }, "MinimumTCB.TEE: is missing"},
		{"no boot loader", func(r *simulated.ReferenceValue) { r.MinimumTCB.BootLoader = nil }, "MinimumTCB.BootLoader: is missing"},
		{"no SNP", func(r *simulated.ReferenceValue) { r.MinimumTCB.SNP = nil }, "MinimumTCB.SNP: is missing"},
		{"no microcode", func(r *simulated.ReferenceValue) { r.MinimumTCB.Microcode = nil }, "MinimumTCB.Microcode: is missing"},
		{"negative", func(r *simulated.ReferenceValue) { r.MinimumTCB.TEE = n(-1) }, "MinimumTCB.TEE: is -1, want 0 to 127"},
		{"too large", func(r *simulated.ReferenceValue) { r.MinimumTCB.SNP = n(128) }, "MinimumTCB.SNP: is 128, want 0 to 127"},
		{"would wrap around", func(r *simulated.ReferenceValue) { r.MinimumTCB.Microcode = n(256) }, "is 256, want 0 to 255"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			ref := w.Reference(measurement)
			tc.spoil(&ref)
			if faults := ref.Validate(); !slices.ContainsFunc(faults, func(f string) bool { return strings.Contains(f, tc.fault) }) {
				t.Errorf("got %q, want %q among them", faults, tc.fault)
			}
			if v, err := simulated.NewValidator([]simulated.ReferenceValue{w.Reference(measurement), ref}); err == nil || v != nil ||
				!strings.Contains(err.Error(), "reference value 1: ") {
				t.Errorf("a validator was made: %v", err)
			}
		})
	}
}

func TestAllFaultsAreReportedAtOnce(t *testing.T) {
	if faults := (simulated.ReferenceValue{}).Validate(); len(faults) != 6 {
		t.Errorf("the empty reference value has %d faults, want one for each of 6 fields: %q", len(faults), faults)
	}
	if faults := world(t).Reference(measurement).Validate(); len(faults) != 0 {
		t.Errorf("a good reference value has faults: %q", faults)
	}
}

func TestZeroIsAMinimumWhenWrittenDown(t *testing.T) {
	w := world(t)
	ref := w.Reference(measurement)
	zero := 0
	ref.MinimumTCB = simulated.TCB{BootLoader: &zero, TEE: &zero, SNP: &zero, Microcode: &zero}
	if _, err := validator(t, ref).Validate(t.Context(), issue(t, w.Machine(measurement, hostData)), reportData); err != nil {
		t.Error(err)
	}
}

func TestReferenceValueInAManifest(t *testing.T) {
	text := `{"RootCA":"pem","Measurement":"aa","MinimumTCB":{"BootLoader":3,"TEE":0,"SNP":8,"Microcode":115}}`
	d := json.NewDecoder(strings.NewReader(text))
	d.DisallowUnknownFields()
	var ref simulated.ReferenceValue
	if err := d.Decode(&ref); err != nil {
		t.Fatal(err)
	}
	again, err := json.Marshal(ref)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(again, []byte(text)) {
		t.Errorf("got %s, want %s", again, text)
	}
}

func ecdsaRoot(t *testing.T) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
	}
	template.Subject.CommonName = "ARK-Milan"
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}
