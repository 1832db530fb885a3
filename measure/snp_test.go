package measure_test

import (
	"crypto/sha256"
	"encoding/hex"
	"os"
	"strings"
	"testing"

	"portcullis.dev/portcullis/measure"
)

func read(t *testing.T, file string) *measure.Firmware {
	t.Helper()
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return parse(t, raw)
}

// epyc is QEMU's EPYC-v4, family 23, model 1, stepping 2.
const epyc = 0x800f12

func boot(kernel, initrd, commandLine string) *measure.DirectBoot {
	return &measure.DirectBoot{
		Kernel: sha256.Sum256([]byte(kernel)), Initrd: sha256.Sum256([]byte(initrd)), CommandLine: commandLine,
	}
}

// The published vectors; see testdata/README.md.
func TestSNPMeasurementsArePublishedOnes(t *testing.T) {
	amdSev, ovmf := read(t, "testdata/ovmf_AmdSev_suffix.bin"), read(t, "testdata/ovmf_OvmfX64_suffix.bin")
	for name, test := range map[string]struct {
		guest measure.SNP
		want  string
	}{
		"test_snp_default": {
			measure.SNP{Firmware: amdSev, VCPUs: 1, CPU: epyc, Features: 0x21, Boot: boot("", "", "console=ttyS0 loglevel=7")},
			"803f691094946e42068aaa3a8f9e26a5c89f36f7b73ecfb28c653360fe4b3aba7e534442e7e1e17895dfe778d0228977",
		},
		"test_snp_guest_feature_snp_only": {
			measure.SNP{Firmware: amdSev, VCPUs: 1, CPU: epyc, Features: 1, Boot: boot("", "", "console=ttyS0 loglevel=7")},
			"6d287813eb5222d770f75005c664e34c204f385ce832cc2ce7d0d6f354454362f390ef83a92046c042e706363b4b08fa",
		},
		"test_snp_without_kernel_default": {
			measure.SNP{Firmware: amdSev, VCPUs: 1, CPU: epyc, Features: 0x21},
			"e1e1ca029dd7973ab9513295be68198472dcd4fc834bd9af9b63f6e8a1674dbf281a9278a4a2ebe0eed9f22adbcd0e2b",
		},
		"test_snp_without_kernel_feature_snp_only": {
			measure.SNP{Firmware: amdSev, VCPUs: 1, CPU: epyc, Features: 1},
			"19358ba9a7615534a9a1e2f0dfc29384dcd4dcb7062ff9c6013b26869a5fc6ecabe033c48dd6f6db5d6d76e7c5df632d",
		},
		"test_snp_with_multiple_vcpus_default": {
			measure.SNP{Firmware: amdSev, VCPUs: 4, CPU: epyc, Features: 0x21, Boot: boot("", "", "")},
			"4953b1fb416fa874980e8442b3706d345926d5f38879134e00813c5d7abcbe78eafe7b422907be0b4698e2414a631942",
		},
		"test_snp_with_multiple_vcpus_feature_snp_only": {
			measure.SNP{Firmware: amdSev, VCPUs: 4, CPU: epyc, Features: 1, Boot: boot("", "", "")},
			"5061fffb019493a903613d56d54b94912a1a2f9e4502385f5c194616753720a92441310ba6c4933de877c36e23046ad5",
		},
		"test_snp_with_ovmfx64_without_default": {
			measure.SNP{Firmware: ovmf, VCPUs: 1, CPU: epyc, Features: 0x21},
			"28797ae0afaba4005a81e629acebfb59e6687949d6be44007cd5506823b0dd66f146aaae26ff291eed7b493d8a64c385",
		},
		"test_snp_with_ovmfx64_without_kernel_feature_snp_only": {
			measure.SNP{Firmware: ovmf, VCPUs: 1, CPU: epyc, Features: 1},
			"da0296de8193586a5512078dcd719eccecbd87e2b825ad4148c44f665dc87df21e5b49e21523a9ad993afdb6a30b4005",
		},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := test.guest.Measure()
			if err != nil || hex.EncodeToString(got[:]) != test.want {
				t.Errorf("got %x, %v, want %s", got, err, test.want)
			}
		})
	}
}

