package report

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"portcullis.dev/portcullis/api"
	"portcullis.dev/portcullis/attestation"
	"portcullis.dev/portcullis/attestation/snp"
	"portcullis.dev/portcullis/manifest"
)

// ReferenceValue is one machine that the manifest accepts.
type ReferenceValue struct {
	Path     string               `json:"path"`
	Platform attestation.Platform `json:"platform"`
	// Used says that this one accepted the Coordinator's evidence.
	Used   bool             `json:"used"`
	Fields []ReferenceField `json:"fields"`
}

// ReferenceField is one field of it.
type ReferenceField struct {
	Name  string `json:"name"`
	Value string `json:"value"`
	// Means says what the field is. Allows says what this value lets through; empty where that is nothing to think about.
	Means  string `json:"means"`
	Level  Level  `json:"level,omitempty"`
	Allows string `json:"allows,omitempty"`
}

// meaning is what there is to say about a field: always what it is, and of some values what they allow.
type meaning struct {
	means  string
	allows func(value string) (Level, string)
}

func when(bad string, level Level, allows string) func(string) (Level, string) {
	return func(value string) (Level, string) {
		if value == bad {
			return level, allows
		}
		return Plain, ""
	}
}

func allZero(level Level, allows string) func(string) (Level, string) {
	return func(value string) (Level, string) {
		if strings.Trim(value, "0") == "" {
			return level, allows
		}
		return Plain, ""
	}
}

// meanings are by the manifest's own words for the fields, docs/manifest.md's in one sentence. A test looks that no field
// of a reference value is without one.
var meanings = map[attestation.Platform]map[string]meaning{
	attestation.SNP: {
		"Product": {means: "The line of AMD processors that must have made the evidence."},
		"SigningKey": {
			"Whose key signs the evidence: the chip's own (VCEK), or one that AMD gave to a cloud (VLEK).",
			when("VLEK", Note, "On which chip a guest runs stays hidden: the cloud's key signs for all its chips."),
		},
		"Measurement": {means: "The fingerprint of what was loaded into the guest before it started: the podVM image begins with it."},
		"MinimumTCB": {
			"The oldest firmware that is accepted, each part by its version.",
			func(value string) (Level, string) {
				if strings.Contains(value, "SNP 0,") && strings.HasSuffix(value, "Microcode 0") {
					return Caution, "Firmware of any age is accepted, with every hole that was mended since."
				}
				return Plain, ""
			},
		},
		"MinimumABI": {means: "The oldest firmware interface that a guest may ask for; it bounds nothing else."},
		"AllowSMT": {
			"Whether two guests may share a processor core at the same time.",
			when("true", Note, "A stranger may run on the other half of a core; what it could learn there is the processor's to prevent."),
		},
		"AllowedChipIDs": {
			"Which chips may have signed.",
			when("any", Note, "Any genuine chip of this line will do, wherever it stands and whoever owns it."),
		},
		"IDKeyDigests":     {means: "Whose signature the guest's launch must carry (its ID block); none means that it must carry none."},
		"AuthorKeyDigests": {means: "Whose signature those signers must carry in turn; none means that there must be none."},
	},
	attestation.TDX: {
		"MRTD": {means: "The fingerprint of the guest's first memory: its firmware."},
		"RTMR0": {
			"The fingerprint of the firmware's configuration.",
			allZero(Caution, "Nothing may have been measured into it: the firmware's configuration is not shown."),
		},
		"RTMR1": {
			"The fingerprint of the kernel.",
			allZero(Caution, "Nothing may have been measured into it: which kernel runs is not shown by it."),
		},
		"RTMR2": {
			"The fingerprint of the kernel's command line and first file system.",
			allZero(Caution, "Nothing may have been measured into it: which command line the kernel got is not shown by it."),
		},
		"RTMR3": {
			"The fingerprint of what the running guest measures itself.",
			when("any", Note, "What the guest measures after its start is not compared; what could do so is in the other three."),
		},
		"MRSEAM": {means: "Which versions of Intel's TDX module may guard the guest, by fingerprint."},
		"XFAM":   {means: "Which extended processor features the guest may use, exactly."},
		"MinimumTCB": {
			"Versions from below, on top of what Intel says of them.",
			func(value string) (Level, string) {
				if strings.Contains(value, strings.Repeat("0", 32)) {
					return Note, "Which versions are old is left to Intel's judgement alone."
				}
				return Plain, ""
			},
		},
		"AcceptedTCBStatuses": {
			"What Intel may say of the platform, of the TDX module and of the quoting enclave.",
			func(value string) (Level, string) {
				if strings.Contains(value, "OutOfDate") {
					return Caution, "Machines with known holes are accepted: Intel calls them out of date."
				}
				if value != "UpToDate" {
					return Note, "Machines are accepted of which Intel says that software or configuration must do its part, too."
				}
				return Plain, ""
			},
		},
	},
	attestation.Simulated: {
		"RootCA": {
			"The root of the pretended hardware. The value shown is the SHA-256 of its text.",
			func(string) (Level, string) {
				return Danger, "Whoever holds this root's key makes evidence of anything. No memory is encrypted, no host is kept out."
			},
		},
		"Measurement": {means: "What the pretended hardware is to say of the guest's image."},
		"MinimumTCB":  {means: "The oldest firmware that the pretended hardware may report."},
	},
}

// referenceValues lists the fields of each reference value as the manifest has them, so that one that is added there is not
// forgotten here.
func referenceValues(r manifest.ReferenceValues, used string) []ReferenceValue {
	var all []ReferenceValue
	add := func(platform attestation.Platform, i int, value any) {
		path := api.ReferencePath(platform, i)
		all = append(all, ReferenceValue{Path: path, Platform: platform, Used: path == used, Fields: fields(platform, value)})
	}
	for i, v := range r.SNP {
		add(attestation.SNP, i, v)
	}
	for i, v := range r.TDX {
		add(attestation.TDX, i, v)
	}
	for i, v := range r.Simulated {
		add(attestation.Simulated, i, v)
	}
	return all
}

func fields(platform attestation.Platform, value any) []ReferenceField {
	var all []ReferenceField
	v := reflect.ValueOf(value)
	for i := range v.NumField() {
		f := ReferenceField{Name: v.Type().Field(i).Name, Value: valueText(v.Field(i).Interface())}
		if platform == attestation.Simulated && f.Name == "RootCA" {
			f.Value = fingerprint([]byte(f.Value))
		}
		if m, known := meanings[platform][f.Name]; known {
			f.Means = m.means
			if m.allows != nil {
				f.Level, f.Allows = m.allows(f.Value)
			}
		} else {
			f.Level, f.Means = Caution, "This report does not know the field: read docs/manifest.md."
		}
		all = append(all, f)
	}
	return all
}

// valueText is a field's value as people read it.
func valueText(value any) string {
	switch v := value.(type) {
	case string:
		return v
	case []string:
		return strings.Join(v, ", ")
	case snp.TCB:
		return fmt.Sprintf("BootLoader %s, TEE %s, SNP %s, Microcode %s", valueText(v.BootLoader), valueText(v.TEE), valueText(v.SNP), valueText(v.Microcode))
	}
	b, err := json.Marshal(value)
	if err != nil {
		return err.Error()
	}
	var parts map[string]any
	if json.Unmarshal(b, &parts) != nil {
		return string(b)
	}
	var words []string
	for name, part := range parts {
		words = append(words, fmt.Sprintf("%s %v", name, part))
	}
	slices.Sort(words)
	return strings.Join(words, ", ")
}
