package snp_test

import (
	"encoding/json"
	"strings"
	"testing"

	"portcullis.dev/portcullis/attestation/snp"
)

type value = snp.ReferenceValue

// Every field: empty, missing, short, long, in the wrong case, out of bounds.
func TestEveryFaultOfAReferenceValueIsNamed(t *testing.T) {
	hex := func(digits int) string { return strings.Repeat("a5", digits/2) }
	for _, tc := range []struct {
		name  string
		spoil func(*value)
		fault string
	}{
		{"no product", func(r *value) { r.Product = "" }, "Product: is missing"},
		{"product in lower case", func(r *value) { r.Product = "milan" }, `Product: "milan" is no processor line`},
		{"product in upper case", func(r *value) { r.Product = "MILAN" }, `Product: "MILAN" is no processor line`},
		{"product with a stepping", func(r *value) { r.Product = "Milan-B1" }, `Product: "Milan-B1" is no processor line`},
		{"product with a blank", func(r *value) { r.Product = "Milan " }, `Product: "Milan " is no processor line`},
		{"product that cannot be judged", func(r *value) { r.Product = "Turin" }, `Product: "Turin" cannot be judged yet`},
		{"no signing key", func(r *value) { r.SigningKey = "" }, "SigningKey: is missing"},
		{"signing key in lower case", func(r *value) { r.SigningKey = "vcek" }, `SigningKey: "vcek" is no signing key`},
		{"any signing key", func(r *value) { r.SigningKey = "any" }, `SigningKey: "any" is no signing key`},
		{"no signature", func(r *value) { r.SigningKey = "None" }, `SigningKey: "None" is no signing key`},
		{"no measurement", func(r *value) { r.Measurement = "" }, "Measurement: is missing"},
		{"measurement short", func(r *value) { r.Measurement = hex(94) }, "Measurement: "},
		{"measurement long", func(r *value) { r.Measurement = hex(98) }, "Measurement: "},
		{"measurement odd", func(r *value) { r.Measurement = r.Measurement[1:] }, "Measurement: "},
		{"measurement in upper case", func(r *value) { r.Measurement = strings.ToUpper(r.Measurement) }, "Measurement: "},
		{"measurement with a prefix", func(r *value) { r.Measurement = "0x" + r.Measurement[2:] }, "Measurement: "},
		{"measurement all zero", func(r *value) { r.Measurement = strings.Repeat("0", 96) }, "Measurement: is all zero"},
		{"no boot loader", func(r *value) { r.MinimumTCB.BootLoader = nil }, "MinimumTCB.BootLoader: is missing"},
		{"no TEE", func(r *value) { r.MinimumTCB.TEE = nil }, "MinimumTCB.TEE: is missing"},
		{"no SNP", func(r *value) { r.MinimumTCB.SNP = nil }, "MinimumTCB.SNP: is missing"},
		{"no microcode", func(r *value) { r.MinimumTCB.Microcode = nil }, "MinimumTCB.Microcode: is missing"},
		{"boot loader below zero", func(r *value) { *r.MinimumTCB.BootLoader = -1 }, "MinimumTCB.BootLoader: is -1"},
		{"TEE too large", func(r *value) { *r.MinimumTCB.TEE = 128 }, "MinimumTCB.TEE: is 128, want 0 to 127"},
		{"SNP too large", func(r *value) { *r.MinimumTCB.SNP = 264 }, "MinimumTCB.SNP: is 264"},
		{"microcode too large", func(r *value) { *r.MinimumTCB.Microcode = 256 }, "MinimumTCB.Microcode: is 256"},
		{"no ABI major", func(r *value) { r.MinimumABI.Major = nil }, "MinimumABI.Major: is missing"},
		{"no ABI minor", func(r *value) { r.MinimumABI.Minor = nil }, "MinimumABI.Minor: is missing"},
		{"ABI major below zero", func(r *value) { *r.MinimumABI.Major = -1 }, "MinimumABI.Major: is -1"},
		{"ABI minor too large", func(r *value) { *r.MinimumABI.Minor = 256 }, "MinimumABI.Minor: is 256, want 0 to 255"},
		{"nothing about SMT", func(r *value) { r.AllowSMT = nil }, "AllowSMT: is missing, want true or false"},
		{"no chips", func(r *value) { r.AllowedChipIDs = nil }, `AllowedChipIDs: is missing, want ["any"] or`},
		{"empty chips", func(r *value) { r.AllowedChipIDs = []string{} }, "AllowedChipIDs: is missing"},
		{"empty chip", func(r *value) { r.AllowedChipIDs = []string{""} }, "AllowedChipIDs: is missing"},
		{"chip short", func(r *value) { r.AllowedChipIDs = []string{hex(126)} }, "AllowedChipIDs: "},
		{"chip long", func(r *value) { r.AllowedChipIDs = []string{hex(130)} }, "AllowedChipIDs: "},
		{"chip in upper case", func(r *value) { r.AllowedChipIDs = []string{strings.ToUpper(hex(128))} }, "AllowedChipIDs: "},
		{"chip that hides", func(r *value) {
			r.AllowedChipIDs = []string{strings.Repeat("0", 128)}
		}, "AllowedChipIDs: is all zero"},
		{"any in another case", func(r *value) { r.AllowedChipIDs = []string{"Any"} }, "AllowedChipIDs: "},
		{"another word", func(r *value) { r.AllowedChipIDs = []string{"none"} }, "AllowedChipIDs: "},
		{"any and a chip", func(r *value) {
			r.AllowedChipIDs = []string{hex(128), "any"}
		}, `AllowedChipIDs: "any" stands beside other values`},
		{"any twice", func(r *value) { r.AllowedChipIDs = []string{"any", "any"} }, "AllowedChipIDs: "},
		{"no ID keys", func(r *value) { r.IDKeyDigests = nil }, `IDKeyDigests: is missing, want ["none"] or`},
		{"any ID key", func(r *value) { r.IDKeyDigests = []string{"any"} }, "IDKeyDigests: "},
		{"ID key short", func(r *value) { r.IDKeyDigests = []string{hex(64)} }, "IDKeyDigests: "},
		{"ID key all zero", func(r *value) { r.IDKeyDigests = []string{strings.Repeat("0", 96)} }, "IDKeyDigests: is all zero"},
		{"none and an ID key", func(r *value) { r.IDKeyDigests = []string{"none", hex(96)} }, "IDKeyDigests: "},
		{"no author keys", func(r *value) { r.AuthorKeyDigests = nil }, `AuthorKeyDigests: is missing, want ["none"] or`},
		{"any author key", func(r *value) { r.AuthorKeyDigests = []string{"any"} }, "AuthorKeyDigests: "},
		{"author key long", func(r *value) { r.AuthorKeyDigests = []string{hex(98)} }, "AuthorKeyDigests: "},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := set("Milan")
			tc.spoil(&s.reference)
			faults := s.reference.Validate()
			if len(faults) != 1 && tc.name != "any twice" || !strings.HasPrefix(faults[0], tc.fault) {
				t.Errorf("got %q, want one that begins with %q", faults, tc.fault)
			}
			if v, err := snp.NewValidator([]snp.ReferenceValue{s.reference},
				snp.Options{Collateral: s.kds, Roots: s.roots}); v != nil || err == nil || !strings.Contains(err.Error(), tc.fault) {
				t.Errorf("a validator was made, or not for that reason: %v", err)
			}
		})
	}
}

