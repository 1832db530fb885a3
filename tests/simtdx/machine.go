package simtdx

import (
	"context"
	"crypto/ecdsa"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"

	"portcullis.dev/portcullis/attestation"
	"portcullis.dev/portcullis/attestation/tdx"
)

// qeSigner is MRSIGNER of Intel's quoting enclaves, here and in reality.
var qeSigner = [32]byte{
	0xdc, 0x9e, 0x2a, 0x7c, 0x6f, 0x94, 0x8f, 0x17, 0x47, 0x4e, 0x34, 0xa7, 0xfc, 0x43, 0xed, 0x03,
	0x0f, 0x7c, 0x15, 0x63, 0xf1, 0xba, 0xbd, 0xdf, 0x63, 0x40, 0xc8, 0x2e, 0x0e, 0x54, 0xa8, 0xc5,
}

// Quote is a TD quote of version 4, in the order of its bytes (Intel TDX DCAP quoting library API, appendix 3). Numbers
// are little-endian.
type Quote struct {
	Header         Header
	TD             TD
	Signature      []byte // 64, of the attestation key over Header and TD
	AttestationKey []byte // 64
	DataType       uint16 // 6
	QE             QEReport
	QESignature    []byte // 64, of the PCK over QE
	AuthData       []byte
	ChainType      uint16 // 5
	Chain          []byte // PEM
	Padding        []byte
}

// Header is the quote header.
type Header struct {
	Version            uint16
	AttestationKeyType uint16
	TEEType            uint32
	Reserved           [4]byte
	QEVendorID         [16]byte
	UserData           [20]byte
}

// TD is the TD quote body.
type TD struct {
	TEETCBSVN      [16]byte
	MRSEAM         [48]byte
	MRSignerSEAM   [48]byte
	SEAMAttributes [8]byte
	TDAttributes   uint64
	XFAM           uint64
	MRTD           [48]byte
	MRConfigID     [48]byte
	MROwner        [48]byte
	MROwnerConfig  [48]byte
	RTMRs          [4][48]byte
	ReportData     [64]byte
}

// QEReport is the quoting enclave's REPORT.
type QEReport struct {
	CPUSVN     [16]byte
	MiscSelect uint32
	_          [28]byte
	Attributes [16]byte
	MREnclave  [32]byte
	_          [32]byte
	MRSigner   [32]byte
	_          [96]byte
	ISVProdID  uint16
	ISVSVN     uint16
	_          [60]byte
	ReportData [64]byte
}

// Bytes lays the quote out.
func (q *Quote) Bytes() []byte {
	certification := append(lay(q.QE), q.QESignature...)
	certification = append(lay(certification, uint16(len(q.AuthData))), q.AuthData...)
	certification = append(lay(certification, q.ChainType, uint32(len(q.Chain))), q.Chain...)

	data := append(append([]byte{}, q.Signature...), q.AttestationKey...)
	data = append(lay(data, q.DataType, uint32(len(certification))), certification...)

	return append(append(lay(q.Header, q.TD, uint32(len(data))), data...), q.Padding...)
}

// Sign signs header and TD report, as the attestation key does.
func (q *Quote) Sign(key *ecdsa.PrivateKey) (err error) {
	q.Signature, err = sign(key, lay(q.Header, q.TD))
	return err
}

// Bind puts the attestation key into the QE report, which it signs as the PCK does.
func (q *Quote) Bind(key *ecdsa.PrivateKey) (err error) {
	bound := sha256.Sum256(append(append([]byte{}, q.AttestationKey...), q.AuthData...))
	q.QE.ReportData = [64]byte{}
	copy(q.QE.ReportData[:], bound[:])
	q.QESignature, err = sign(key, lay(q.QE))
	return err
}

func lay(parts ...any) []byte {
	var b []byte
	for _, p := range parts {
		var err error
		if b, err = binary.Append(b, binary.LittleEndian, p); err != nil {
			panic(err) // all parts have a fixed size
		}
	}
	return b
}

// Machine is one TD. It is an attestation.Issuer.
type Machine struct {
	World *World
	// TD and QE are what the TDX module and the quoting enclave report. Report data is filled in.
	TD TD
	QE QEReport
	// Alter changes the quote before anything in it is signed or bound, Spoil after that, Corrupt the finished evidence.
	// Any may be nil.
	Alter   func(*Quote)
	Spoil   func(*Quote)
	Corrupt func(*attestation.Evidence)
}

