package sevsnp

import (
	"bytes"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/google/go-sev-guest/abi"
	"github.com/google/go-sev-guest/kds"
	spb "github.com/google/go-sev-guest/proto/sevsnp"
	"github.com/google/go-sev-guest/validate"
	"github.com/google/go-sev-guest/verify"
	"github.com/google/go-sev-guest/verify/trust"

	"portcullis.dev/portcullis/attestation"
	"portcullis.dev/portcullis/attestation/internal/judge"
)

// evidence is what could be read of an attestation.Evidence. Nobody has vouched for any of it until vouched did.
type evidence struct {
	Evidence
	policy abi.SnpPolicy
	signer abi.SignerInfo
	// ek certifies the key that signed, and signedBy certifies ek.
	ek, signedBy *x509.Certificate
	vouch        *kds.Extensions // what ek says about chip and TCB

	known *verifiedChain // what the Validator remembers of these certificates, if anything
	// chains are the verdicts of chain, by the root's DER.
	chains map[string]*attestation.Rejected
}

// minVersion is the first report version that says which processor signed (CPUID_FAM_ID).
const minVersion = abi.ReportVersion3

// read takes the report and the certificate table apart.
func read(from attestation.Evidence) (*evidence, *attestation.Rejected) {
	if len(from.Report) != abi.ReportSize {
		return nil, judge.Rejected("REPORT",
			fmt.Sprintf("%d bytes", abi.ReportSize), fmt.Sprintf("%d bytes", len(from.Report)))
	}
	e := &evidence{chains: make(map[string]*attestation.Rejected)}
	var err error
	if e.Report, err = abi.ReportToProto(from.Report); err != nil {
		return nil, judge.Rejected("REPORT", "an ATTESTATION_REPORT", err.Error())
	}
	// The signature is checked over what was read. Bits that the reader drops would be nobody's word.
	if again, err := abi.ReportToAbiBytes(e.Report); err != nil || !bytes.Equal(again, from.Report) {
		return nil, judge.Rejected("REPORT", "an ATTESTATION_REPORT", "one that reads like another")
	}
	if version := e.Report.GetVersion(); version < minVersion || version > abi.MaxSupportedReportVersion {
		return nil, judge.Rejected("VERSION",
			fmt.Sprintf("%d to %d", minVersion, abi.MaxSupportedReportVersion), fmt.Sprint(version))
	}
	if algorithm := e.Report.GetSignatureAlgo(); algorithm != abi.SignEcdsaP384Sha384 {
		return nil, judge.Rejected("SIGNATURE_ALGO",
			fmt.Sprintf("%d (ECDSA P-384 with SHA-384)", abi.SignEcdsaP384Sha384), fmt.Sprint(algorithm))
	}
	if e.signer, err = abi.ParseSignerInfo(e.Report.GetSignerInfo()); err != nil {
		return nil, judge.Rejected("SIGNING_KEY", "VCEK or VLEK", err.Error())
	}
	e.Key = e.signer.SigningKey
	if e.policy, err = abi.ParseSnpPolicy(e.Report.GetPolicy()); err != nil {
		return nil, judge.Rejected("POLICY", "a guest policy", err.Error())
	}
	e.Product = kds.ProductLineFromFms(e.Report.GetCpuid1EaxFms())
	if e.Table, err = parseTable(from.Certificates); err != nil {
		return nil, judge.Rejected("CHAIN", "a certificate table", err.Error())
	}
	return e, nil
}

// certificates parses the certificates of a complete table, unless they are known.
func (e *evidence) certificates(remembered *chains) *attestation.Rejected {
	if e.known = remembered.get(e.chainName()); e.known != nil {
		e.ek, e.signedBy, e.vouch = e.known.ek, e.known.signedBy, e.known.vouch
		return nil
	}
	ek, signer := Names(e.Key)
	var err error
	if e.ek, err = x509.ParseCertificate(*e.endorsement()); err != nil {
		return judge.Rejected("CHAIN."+ek, "a certificate", err.Error())
	}
	if e.signedBy, err = x509.ParseCertificate(e.Table.GetAskCert()); err != nil {
		return judge.Rejected("CHAIN."+signer, "a certificate", err.Error())
	}
	if e.vouch, err = kds.CertificateExtensions(e.ek, e.Key); err != nil {
		return judge.Rejected("CHAIN."+ek, "the extensions of a "+ek, err.Error())
	}
	return nil
}

// about says whether ref is meant for such processors at all.
func (e *evidence) about(ref Reference) []judge.Check {
	return []judge.Check{
		func() *attestation.Rejected {
			if e.Product != ref.Product {
				return judge.Rejected("CPUID_FAM_ID", ref.Product, e.Product)
			}
			return nil
		},
		func() *attestation.Rejected {
			if e.Key != ref.SigningKey {
				return judge.Rejected("SIGNING_KEY", ref.SigningKey.String(), e.Key.String())
			}
			return nil
		},
	}
}

