// Package simtee is a pretended SEV-SNP processor, for tests and demonstrations. Nothing that is shipped imports it.
//
// A World stands for AMD and one of its chips: a root key (ARK), a signing key (ASK) and the chip's own endorsement key
// (VCEK), with certificates as AMD's key distribution service issues them (AMD document 57230). A Machine stands for one
// guest on that chip: it was launched with a measurement, the host gave it host data, and it signs attestation reports
// that are real to the byte. What the real thing has and this one has not is protection: who has the world's folder can
// sign whatever he likes.
package simtee

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"time"

	"github.com/google/go-sev-guest/abi"
	"github.com/google/go-sev-guest/kds"
	spb "github.com/google/go-sev-guest/proto/sevsnp"
	"github.com/google/go-sev-guest/testing/data"
	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"portcullis.dev/portcullis/attestation"
	"portcullis.dev/portcullis/attestation/simulated"
)

// TCB is the firmware that the chip runs: boot loader 3, TEE 0, SNP 8, microcode 115, an ordinary Milan.
var TCB = kds.TCBParts{BlSpl: 3, TeeSpl: 0, SnpSpl: 8, UcodeSpl: 115}

// Keys are the three private keys of a world.
type Keys struct {
	ARK, ASK *rsa.PrivateKey   // 4096 bits
	VCEK     *ecdsa.PrivateKey // P-384
}

// NewKeys makes the keys of a world of its own. Two RSA keys of 4096 bits take some seconds.
func NewKeys() (Keys, error) {
	var (
		k     Keys
		group errgroup.Group
	)
	for _, to := range []**rsa.PrivateKey{&k.ARK, &k.ASK} {
		group.Go(func() (err error) {
			*to, err = rsa.GenerateKey(rand.Reader, 4096)
			return err
		})
	}
	group.Go(func() (err error) {
		k.VCEK, err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
		return err
	})
	if err := group.Wait(); err != nil {
		return Keys{}, fmt.Errorf("make the keys of a world: %w", err)
	}
	return k, nil
}

// PublishedKeys are in go-sev-guest's source for anyone to read. For tests that cannot wait for NewKeys.
func PublishedKeys() Keys {
	return Keys{ARK: data.ARKPrivateKey, ASK: data.ASKPrivateKey, VCEK: data.VCEKPrivateKey}
}

// World is a root of trust and one chip under it.
type World struct {
	Keys           Keys
	ARK, ASK, VCEK *x509.Certificate
}

// Alteration changes a certificate before it is signed, so that a test can make exactly one thing wrong.
type Alteration func(ark, ask, vcek *x509.Certificate)

// New makes a world.
func New(keys Keys, alterations ...Alteration) (*World, error) {
	ark, ask, vcek := arkTemplate(), askTemplate(), vcekTemplate()
	for _, alter := range alterations {
		alter(ark, ask, vcek)
	}
	w := &World{Keys: keys}
	for _, c := range []struct {
		name             string
		template, parent *x509.Certificate
		pub              any
		key              crypto.Signer
		to               **x509.Certificate
	}{
		{"ARK", ark, ark, keys.ARK.Public(), keys.ARK, &w.ARK},
		{"ASK", ask, ark, keys.ASK.Public(), keys.ARK, &w.ASK},
		{"VCEK", vcek, ask, keys.VCEK.Public(), keys.ASK, &w.VCEK},
	} {
		der, err := x509.CreateCertificate(rand.Reader, c.template, c.parent, c.pub, c.key)
		if err != nil {
			return nil, fmt.Errorf("make the %s: %w", c.name, err)
		}
		if *c.to, err = x509.ParseCertificate(der); err != nil {
			return nil, fmt.Errorf("make the %s: %w", c.name, err)
		}
	}
	return w, nil
}

// RootPEM is the ARK as a manifest names it.
func (w *World) RootPEM() string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: w.ARK.Raw}))
}