// Vectors that sev-snp-measure 0.0.13 made of the firmware in build.
func TestSNPMeasurementsAreThoseOfTheReferenceImplementation(t *testing.T) {
	firmware := parse(t, amdSev.bytes())
	milan, err := measure.CPUType("EPYC-Milan")
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		guest measure.SNP
		want  string
	}{
		"--vcpu-type EPYC-Milan": {
			measure.SNP{Firmware: firmware, VCPUs: 1, CPU: milan, Features: 1},
			"e2fd9a073d6aa51c5122924bc7e8b49d230613df41d6d35a9beda4dd35639b3839b92e6c7f62a303d78a5388abe79370",
		},
		"--vcpus 3 --vcpu-type EPYC-Milan --append console=ttyS0": {
			measure.SNP{Firmware: firmware, VCPUs: 3, CPU: milan, Features: 1, Boot: boot("kernel", "initrd", "console=ttyS0")},
			"7a8ed5575575492b6ee050b05ca22e1ea107f85a5f7ab68af45dad5c326d4a14582aae435afadebc1b067aa435c8b55a",
		},
		"--vcpus 2 --vcpu-type EPYC-v4 --guest-features 0x21": {
			measure.SNP{Firmware: firmware, VCPUs: 2, CPU: epyc, Features: 0x21, Boot: boot("kernel", "", "")},
			"4cae1c6ff6a9f4859393d23f2b726edb997714d209cc56b79a7df6bfc00628845765204b6ebe50727b33e732d73d042b",
		},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := test.guest.Measure()
			if err != nil || hex.EncodeToString(got[:]) != test.want {
				t.Errorf("got %x, %v, want %s", got, err, test.want)
			}
		})
	}
}

// Each input that the host could change changes the measurement.
func TestEachInputOfSNPCounts(t *testing.T) {
	good := measure.SNP{Firmware: parse(t, amdSev.bytes()), VCPUs: 2, CPU: epyc, Features: 1, Boot: boot("k", "i", "c")}
	want, err := good.Measure()
	if err != nil {
		t.Fatal(err)
	}
	raw := amdSev.bytes()
	raw[0] ^= 1
	otherReset := amdSev
	otherReset.reset++
	for name, change := range map[string]func(*measure.SNP){
		"firmware":     func(s *measure.SNP) { s.Firmware = parse(t, raw) },
		"reset":        func(s *measure.SNP) { s.Firmware = parse(t, otherReset.bytes()) },
		"kernel":       func(s *measure.SNP) { s.Boot = boot("K", "i", "c") },
		"initrd":       func(s *measure.SNP) { s.Boot = boot("k", "I", "c") },
		"command line": func(s *measure.SNP) { s.Boot = boot("k", "i", "c ") },
		"no kernel":    func(s *measure.SNP) { s.Boot = nil },
		"vCPUs":        func(s *measure.SNP) { s.VCPUs++ },
		"vCPU type":    func(s *measure.SNP) { s.CPU++ },
		"features":     func(s *measure.SNP) { s.Features |= 4 },
	} {
		changed := good
		change(&changed)
		if got, err := changed.Measure(); err != nil || got == want {
			t.Errorf("%s: got %x, %v", name, got, err)
		}
	}
}