func TestAnEmptyReferenceValueHasEveryFault(t *testing.T) {
	faults := snp.ReferenceValue{}.Validate()
	for _, field := range []string{
		"Product", "SigningKey", "Measurement",
		"MinimumTCB.BootLoader", "MinimumTCB.TEE", "MinimumTCB.SNP", "MinimumTCB.Microcode",
		"MinimumABI.Major", "MinimumABI.Minor", "AllowSMT", "AllowedChipIDs", "IDKeyDigests", "AuthorKeyDigests",
	} {
		if len(faults) == 0 || !strings.HasPrefix(faults[0], field+": is missing") {
			t.Fatalf("got %q, want %s to be missing", faults, field)
		}
		faults = faults[1:]
	}
	if len(faults) > 0 {
		t.Errorf("there is more than that: %q", faults)
	}
}

func TestAReferenceValueIsWrittenAsItIsRead(t *testing.T) {
	want := `{"Product":"Genoa","SigningKey":"VCEK","Measurement":"` + measurement.String() + `",` +
		`"MinimumTCB":{"BootLoader":3,"TEE":0,"SNP":8,"Microcode":115},"MinimumABI":{"Major":0,"Minor":0},"AllowSMT":true,` +
		`"AllowedChipIDs":["any"],"IDKeyDigests":["none"],"AuthorKeyDigests":["none"]}`
	text := must(json.Marshal(set("Genoa").reference))
	if string(text) != want {
		t.Errorf("got %s, want %s", text, want)
	}
	var r snp.ReferenceValue
	if err := json.Unmarshal(text, &r); err != nil || len(r.Validate()) > 0 {
		t.Errorf("got %v and %q", err, r.Validate())
	}
}