// Reference is the reference value that accepts this world's machines of one measurement.
func (w *World) Reference(measurement Measurement) simulated.ReferenceValue {
	part := func(v uint8) *int { n := int(v); return &n }
	return simulated.ReferenceValue{
		RootCA:      w.RootPEM(),
		Measurement: measurement.String(),
		MinimumTCB: simulated.TCB{
			BootLoader: part(TCB.BlSpl), TEE: part(TCB.TeeSpl), SNP: part(TCB.SnpSpl), Microcode: part(TCB.UcodeSpl),
		},
	}
}

// Measurement is a launch measurement.
type Measurement [abi.MeasurementSize]byte

// ParseMeasurement reads 96 hexadecimal digits.
func ParseMeasurement(s string) (Measurement, error) {
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != abi.MeasurementSize {
		return Measurement{}, fmt.Errorf("measurement %q is not %d hexadecimal digits", s, 2*abi.MeasurementSize)
	}
	return Measurement(b), nil
}

// String returns 96 lower-case hexadecimal digits.
func (m Measurement) String() string { return hex.EncodeToString(m[:]) }

// Machine is one guest. It is an attestation.Issuer.
type Machine struct {
	World       *World
	Measurement Measurement
	HostData    [abi.HostDataSize]byte
	// Alter changes the report before it is signed, Corrupt the finished evidence. Either may be nil.
	Alter   func(*spb.Report)
	Corrupt func(*attestation.Evidence)
}

// Machine launches a guest.
func (w *World) Machine(measurement Measurement, hostData [32]byte) *Machine {
	return &Machine{World: w, Measurement: measurement, HostData: hostData}
}

// Issue signs a report, and attaches the certificate table that the host would.
func (m *Machine) Issue(_ context.Context, reportData attestation.ReportData) (attestation.Evidence, error) {
	if !reportData.Valid() {
		return attestation.Evidence{}, errors.New("issue evidence: the report data is empty")
	}
	report := m.report(reportData.Bytes())
	if m.Alter != nil {
		m.Alter(report)
	}
	raw, err := abi.ReportToAbiBytes(report)
	if err != nil {
		return attestation.Evidence{}, fmt.Errorf("lay the report out: %w", err)
	}
	digest := sha512.Sum384(abi.SignedComponent(raw))
	r, s, err := ecdsa.Sign(rand.Reader, m.World.Keys.VCEK, digest[:])
	if err != nil {
		return attestation.Evidence{}, fmt.Errorf("sign the report: %w", err)
	}
	if err := abi.SetSignature(r, s, raw); err != nil {
		return attestation.Evidence{}, fmt.Errorf("sign the report: %w", err)
	}
	e := attestation.Evidence{Platform: attestation.Simulated, Report: raw, Certificates: m.World.table()}
	if m.Corrupt != nil {
		m.Corrupt(&e)
	}
	return e, nil
}

// report is what the firmware of a Milan in good order fills in.
func (m *Machine) report(reportData [abi.ReportDataSize]byte) *spb.Report {
	tcb := mustCompose(TCB)
	id := sha256.Sum256(append(m.Measurement[:], m.HostData[:]...)) // the same for all reports of one guest
	unset := make([]byte, abi.ReportIDMASize)                       // no migration agent
	for i := range unset {
		unset[i] = 0xff
	}
	return &spb.Report{
		Version:         abi.ReportVersion3,
		Policy:          abi.SnpPolicyToBytes(abi.SnpPolicy{SMT: true}),
		FamilyId:        make([]byte, abi.FamilyIDSize),
		ImageId:         make([]byte, abi.ImageIDSize),
		Vmpl:            0,
		SignatureAlgo:   abi.SignEcdsaP384Sha384,
		CurrentTcb:      tcb,
		PlatformInfo:    1, // SMT_EN
		SignerInfo:      abi.ComposeSignerInfo(abi.SignerInfo{SigningKey: abi.VcekReportSigner}),
		ReportData:      reportData[:],
		Measurement:     bytes.Clone(m.Measurement[:]),
		HostData:        bytes.Clone(m.HostData[:]),
		IdKeyDigest:     make([]byte, abi.IDKeyDigestSize),
		AuthorKeyDigest: make([]byte, abi.AuthorKeyDigestSize),
		ReportId:        id[:],
		ReportIdMa:      unset,
		ReportedTcb:     tcb,
		Cpuid1EaxFms:    abi.FmsToCpuid1Eax(0x19, 0x01, 0x01), // Milan-B1
		ChipId:          bytes.Clone(chipID[:]),
		CommittedTcb:    tcb,
		CurrentBuild:    21,
		CurrentMinor:    55,
		CurrentMajor:    1,
		CommittedBuild:  21,
		CommittedMinor:  55,
		CommittedMajor:  1,
		LaunchTcb:       tcb,
		Signature:       make([]byte, abi.SignatureSize),
	}
}