func TestSNPMeasurementThatCannotBeIsExplained(t *testing.T) {
	with := func(f func(*build)) []byte {
		b := amdSev
		f(&b)
		return b.bytes()
	}
	lastSection := func(s section) []byte { return with(func(b *build) { b.sev = append(b.sev[:5:5], s) }) }
	whole := amdSev.bytes()
	good := measure.SNP{VCPUs: 1, CPU: epyc, Features: 1, Boot: boot("", "", "")}
	for name, test := range map[string]struct {
		firmware []byte
		alter    func(*measure.SNP)
		want     string
	}{
		"no firmware":           {nil, nil, "no firmware"},
		"no vCPUs":              {whole, func(s *measure.SNP) { s.VCPUs = 0 }, "0 vCPUs, want 1 to"},
		"too many vCPUs":        {whole, func(s *measure.SNP) { s.VCPUs = 1 << 20 }, "vCPUs, want 1 to"},
		"no vCPU type":          {whole, func(s *measure.SNP) { s.CPU = 0 }, "type of the vCPUs"},
		"no SNP":                {whole, func(s *measure.SNP) { s.Features = 0x20 }, "want bit 0"},
		"no reset block":        {with(func(b *build) { b.reset = 0 }), nil, "has no SEV-ES reset block"},
		"no metadata":           {with(func(b *build) { b.sev = nil }), nil, "has no SEV metadata"},
		"no place for hashes":   {with(func(b *build) { b.hashes = nil }), nil, "has no place for a table of hashes"},
		"half a place":          {with(func(b *build) { b.hashes = b.hashes[:1] }), nil, "place for a table of hashes has 4 bytes, want 8"},
		"hashes elsewhere":      {with(func(b *build) { b.hashes = []uint32{0x90000, 0x400} }), nil, "is not in its section"},
		"hashes beyond":         {with(func(b *build) { b.hashes = []uint32{0x810f00, 0x400} }), nil, "is not in its section"},
		"no room for hashes":    {with(func(b *build) { b.hashes = []uint32{0x810c00, 0x40} }), nil, "is not in its section"},
		"no section for hashes": {with(func(b *build) { b.sev = b.sev[:4] }), nil, "would boot any"},
		"unknown section":       {lastSection(section{0x820000, 0x1000, 9}), nil, "type 0x9, which is unknown"},
		"half a page":           {lastSection(section{0x820000, 0x800, 1}), nil, "is not of whole pages"},
		"no page":               {lastSection(section{0x820000, 0, 1}), nil, "is not of whole pages"},
		"endless":               {lastSection(section{0x820000, 0x20000000, 1}), nil, "larger than 268435456 bytes together"},
		"two pages of secrets":  {lastSection(section{0x820000, 0x2000, 2}), nil, "want one page"},
	} {
		t.Run(name, func(t *testing.T) {
			guest := good
			if test.firmware != nil {
				guest.Firmware = parse(t, test.firmware)
			}
			if test.alter != nil {
				test.alter(&guest)
			}
			if got, err := guest.Measure(); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %x, %v, want %q", got, err, test.want)
			}
		})
	}
}

func TestFirmwareThatCannotBeReadIsExplained(t *testing.T) {
	whole := amdSev.bytes()
	twice := amdSev
	twice.extra = append([]byte{1, 2, 3, 4, 22, 0}, guid("00f771de-1a7e-4fcb-890e-68c77e2fb44e")...)
	cut := amdSev
	cut.extra = append([]byte{255, 0}, guid("00f771de-1a7e-4fcb-890e-68c77e2fb44f")...)
	for name, test := range map[string]struct {
		raw  []byte
		want string
	}{
		"nothing":       {nil, "a firmware of 0 bytes"},
		"half a page":   {whole[100:], "want whole pages"},
		"no table":      {make([]byte, 4096), "no table of GUIDs"},
		"entry twice":   {twice.bytes(), "00f771de-1a7e-4fcb-890e-68c77e2fb44e twice"},
		"entry too big": {cut.bytes(), "cut off"},
	} {
		if _, err := measure.ParseFirmware(test.raw); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", name, err, test.want)
		}
	}
}

func TestCPUSignatures(t *testing.T) {
	for name, want := range map[string]uint32{ // as QEMU's
		"EPYC": epyc, "EPYC-Rome": 0x830f10, "EPYC-Milan": 0xa00f11, "EPYC-Genoa": 0xa10f10, "EPYC-Turin": 0xb00f00,
	} {
		if got, err := measure.CPUType(name); err != nil || got != want {
			t.Errorf("%s: %#x, %v, want %#x", name, got, err, want)
		}
	}
	if len(measure.CPUTypes()) != 5 {
		t.Errorf("types %q", measure.CPUTypes())
	}
	if _, err := measure.CPUType("Xeon"); err == nil || !strings.Contains(err.Error(), "EPYC-Milan") {
		t.Errorf("Xeon: %v", err)
	}
	for _, cpu := range [][3]int{{14, 1, 1}, {271, 1, 1}, {25, -1, 1}, {25, 256, 1}, {25, 1, 16}, {25, 1, -1}} {
		if got, err := measure.CPUSignature(cpu[0], cpu[1], cpu[2]); err == nil {
			t.Errorf("%v is %#x", cpu, got)
		}
	}
}
