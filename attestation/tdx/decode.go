package tdx

import (
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"time"

	"portcullis.dev/portcullis/attestation"
	"portcullis.dev/portcullis/attestation/internal/judge"
)

// bit is one of a number's named bits.
type bit struct {
	at   int
	name string
	set  string
}

// attributes are TDATTRIBUTES' (Intel TDX Module ABI specification, "TD ATTRIBUTES").
var attributes = []bit{
	{0, "DEBUG", "the host reads and writes the TD's memory"},
	{4, "HGS_PLUS_PROF", "the host profiles the TD"},
	{5, "PERF_PROF", "the host profiles the TD"},
	{6, "PMT_PROF", "the host profiles the TD"},
	{27, "LASS", "linear address space separation"},
	{28, "SEPT_VE_DISABLE", "the host cannot inject #VE by taking pages away"},
	{29, "MIGRATABLE", "another platform may get the TD's memory"},
	{30, "PKS", "supervisor protection keys"},
	{31, "KL", "key locker"},
	{62, "TPA", "a provisioning agent of TDX Connect"},
	{63, "PERFMON", "performance counters"},
}

// features are XFAM's, those of XCR0 and IA32_XSS (Intel SDM volume 1, chapter 13).
var features = []bit{
	{0, "X87", "always on"},
	{1, "SSE", "always on"},
	{2, "AVX", ""},
	{3, "BNDREGS", "MPX, which no TD may have"},
	{4, "BNDCSR", "MPX, which no TD may have"},
	{5, "OPMASK", "AVX-512"},
	{6, "ZMM_HI256", "AVX-512"},
	{7, "HI16_ZMM", "AVX-512"},
	{8, "PT", "processor trace"},
	{9, "PKRU", "user protection keys"},
	{10, "PASID", ""},
	{11, "CET_U", "shadow stacks"},
	{12, "CET_S", "shadow stacks"},
	{13, "HDC", ""},
	{14, "UINTR", "user interrupts"},
	{15, "LBR", "last branch records"},
	{16, "HWP", ""},
	{17, "XTILECFG", "AMX"},
	{18, "XTILEDATA", "AMX"},
	{19, "APX", ""},
}

// Decode takes a quote apart for people, whatever it says and whoever signed it. Of a quote whose signature data cannot be
// read, it gives header and TD report, and why. The error says that there are not even these.
func Decode(e attestation.Evidence) ([]attestation.Field, error) {
	if least := headerSize + bodySize; len(e.Report) < least {
		return nil, fmt.Errorf("a TD quote has at least %d bytes, this has %d", least, len(e.Report))
	}
	var all []attestation.Field
	add := func(name, value, meaning string) {
		all = append(all, attestation.Field{Name: name, Value: value, Meaning: meaning})
	}
	octets := func(name string, b []byte) {
		meaning := ""
		if len(b) >= 16 && judge.AllZero(b) {
			meaning = "none"
		}
		add(name, hex.EncodeToString(b), meaning)
	}
	number := func(name string, b []byte, known []bit) {
		value := binary.LittleEndian.Uint64(b)
		add(name, hex.EncodeToString(b), fmt.Sprintf("%#x", value))
		for _, bit := range known {
			if n := value >> bit.at & 1; n == 1 || bit.at == 0 || bit.at == 28 || bit.at == 29 {
				meaning := bit.set
				if n == 0 {
					meaning = "not: " + bit.set
				}
				add(name+"."+bit.name, fmt.Sprint(n), meaning)
			}
			value &^= 1 << bit.at
		}
		if value != 0 {
			add(name+".RESERVED", fmt.Sprintf("%#x", value), "bits without a name")
		}
	}

	c := &cursor{b: e.Report}
	version := c.u16()
	add("VERSION", fmt.Sprint(version), "of the quote's layout; 4 can be judged")
	add("ATTESTATION_KEY_TYPE", fmt.Sprint(c.u16()), "2 is ECDSA P-256")
	add("TEE_TYPE", fmt.Sprintf("%#x", c.u32()), "0x81 is TDX")
	c.take(4)
	octets("QE_VENDOR_ID", c.take(16))
	octets("USER_DATA", c.take(20))
	if version != 4 {
		return append(all, attestation.Field{Name: "REPORT", Value: "unreadable", Meaning: "no layout but version 4 is known"}), nil
	}
	td := readTD(c)
	octets("TEE_TCB_SVN", td.teeTCBSVN)
	add("TEE_TCB_SVN.0", fmt.Sprint(td.teeTCBSVN[0]), "the TDX module's security version")
	add("TEE_TCB_SVN.1", fmt.Sprint(td.teeTCBSVN[1]), "the TDX module's version: 0 is 1.0, 1 is 1.5")
	octets("MRSEAM", td.mrSEAM)
	add("MRSIGNERSEAM", hex.EncodeToString(td.mrSignerSEAM), "all zero is Intel")
	octets("SEAMATTRIBUTES", td.seamAttributes)
	number("TDATTRIBUTES", td.tdAttributes, attributes)
	number("XFAM", td.xfam, features)
	octets("MRTD", td.mrTD)
	octets("MRCONFIGID", td.mrConfigID)
	octets("MROWNER", td.mrOwner)
	octets("MROWNERCONFIG", td.mrOwnerConfig)
	for i, rtmr := range td.rtmrs {
		octets(fmt.Sprintf("RTMR%d", i), rtmr)
	}
	octets("REPORTDATA", td.reportData)

	q, r := readQuote(e.Report)
	if r != nil {
		return append(all, attestation.Field{Name: r.Field, Value: r.Got, Meaning: "unreadable, want " + r.Want}), nil
	}
	octets("SIGNATURE", q.signature)
	octets("ATTESTATION_KEY", q.attestationKey)
	octets("QE_REPORT.CPUSVN", q.qe.raw[:16])
	octets("QE_REPORT.MISCSELECT", q.qe.miscSelect)
	octets("QE_REPORT.ATTRIBUTES", q.qe.attributes)
	octets("QE_REPORT.MRENCLAVE", q.qe.raw[64:96])
	octets("QE_REPORT.MRSIGNER", q.qe.mrSigner)
	add("QE_REPORT.ISVPRODID", fmt.Sprint(q.qe.isvProdID), "")
	add("QE_REPORT.ISVSVN", fmt.Sprint(q.qe.isvSVN), "the quoting enclave's security version")
	octets("QE_REPORT.REPORTDATA", q.qe.reportData)
	octets("QE_REPORT_SIGNATURE", q.qeSignature)
	for _, link := range []struct {
		name        string
		certificate *x509.Certificate
	}{{"CHAIN.PCK", q.pck}, {"CHAIN.CA", q.ca}, {"CHAIN.ROOT", q.root}} {
		add(link.name, link.certificate.Subject.CommonName, fmt.Sprintf("by %s, valid from %s to %s",
			link.certificate.Issuer.CommonName, link.certificate.NotBefore.UTC().Format(time.DateOnly),
			link.certificate.NotAfter.UTC().Format(time.DateOnly)))
	}
	x := q.extensions
	add("FMSPC", x.FMSPC, "the platform's model")
	add("PCEID", x.PCEID, "")
	add("PPID", x.PPID, "the platform")
	add("CPUSVN", hex.EncodeToString(x.TCB.CPUSvnComponents), "components of the platform's TCB")
	add("PCESVN", fmt.Sprint(x.TCB.PCESvn), "security version of the provisioning certification enclave")
	return all, nil
}