var chipID = sha512.Sum512([]byte("the pretended chip"))

func (w *World) table() []byte {
	return Table(
		abi.CertTableEntry{GUID: uuid.MustParse(abi.VcekGUID), RawCert: w.VCEK.Raw},
		abi.CertTableEntry{GUID: uuid.MustParse(abi.AskGUID), RawCert: w.ASK.Raw},
		abi.CertTableEntry{GUID: uuid.MustParse(abi.ArkGUID), RawCert: w.ARK.Raw},
	)
}

// Table lays a certificate table out.
func Table(entries ...abi.CertTableEntry) []byte { return (&abi.CertTable{Entries: entries}).Marshal() }

// The certificates as in AMD document 57230, "Versioned Chip Endorsement Key (VCEK) Certificate and KDS Interface
// Specification", chapter 3.

func arkTemplate() *x509.Certificate {
	return &x509.Certificate{
		SerialNumber:          big.NewInt(0x010000),
		Subject:               amdName("ARK-Milan"),
		NotBefore:             time.Now().Add(-24 * time.Hour),
		NotAfter:              time.Now().AddDate(25, 0, 0),
		SignatureAlgorithm:    x509.SHA384WithRSAPSS,
		BasicConstraintsValid: true,
		IsCA:                  true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		CRLDistributionPoints: []string{kds.CrlLinkByRole("Milan", "ARK")},
	}
}

func askTemplate() *x509.Certificate {
	return &x509.Certificate{
		SerialNumber:          big.NewInt(0x010001),
		Subject:               amdName("SEV-Milan"),
		NotBefore:             time.Now().Add(-24 * time.Hour),
		NotAfter:              time.Now().AddDate(25, 0, 0),
		SignatureAlgorithm:    x509.SHA384WithRSAPSS,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
		KeyUsage:              x509.KeyUsageCertSign,
		CRLDistributionPoints: []string{kds.CrlLinkByRole("Milan", "ASK")},
	}
}

func vcekTemplate() *x509.Certificate {
	return &x509.Certificate{
		SerialNumber:       big.NewInt(0), // AMD gives all VCEKs the serial number 0
		Subject:            amdName("SEV-VCEK"),
		NotBefore:          time.Now().Add(-24 * time.Hour),
		NotAfter:           time.Now().AddDate(7, 0, 0),
		SignatureAlgorithm: x509.SHA384WithRSAPSS,
		ExtraExtensions:    VCEKExtensions(TCB, chipID[:]),
	}
}

// VCEKExtensions are AMD's own: what the certificate vouches for.
func VCEKExtensions(tcb kds.TCBParts, chip []byte) []pkix.Extension {
	extensions := []pkix.Extension{
		{Id: kds.OidStructVersion, Value: integer(1)},
		{Id: kds.OidProductName1, Value: ia5("Milan-B1")},
		{Id: kds.OidHwid, Value: chip}, // the bare octets, as AMD has them
	}
	for _, part := range []struct {
		id    asn1.ObjectIdentifier
		value uint8
	}{
		{kds.OidBlSpl, tcb.BlSpl},
		{kds.OidTeeSpl, tcb.TeeSpl},
		{kds.OidSnpSpl, tcb.SnpSpl},
		{kds.OidSpl4, tcb.Spl4},
		{kds.OidSpl5, tcb.Spl5},
		{kds.OidSpl6, tcb.Spl6},
		{kds.OidSpl7, tcb.Spl7},
		{kds.OidUcodeSpl, tcb.UcodeSpl},
	} {
		extensions = append(extensions, pkix.Extension{Id: part.id, Value: integer(part.value)})
	}
	return extensions
}

