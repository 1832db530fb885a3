// Package simtee is a pretended SEV-SNP processor, for tests and demonstrations. Nothing that is shipped imports it.
//
// A World stands for AMD and one of its chips: a root key (ARK), a signing key (ASK) and the chip's own endorsement key
// (VCEK), with certificates as AMD's key distribution service issues them (AMD document 57230), and beside them the key
// that AMD gives to a cloud (VLEK) and the one that certifies it (ASVK). A Machine stands for one guest on that chip: it
// was launched with a measurement, the host gave it host data, and it signs attestation reports that are real to the byte.
// A KDS answers in the place of AMD's key distribution service. What the real thing has and this one has not is
// protection: who has the world's folder can sign whatever he likes.
package simtee

import (
	"bytes"
	"cmp"
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
	"strings"
	"time"

	"github.com/google/go-sev-guest/abi"
	"github.com/google/go-sev-guest/kds"
	spb "github.com/google/go-sev-guest/proto/sevsnp"
	"github.com/google/go-sev-guest/testing/data"
	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"portcullis.dev/portcullis/attestation"
	"portcullis.dev/portcullis/attestation/simulated"
	"portcullis.dev/portcullis/attestation/snp"
)

// TCB is the firmware that the chip runs: boot loader 3, TEE 0, SNP 8, microcode 115, an ordinary Milan.
var TCB = kds.TCBParts{BlSpl: 3, TeeSpl: 0, SnpSpl: 8, UcodeSpl: 115}

// Keys are the private keys of a world. It may lack those of a cloud.
type Keys struct {
	ARK, ASK *rsa.PrivateKey   // 4096 bits
	VCEK     *ecdsa.PrivateKey // P-384
	ASVK     *rsa.PrivateKey   // 4096 bits
	VLEK     *ecdsa.PrivateKey // P-384
}

// NewKeys makes the keys of a world of its own, without a cloud. Two RSA keys of 4096 bits take some seconds.
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
	return Keys{
		ARK: data.ARKPrivateKey, ASK: data.ASKPrivateKey, VCEK: data.VCEKPrivateKey,
		ASVK: data.ASVKPrivateKey, VLEK: data.VLEKPrivateKey,
	}
}

// World is a root of trust and one chip under it.
type World struct {
	// Product is the processor line, Milan or Genoa.
	Product string
	Keys    Keys
	Certificates
}

// Certificates are those of a world: the root, two signing keys under it, and one endorsement key under each.
type Certificates struct {
	ARK, ASK, VCEK *x509.Certificate
	ASVK, VLEK     *x509.Certificate // nil without a cloud
}

// Alteration changes a certificate before it is signed, so that a test can make exactly one thing wrong.
type Alteration func(ark, ask, vcek *x509.Certificate)

// New makes a world of a Milan.
func New(keys Keys, alterations ...Alteration) (*World, error) {
	return NewProduct("Milan", keys, func(c *Certificates) {
		for _, alter := range alterations {
			alter(c.ARK, c.ASK, c.VCEK)
		}
	})
}

// NewProduct makes a world of a processor line. alter, which may be nil, changes certificates before they are signed.
func NewProduct(product string, keys Keys, alter func(*Certificates)) (*World, error) {
	templates := Certificates{
		ARK: arkTemplate(product), ASK: askTemplate(product), VCEK: vcekTemplate(product),
		ASVK: asvkTemplate(product), VLEK: vlekTemplate(product),
	}
	if alter != nil {
		alter(&templates)
	}
	w := &World{Product: product, Keys: keys}
	if err := errors.Join(
		certify(&w.ARK, templates.ARK, templates.ARK, keys.ARK, keys.ARK),
		certify(&w.ASK, templates.ASK, templates.ARK, keys.ASK, keys.ARK),
		certify(&w.VCEK, templates.VCEK, templates.ASK, keys.VCEK, keys.ASK),
	); err != nil {
		return nil, err
	}
	if keys.ASVK == nil {
		return w, nil
	}
	return w, errors.Join(
		certify(&w.ASVK, templates.ASVK, templates.ARK, keys.ASVK, keys.ARK),
		certify(&w.VLEK, templates.VLEK, templates.ASVK, keys.VLEK, keys.ASVK),
	)
}