// vouched is what the certificates say: who signed, on which chip, with which firmware.
func (e *evidence) vouched(ref Reference, now time.Time) []judge.Check {
	return []judge.Check{
		func() *attestation.Rejected { return e.chain(ref.Root, now) },
		func() *attestation.Rejected {
			// A chip may be told to hide its identity (MASK_CHIP_ID); one that is shown must be the VCEK's.
			if chip := e.Report.GetChipId(); e.Key == abi.VcekReportSigner && !judge.AllZero(chip) {
				return judge.Equal("CHIP_ID", e.vouch.HWID, chip)
			}
			return nil
		},
		func() *attestation.Rejected {
			return judge.Number("REPORTED_TCB", uint64(e.vouch.TCBVersion), e.Report.GetReportedTcb())
		},
	}
}

// fields is what the report says, whoever signed it.
func (e *evidence) fields(ref Reference, data attestation.ReportData) []judge.Check {
	report := e.Report
	want := data.Bytes()
	return []judge.Check{
		func() *attestation.Rejected { return judge.Equal("REPORT_DATA", want[:], report.GetReportData()) },
		func() *attestation.Rejected { return judge.Number("VMPL", 0, uint64(report.GetVmpl())) },
		func() *attestation.Rejected { return judge.Forbidden("POLICY.DEBUG", e.policy.Debug) },
		func() *attestation.Rejected { return judge.Forbidden("POLICY.MIGRATE_MA", e.policy.MigrateMA) },
		func() *attestation.Rejected { return judge.Forbidden("POLICY.CXL_ALLOW", e.policy.CXLAllowed) },
		func() *attestation.Rejected { return judge.Forbidden("POLICY.SMT", e.policy.SMT && !ref.AllowSMT) },
		func() *attestation.Rejected {
			if abi := (ABIVersion{e.policy.ABIMajor, e.policy.ABIMinor}); abi.less(ref.MinimumABI) {
				return judge.Rejected("POLICY.ABI", "at least "+ref.MinimumABI.String(), abi.String())
			}
			return nil
		},
		func() *attestation.Rejected { return judge.PolicyHash("HOST_DATA", report.GetHostData()) },
		func() *attestation.Rejected { return in("CHIP_ID", ref.Chips, e.chip()) },
		func() *attestation.Rejected { return in("ID_KEY_DIGEST", ref.IDKeys, report.GetIdKeyDigest()) },
		func() *attestation.Rejected {
			if digest := report.GetAuthorKeyDigest(); e.signer.AuthorKeyEn == judge.AllZero(digest) {
				return judge.Rejected("AUTHOR_KEY_EN", "1 with an AUTHOR_KEY_DIGEST and 0 without",
					fmt.Sprintf("%t with %x", e.signer.AuthorKeyEn, digest))
			}
			return nil
		},
		func() *attestation.Rejected {
			return in("AUTHOR_KEY_DIGEST", ref.AuthorKeys, report.GetAuthorKeyDigest())
		},
		// Firmware that is not committed can be rolled back under the running guest.
		func() *attestation.Rejected {
			return judge.Number("COMMITTED_TCB", report.GetCurrentTcb(), report.GetCommittedTcb())
		},
		func() *attestation.Rejected {
			return judge.Number("COMMITTED_BUILD", uint64(report.GetCurrentBuild()), uint64(report.GetCommittedBuild()))
		},
		func() *attestation.Rejected {
			return judge.Number("COMMITTED_MAJOR", uint64(report.GetCurrentMajor()), uint64(report.GetCommittedMajor()))
		},
		func() *attestation.Rejected {
			return judge.Number("COMMITTED_MINOR", uint64(report.GetCurrentMinor()), uint64(report.GetCommittedMinor()))
		},
		func() *attestation.Rejected {
			return atMost("REPORTED_TCB", report.GetCurrentTcb(), report.GetReportedTcb())
		},
		func() *attestation.Rejected { return atLeast("REPORTED_TCB", ref.MinimumTCB, report.GetReportedTcb()) },
		func() *attestation.Rejected { return atLeast("LAUNCH_TCB", ref.MinimumTCB, report.GetLaunchTcb()) },
		func() *attestation.Rejected {
			return judge.Equal("MEASUREMENT", ref.Measurement[:], report.GetMeasurement())
		},
	}
}

// chip is the processor: by its VCEK, which need not be in the report, or by a report that a cloud's key signed.
func (e *evidence) chip() []byte {
	if e.Key == abi.VcekReportSigner && e.vouch != nil {
		return e.vouch.HWID
	}
	return e.Report.GetChipId()
}

// offline stands where the library would otherwise use the network.
type offline struct{}

func (offline) Get(string) ([]byte, error) {
	return nil, errors.New("the library may not use the network")
}

// chain lets the library verify signature and certificates up to root, once for each root. Of a chain that the library
// verified before, it verifies the signature alone.
func (e *evidence) chain(root *x509.Certificate, now time.Time) *attestation.Rejected {
	if r, done := e.chains[string(root.Raw)]; done {
		return r
	}
	var r *attestation.Rejected
	if err := e.verify(root, now); err != nil {
		r = e.blame(root, now, err)
	}
	e.chains[string(root.Raw)] = r
	return r
}

