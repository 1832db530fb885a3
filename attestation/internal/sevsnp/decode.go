package sevsnp

import (
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"time"

	"github.com/google/go-sev-guest/abi"
	"github.com/google/go-sev-guest/kds"

	"portcullis.dev/portcullis/attestation"
	"portcullis.dev/portcullis/attestation/internal/judge"
)

// report is an ATTESTATION_REPORT that nobody has looked at.
type report []byte

func (r report) u8(at int) string  { return fmt.Sprint(r[at]) }
func (r report) u32(at int) uint32 { return binary.LittleEndian.Uint32(r[at:]) }
func (r report) u64(at int) uint64 { return binary.LittleEndian.Uint64(r[at:]) }

// bit is one of a number's named bits.
type bit struct {
	at         int
	name       string
	set, unset string
}

// policy is POLICY's, from bit 16 on (AMD document 56860, table "Guest Policy Structure").
var policy = []bit{
	{16, "SMT", "the two threads of a core may run different guests", "only on a machine without SMT"},
	{17, "RESERVED", "as it must be", "must be 1"},
	{18, "MIGRATE_MA", "a migration agent may move the guest", "no migration agent"},
	{19, "DEBUG", "the host may read and write the guest's memory", "no debugging"},
	{20, "SINGLE_SOCKET", "only on a machine with one socket", "any number of sockets"},
	{21, "CXL_ALLOW", "memory may be on CXL devices", "no memory on CXL devices"},
	{22, "MEM_AES_256_XTS", "memory must be encrypted with AES-256-XTS", "AES-128 will do"},
	{23, "RAPL_DIS", "only where the host cannot measure power", "the host may measure power"},
	{24, "CIPHERTEXT_HIDING_DRAM", "only where the host cannot read ciphertext", "the host may read ciphertext"},
	{25, "PAGE_SWAP_DISABLE", "the host may not swap or move pages", "the host may swap and move pages"},
}

// platformInfo is PLATFORM_INFO's (AMD document 56860, table "PLATFORM_INFO Field").
var platformInfo = []bit{
	{0, "SMT_EN", "SMT is on", "SMT is off"},
	{1, "TSME_EN", "all memory is encrypted, the host's too", "transparent memory encryption is off"},
	{2, "ECC_EN", "memory has ECC", "memory has no ECC"},
	{3, "RAPL_DIS", "the host cannot measure power", "the host can measure power"},
	{4, "CIPHERTEXT_HIDING_DRAM_EN", "the host cannot read ciphertext", "the host can read ciphertext"},
	{5, "ALIAS_CHECK_COMPLETE", "no memory has two addresses", "whether memory has two addresses was not checked"},
}

// keyInfo is that of the number at 48h, but for SIGNING_KEY.
var keyInfo = []bit{
	{0, "AUTHOR_KEY_EN", "AUTHOR_KEY_DIGEST is one", "there is no author key"},
	{1, "MASK_CHIP_KEY", "the report is not signed", "the report is signed"},
}

// Decode takes a report and its certificate table apart, whatever they say. The error says that report is not of an
// ATTESTATION_REPORT's size.
func Decode(raw, table []byte) ([]attestation.Field, error) {
	if len(raw) != abi.ReportSize {
		return nil, fmt.Errorf("an ATTESTATION_REPORT has %d bytes, this has %d", abi.ReportSize, len(raw))
	}
	r := report(raw)
	var all []attestation.Field
	add := func(name, value, meaning string) {
		all = append(all, attestation.Field{Name: name, Value: value, Meaning: meaning})
	}
	octets := func(name string, at, size int) {
		meaning := ""
		if judge.AllZero(r[at : at+size]) {
			meaning = "none"
		}
		add(name, hex.EncodeToString(r[at:at+size]), meaning)
	}
	bits := func(prefix string, value uint64, names []bit) {
		for _, b := range names {
			n, meaning := value>>b.at&1, b.unset
			if n == 1 {
				meaning = b.set
			}
			add(prefix+b.name, fmt.Sprint(n), meaning)
		}
	}
	product := kds.ProductLineFromFms(abi.FmsToCpuid1Eax(r[0x188], r[0x189], r[0x18a]))
	tcb := func(name string, at int) {
		add(name, fmt.Sprintf("%#016x", r.u64(at)), "")
		for _, part := range tcbParts(product) {
			add(name+"."+part.name, r.u8(at+part.at), "")
		}
	}

	// In the order of AMD document 56860, table "ATTESTATION_REPORT Structure".
	add("VERSION", fmt.Sprint(r.u32(0)), "of the report's layout")
	add("GUEST_SVN", fmt.Sprint(r.u32(4)), "the ID block's security version")
	add("POLICY", fmt.Sprintf("%#x", r.u64(8)), "")
	add("POLICY.ABI", ABIVersion{r[9], r[8]}.String(), "the oldest firmware ABI that the guest accepts")
	bits("POLICY.", r.u64(8), policy)
	octets("FAMILY_ID", 0x10, 16)
	octets("IMAGE_ID", 0x20, 16)
	add("VMPL", fmt.Sprint(r.u32(0x30)), "privilege level of who asked, 0 the highest")
	add("SIGNATURE_ALGO", fmt.Sprint(r.u32(0x34)), "1 is ECDSA P-384 with SHA-384")
	tcb("CURRENT_TCB", 0x38)
	add("PLATFORM_INFO", fmt.Sprintf("%#x", r.u64(0x40)), "")
	bits("PLATFORM_INFO.", r.u64(0x40), platformInfo)
	bits("", uint64(r.u32(0x48)), keyInfo)
	key := abi.ReportSigner(r.u32(0x48) >> 2 & 7)
	add("SIGNING_KEY", key.String(), "")
	octets("REPORT_DATA", 0x50, 64)
	octets("MEASUREMENT", 0x90, 48)
	octets("HOST_DATA", 0xc0, 32)
	octets("ID_KEY_DIGEST", 0xe0, 48)
	octets("AUTHOR_KEY_DIGEST", 0x110, 48)
	octets("REPORT_ID", 0x140, 32)
	octets("REPORT_ID_MA", 0x160, 32)
	tcb("REPORTED_TCB", 0x180)
	add("CPUID_FAM_ID", fmt.Sprintf("%#x", r[0x188]), product)
	add("CPUID_MOD_ID", fmt.Sprintf("%#x", r[0x189]), "")
	add("CPUID_STEP", fmt.Sprintf("%#x", r[0x18a]), "")
	octets("CHIP_ID", 0x1a0, 64)
	tcb("COMMITTED_TCB", 0x1e0)
	add("CURRENT_BUILD", r.u8(0x1e8), "")
	add("CURRENT_MINOR", r.u8(0x1e9), "")
	add("CURRENT_MAJOR", r.u8(0x1ea), "")
	add("COMMITTED_BUILD", r.u8(0x1ec), "")
	add("COMMITTED_MINOR", r.u8(0x1ed), "")
	add("COMMITTED_MAJOR", r.u8(0x1ee), "")
	tcb("LAUNCH_TCB", 0x1f0)
	add("LAUNCH_MIT_VECTOR", fmt.Sprintf("%#x", r.u64(0x1f8)), "")
	add("CURRENT_MIT_VECTOR", fmt.Sprintf("%#x", r.u64(0x200)), "")
	add("SIGNATURE", hex.EncodeToString(r[0x2a0:0x2a0+144]), "r and s, little-endian, 72 bytes each")
	return append(all, decodeTable(table, key)...), nil
}