func certify(to **x509.Certificate, template, parent *x509.Certificate, key, by crypto.Signer) error {
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), by)
	if err != nil {
		return fmt.Errorf("make %s: %w", template.Subject.CommonName, err)
	}
	if *to, err = x509.ParseCertificate(der); err != nil {
		return fmt.Errorf("make %s: %w", template.Subject.CommonName, err)
	}
	return nil
}

// RootPEM is the ARK as a manifest names it.
func (w *World) RootPEM() string {
	return string(encode(w.ARK))
}

// Reference is the reference value that accepts this world's machines of one measurement.
func (w *World) Reference(measurement Measurement) simulated.ReferenceValue {
	return simulated.ReferenceValue{
		RootCA:      w.RootPEM(),
		Measurement: measurement.String(),
		MinimumTCB:  minimumTCB(),
	}
}

// SNPReference is the reference value that would accept this world's machines of one measurement, signed by the VCEK, if
// the world were AMD's.
func (w *World) SNPReference(measurement Measurement) snp.ReferenceValue {
	return snp.ReferenceValue{
		Product:          w.Product,
		SigningKey:       "VCEK",
		Measurement:      measurement.String(),
		MinimumTCB:       minimumTCB(),
		MinimumABI:       snp.ABI{Major: new(0), Minor: new(0)},
		AllowSMT:         new(true),
		AllowedChipIDs:   []string{"any"},
		IDKeyDigests:     []string{"none"},
		AuthorKeyDigests: []string{"none"},
	}
}

func minimumTCB() snp.TCB {
	return snp.TCB{
		BootLoader: new(int(TCB.BlSpl)), TEE: new(int(TCB.TeeSpl)), SNP: new(int(TCB.SnpSpl)), Microcode: new(int(TCB.UcodeSpl)),
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
	// Platform is what the evidence says it is, Simulated unless set.
	Platform attestation.Platform
	// SignedBy is the kind of key that signs, the VCEK unless set.
	SignedBy abi.ReportSigner
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
	key := m.World.Keys.VCEK
	if m.SignedBy == abi.VlekReportSigner {
		key = m.World.Keys.VLEK
	}
	r, s, err := ecdsa.Sign(rand.Reader, key, digest[:])
	if err != nil {
		return attestation.Evidence{}, fmt.Errorf("sign the report: %w", err)
	}
	if err := abi.SetSignature(r, s, raw); err != nil {
		return attestation.Evidence{}, fmt.Errorf("sign the report: %w", err)
	}
	e := attestation.Evidence{
		Platform: cmp.Or(m.Platform, attestation.Simulated), Report: raw, Certificates: m.World.table(m.SignedBy),
	}
	if m.Corrupt != nil {
		m.Corrupt(&e)
	}
	return e, nil
}

// report is what firmware in good order fills in.
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
		SignerInfo:      abi.ComposeSignerInfo(abi.SignerInfo{SigningKey: m.SignedBy}),
		ReportData:      reportData[:],
		Measurement:     bytes.Clone(m.Measurement[:]),
		HostData:        bytes.Clone(m.HostData[:]),
		IdKeyDigest:     make([]byte, abi.IDKeyDigestSize),
		AuthorKeyDigest: make([]byte, abi.AuthorKeyDigestSize),
		ReportId:        id[:],
		ReportIdMa:      unset,
		ReportedTcb:     tcb,
		Cpuid1EaxFms:    processor[m.World.Product],
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

// processor is CPUID_1_EAX, stepping B1 (AMD document 57230, "Determining the Product Name").
var processor = map[string]uint32{
	"Milan": abi.FmsToCpuid1Eax(0x19, 0x01, 0x01),
	"Genoa": abi.FmsToCpuid1Eax(0x19, 0x11, 0x01),
}

var chipID = sha512.Sum512([]byte("the pretended chip"))

func (w *World) table(signedBy abi.ReportSigner) []byte {
	ek, signer := abi.CertTableEntry{GUID: uuid.MustParse(abi.VcekGUID), RawCert: w.VCEK.Raw}, w.ASK
	if signedBy == abi.VlekReportSigner {
		ek, signer = abi.CertTableEntry{GUID: uuid.MustParse(abi.VlekGUID), RawCert: w.VLEK.Raw}, w.ASVK
	}
	return Table(
		ek,
		abi.CertTableEntry{GUID: uuid.MustParse(abi.AskGUID), RawCert: signer.Raw},
		abi.CertTableEntry{GUID: uuid.MustParse(abi.ArkGUID), RawCert: w.ARK.Raw},
	)
}

// Table lays a certificate table out.
func Table(entries ...abi.CertTableEntry) []byte { return (&abi.CertTable{Entries: entries}).Marshal() }

// The certificates as in AMD document 57230, "Versioned Chip Endorsement Key (VCEK) Certificate and KDS Interface
// Specification", chapter 3.

func arkTemplate(product string) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber:          big.NewInt(0x010000),
		Subject:               amdName("ARK-" + product),
		NotBefore:             time.Now().Add(-24 * time.Hour),
		NotAfter:              time.Now().AddDate(25, 0, 0),
		SignatureAlgorithm:    x509.SHA384WithRSAPSS,
		BasicConstraintsValid: true,
		IsCA:                  true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		CRLDistributionPoints: []string{kds.CrlLinkByRole(product, "ARK")},
	}
}