func (e *evidence) verify(root *x509.Certificate, now time.Time) error {
	if e.known.holds(root, now) {
		return verify.SnpProtoReportSignature(e.Report, e.ek)
	}
	trusted := trust.AMDRootCertsProduct(e.Product)
	trusted.ProductCerts = &trust.ProductCerts{Ark: root}
	if e.Key == abi.VlekReportSigner {
		trusted.ProductCerts.Asvk = e.signedBy
	} else {
		trusted.ProductCerts.Ask = e.signedBy
	}
	// Fresh options for each call: the library writes into them. Never without TrustedRoots or Now: it would choose its own.
	// CheckRevocations stays off: it looks for the ASK in the CRL only, takes one whose NextUpdate has passed, and has no
	// answer for a VLEK. Vendor.NotRevoked does all of this.
	return verify.SnpAttestation(e.attestation(), &verify.Options{
		DisableCertFetching: true,
		Getter:              offline{},
		Now:                 now,
		TrustedRoots:        map[string][]*trust.AMDRootCerts{e.Product: {trusted}},
	})
}

// blame finds out which part of what verify refused was wrong.
func (e *evidence) blame(root *x509.Certificate, now time.Time, err error) *attestation.Rejected {
	raw, rawErr := abi.ReportToAbiBytes(e.Report)
	if rawErr != nil {
		return judge.Rejected("REPORT", "an ATTESTATION_REPORT", rawErr.Error())
	}
	ek, signer := Names(e.Key)
	if err := verify.SnpReportSignature(raw, e.ek); err != nil {
		return judge.Rejected("SIGNATURE", "one of the "+ek, err.Error())
	}
	roots, signers := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(root)
	signers.AddCert(e.signedBy)
	if !e.signedBy.IsCA {
		return judge.Rejected("CHAIN."+signer, "a CA", "another certificate")
	}
	if _, err := e.signedBy.Verify(x509.VerifyOptions{Roots: roots, CurrentTime: now}); err != nil {
		return judge.Rejected("CHAIN."+signer, "one of "+root.Subject.CommonName, err.Error())
	}
	if _, err := e.ek.Verify(x509.VerifyOptions{Roots: roots, Intermediates: signers, CurrentTime: now}); err != nil {
		return judge.Rejected("CHAIN."+ek, "one of "+root.Subject.CommonName, err.Error())
	}
	return judge.Rejected("CHAIN", "what go-sev-guest verifies", err.Error())
}

// acceptable is the library's judgement of the report's fields: most of ours once more, and whatever it knows beyond.
func (e *evidence) acceptable(ref Reference, data attestation.ReportData) *attestation.Rejected {
	want := data.Bytes()
	vmpl := 0
	if err := validate.SnpAttestation(e.attestation(), &validate.Options{
		GuestPolicy: abi.SnpPolicy{
			SMT: ref.AllowSMT, ABIMajor: ref.MinimumABI.Major, ABIMinor: ref.MinimumABI.Minor,
		},
		ReportData:       want[:],
		Measurement:      ref.Measurement[:],
		MinimumTCB:       ref.MinimumTCB,
		MinimumLaunchTCB: ref.MinimumTCB,
		VMPL:             &vmpl,
	}); err != nil {
		return judge.Rejected("REPORT", "what go-sev-guest accepts", err.Error())
	}
	return nil
}

func (e *evidence) attestation() *spb.Attestation {
	return &spb.Attestation{Report: e.Report, CertificateChain: e.Table}
}

func in(field string, allowed Set, got []byte) *attestation.Rejected {
	if allowed.Has(got) {
		return nil
	}
	return judge.Rejected(field, allowed.String(), fmt.Sprintf("%x", got))
}

func atLeast(field string, minimum kds.TCBParts, got uint64) *attestation.Rejected {
	return compare(field, minimum, kds.DecomposeTCBVersion(kds.TCBVersion(got)),
		"at least", func(bound, got uint8) bool { return got >= bound })
}

func atMost(field string, maximum, got uint64) *attestation.Rejected {
	return compare(field, kds.DecomposeTCBVersion(kds.TCBVersion(maximum)), kds.DecomposeTCBVersion(kds.TCBVersion(got)),
		"at most", func(bound, got uint8) bool { return got <= bound })
}

// compare names the component of TCB_VERSION that is wrong.
func compare(
	field string, bound, got kds.TCBParts, how string, ok func(bound, got uint8) bool,
) *attestation.Rejected {
	for _, part := range []struct {
		name       string
		bound, got uint8
	}{
		{"BOOT_LOADER", bound.BlSpl, got.BlSpl},
		{"TEE", bound.TeeSpl, got.TeeSpl},
		{"SNP", bound.SnpSpl, got.SnpSpl},
		{"MICROCODE", bound.UcodeSpl, got.UcodeSpl},
	} {
		if !ok(part.bound, part.got) {
			return judge.Rejected(field+"."+part.name, fmt.Sprintf("%s %d", how, part.bound), fmt.Sprint(part.got))
		}
	}
	return nil
}