type tcbPart struct {
	name string
	at   int
}

// tcbParts are the bytes of TCB_VERSION that mean something (AMD document 56860, table "TCB_VERSION").
func tcbParts(product string) []tcbPart {
	if product == "Turin" {
		return []tcbPart{{"FMC", 0}, {"BOOT_LOADER", 1}, {"TEE", 2}, {"SNP", 3}, {"MICROCODE", 7}}
	}
	return []tcbPart{{"BOOT_LOADER", 0}, {"TEE", 1}, {"SNP", 6}, {"MICROCODE", 7}}
}

func decodeTable(table []byte, key abi.ReportSigner) []attestation.Field {
	chain, err := parseTable(table)
	if err != nil {
		return []attestation.Field{{Name: "CHAIN", Value: "unreadable", Meaning: err.Error()}}
	}
	_, signer := Names(key)
	var all []attestation.Field
	for _, entry := range []struct {
		name string
		der  []byte
	}{{"VCEK", chain.GetVcekCert()}, {"VLEK", chain.GetVlekCert()}, {signer, chain.GetAskCert()}, {"ARK", chain.GetArkCert()}} {
		if len(entry.der) == 0 {
			continue
		}
		field := attestation.Field{Name: "CHAIN." + entry.name}
		certificate, err := x509.ParseCertificate(entry.der)
		if err != nil {
			field.Value, field.Meaning = "unreadable", err.Error()
			all = append(all, field)
			continue
		}
		field.Value = certificate.Subject.CommonName
		field.Meaning = fmt.Sprintf("by %s, valid from %s to %s", certificate.Issuer.CommonName,
			certificate.NotBefore.UTC().Format(time.DateOnly), certificate.NotAfter.UTC().Format(time.DateOnly))
		all = append(all, field)
		if entry.name == "VCEK" || entry.name == "VLEK" {
			all = append(all, decodeEndorsement(field.Name, certificate, key)...)
		}
	}
	if len(all) == 0 {
		all = append(all, attestation.Field{Name: "CHAIN", Value: "none", Meaning: "the validator asks AMD for the certificates"})
	}
	return all
}

// decodeEndorsement is what AMD's certificate vouches for.
func decodeEndorsement(name string, certificate *x509.Certificate, key abi.ReportSigner) []attestation.Field {
	vouch, err := kds.CertificateExtensions(certificate, key)
	if err != nil {
		return []attestation.Field{{Name: name + ".EXTENSIONS", Value: "unreadable", Meaning: err.Error()}}
	}
	all := []attestation.Field{
		{Name: name + ".PRODUCT_NAME", Value: vouch.ProductName},
		{Name: name + ".TCB", Value: fmt.Sprintf("%#016x", uint64(vouch.TCBVersion)), Meaning: "must be REPORTED_TCB"},
	}
	if len(vouch.HWID) > 0 {
		all = append(all, attestation.Field{Name: name + ".HWID", Value: hex.EncodeToString(vouch.HWID), Meaning: "must be CHIP_ID"})
	}
	return all
}