func askTemplate(product string) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber:          big.NewInt(0x010001),
		Subject:               amdName("SEV-" + product),
		NotBefore:             time.Now().Add(-24 * time.Hour),
		NotAfter:              time.Now().AddDate(25, 0, 0),
		SignatureAlgorithm:    x509.SHA384WithRSAPSS,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
		KeyUsage:              x509.KeyUsageCertSign,
		CRLDistributionPoints: []string{kds.CrlLinkByRole(product, "ASK")},
	}
}

func asvkTemplate(product string) *x509.Certificate {
	template := askTemplate(product)
	template.SerialNumber = big.NewInt(0x010101)
	template.Subject = amdName("SEV-VLEK-" + product)
	template.CRLDistributionPoints = []string{kds.CrlLinkByRole(product, "ASVK")}
	return template
}

func vcekTemplate(product string) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber:       big.NewInt(0), // AMD gives all VCEKs the serial number 0
		Subject:            amdName("SEV-VCEK"),
		NotBefore:          time.Now().Add(-24 * time.Hour),
		NotAfter:           time.Now().AddDate(7, 0, 0),
		SignatureAlgorithm: x509.SHA384WithRSAPSS,
		ExtraExtensions:    endorsement(product+"-B1", chip(chipID[:]), TCB),
	}
}

func vlekTemplate(product string) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber:       big.NewInt(0x4711),
		Subject:            amdName("SEV-VLEK"),
		NotBefore:          time.Now().Add(-24 * time.Hour),
		NotAfter:           time.Now().AddDate(1, 0, 0),
		SignatureAlgorithm: x509.SHA384WithRSAPSS,
		ExtraExtensions:    VLEKExtensions(product, TCB),
	}
}

// VCEKExtensions are AMD's own: what a Milan's certificate vouches for.
func VCEKExtensions(tcb kds.TCBParts, chipID []byte) []pkix.Extension {
	return endorsement("Milan-B1", chip(chipID), tcb)
}

// VLEKExtensions are what the certificate of a cloud's key vouches for.
func VLEKExtensions(product string, tcb kds.TCBParts) []pkix.Extension {
	return endorsement(product, pkix.Extension{Id: kds.OidCspID, Value: ia5("cloud.test")}, tcb)
}

func chip(id []byte) pkix.Extension {
	return pkix.Extension{Id: kds.OidHwid, Value: id} // the bare octets, as AMD has them
}

func endorsement(product string, whose pkix.Extension, tcb kds.TCBParts) []pkix.Extension {
	extensions := []pkix.Extension{
		{Id: kds.OidStructVersion, Value: integer(1)},
		{Id: kds.OidProductName1, Value: ia5(product)},
		whose,
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

// Save writes the world, without its cloud, to a folder, which it makes if need be.
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
		if err := os.WriteFile(filepath.Join(dir, f.name), encode(f.certificate), 0o644); err != nil {
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
	w.Product = strings.TrimPrefix(w.ARK.Subject.CommonName, "ARK-")
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