// Machine launches a TD under a policy, with firmware, configuration and kernel measured as 0x10, 0x20 and so on.
func (w *World) Machine(policy attestation.PolicyHash) *Machine {
	m := &Machine{World: w}
	m.TD = TD{
		TEETCBSVN:    [16]byte{4, 1, 7}, // a TDX module of version 1.5
		MRSEAM:       [48]byte(repeat(0x10, 48)),
		TDAttributes: 1 << 28, // SEPT_VE_DISABLE
		XFAM:         0x602e7,
		MRTD:         [48]byte(repeat(0x20, 48)),
		RTMRs:        [4][48]byte{[48]byte(repeat(0x30, 48)), [48]byte(repeat(0x31, 48)), [48]byte(repeat(0x32, 48))},
	}
	copy(m.TD.MRConfigID[:], policy[:])
	m.QE = QEReport{
		CPUSVN: w.Plan.Platform.TCBComponents, Attributes: [16]byte{0x15, 0, 0, 0, 0, 0, 0, 0, 0xe7},
		MREnclave: [32]byte(repeat(0x40, 32)), MRSigner: qeSigner, ISVProdID: 2, ISVSVN: 4,
	}
	return m
}

// Reference is the reference value that accepts this machine.
func (m *Machine) Reference() tdx.ReferenceValue {
	zero := 0
	return tdx.ReferenceValue{
		MRTD:   hex.EncodeToString(m.TD.MRTD[:]),
		RTMR0:  hex.EncodeToString(m.TD.RTMRs[0][:]),
		RTMR1:  hex.EncodeToString(m.TD.RTMRs[1][:]),
		RTMR2:  hex.EncodeToString(m.TD.RTMRs[2][:]),
		RTMR3:  hex.EncodeToString(m.TD.RTMRs[3][:]),
		MRSEAM: []string{hex.EncodeToString(m.TD.MRSEAM[:])},
		XFAM:   hex.EncodeToString(lay(m.TD.XFAM)),
		MinimumTCB: tdx.TCB{
			TEETCBSVN: hex.EncodeToString(make([]byte, 16)), QESVN: &zero, PCESVN: &zero,
		},
		AcceptedTCBStatuses: []string{"UpToDate"},
	}
}

// Issue makes a quote.
func (m *Machine) Issue(_ context.Context, data attestation.ReportData) (attestation.Evidence, error) {
	if !data.Valid() {
		return attestation.Evidence{}, errors.New("issue evidence: the report data is empty")
	}
	keys := m.World.Plan.Keys
	public, err := keys.Attestation.PublicKey.Bytes()
	if err != nil {
		return attestation.Evidence{}, fmt.Errorf("issue evidence: %w", err)
	}
	q := &Quote{
		Header: Header{
			Version: 4, AttestationKeyType: 2, TEEType: 0x81, QEVendorID: [16]byte{
				0x93, 0x9a, 0x72, 0x33, 0xf7, 0x9c, 0x4c, 0xa9, 0x94, 0x0a, 0x0d, 0xb3, 0x95, 0x7f, 0x06, 0x07,
			},
		},
		TD:             m.TD,
		AttestationKey: public[1:], // behind the byte that says "uncompressed"
		DataType:       6,
		QE:             m.QE,
		AuthData:       repeat(0x50, 32),
		ChainType:      5,
		Chain:          append(PEM(m.World.PCK, m.World.CA, m.World.Root), 0), // a C string
	}
	q.TD.ReportData = data.Bytes()
	if m.Alter != nil {
		m.Alter(q)
	}
	if err := q.Bind(keys.PCK); err != nil {
		return attestation.Evidence{}, fmt.Errorf("sign the QE report: %w", err)
	}
	if err := q.Sign(keys.Attestation); err != nil {
		return attestation.Evidence{}, fmt.Errorf("sign the TD report: %w", err)
	}
	if m.Spoil != nil {
		m.Spoil(q)
	}
	e := attestation.Evidence{Platform: attestation.TDX, Report: q.Bytes()}
	if m.Corrupt != nil {
		m.Corrupt(&e)
	}
	return e, nil
}