func amdName(commonName string) pkix.Name {
	return pkix.Name{
		Organization:       []string{"Advanced Micro Devices"},
		Country:            []string{"US"},
		OrganizationalUnit: []string{"Engineering"},
		Locality:           []string{"Santa Clara"},
		Province:           []string{"CA"},
		CommonName:         commonName,
	}
}

func integer(v uint8) []byte {
	b, err := asn1.Marshal(int(v))
	if err != nil {
		panic(err) // an int always marshals
	}
	return b
}

func ia5(s string) []byte {
	b, err := asn1.MarshalWithParams(s, "ia5")
	if err != nil {
		panic(err) // an ASCII literal always marshals
	}
	return b
}

func mustCompose(parts kds.TCBParts) uint64 {
	v, err := kds.ComposeTCBParts(parts)
	if err != nil {
		panic(err) // the caller's numbers are literals
	}
	return uint64(v)
}

// The files of a world's folder.
const (
	rootFile = "root.pem" // what a manifest names
	askFile  = "ask.pem"
	vcekFile = "vcek.pem"
	keyFile  = ".key"
)

// Save writes the world to a folder, which it makes if need be.
func (w *World) Save(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("save the world: %w", err)
	}
	for _, f := range []struct {
		name        string
		certificate *x509.Certificate
		key         any
	}{
		{rootFile, w.ARK, w.Keys.ARK},
		{askFile, w.ASK, w.Keys.ASK},
		{vcekFile, w.VCEK, w.Keys.VCEK},
	} {
		der, err := x509.MarshalPKCS8PrivateKey(f.key)
		if err != nil {
			return fmt.Errorf("save the world: %w", err)
		}
		key := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
		if err := os.WriteFile(filepath.Join(dir, f.name+keyFile), key, 0o600); err != nil {
			return fmt.Errorf("save the world: %w", err)
		}
		certificate := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: f.certificate.Raw})
		if err := os.WriteFile(filepath.Join(dir, f.name), certificate, 0o644); err != nil {
			return fmt.Errorf("save the world: %w", err)
		}
	}
	return nil
}

// Load reads what Save wrote.
func Load(dir string) (*World, error) {
	w := &World{}
	for _, f := range []struct {
		name        string
		certificate **x509.Certificate
		key         func(any) bool
	}{
		{rootFile, &w.ARK, func(k any) (ok bool) { w.Keys.ARK, ok = k.(*rsa.PrivateKey); return ok }},
		{askFile, &w.ASK, func(k any) (ok bool) { w.Keys.ASK, ok = k.(*rsa.PrivateKey); return ok }},
		{vcekFile, &w.VCEK, func(k any) (ok bool) { w.Keys.VCEK, ok = k.(*ecdsa.PrivateKey); return ok }},
	} {
		der, err := readPEM(filepath.Join(dir, f.name))
		if err != nil {
			return nil, err
		}
		if *f.certificate, err = x509.ParseCertificate(der); err != nil {
			return nil, fmt.Errorf("load the world: %s: %w", f.name, err)
		}
		if der, err = readPEM(filepath.Join(dir, f.name+keyFile)); err != nil {
			return nil, err
		}
		key, err := x509.ParsePKCS8PrivateKey(der)
		if err != nil {
			return nil, fmt.Errorf("load the world: %s: %w", f.name+keyFile, err)
		}
		if !f.key(key) {
			return nil, fmt.Errorf("load the world: %s: a %T is the wrong kind of key", f.name+keyFile, key)
		}
	}
	return w, nil
}

func readPEM(path string) ([]byte, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("load the world: %w", err)
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, fmt.Errorf("load the world: %s is not PEM", path)
	}
	return block.Bytes, nil
}
