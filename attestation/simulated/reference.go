package simulated

import (
	"bytes"
	"crypto/rsa"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"

	"github.com/google/go-sev-guest/abi"
	"github.com/google/go-sev-guest/kds"
)

// ReferenceValue is what evidence is compared with, as it stands in a manifest. Every field must be written down:
// what is missing is a fault, never a check left out.
type ReferenceValue struct {
	// RootCA is the pretended AMD root key's certificate (ARK) in PEM. Its common name, ARK-Milan or ARK-Genoa, says
	// which processors it vouches for.
	RootCA string
	// Measurement is the launch measurement: 96 lower-case hexadecimal digits.
	Measurement string
	// MinimumTCB bounds REPORTED_TCB and LAUNCH_TCB from below, component by component.
	MinimumTCB TCB
}

// TCB is the components of TCB_VERSION (AMD SEV-SNP ABI specification, table "TCB_VERSION"), each 0 to 127, and to 255
// for Microcode. Zero may be written; it may not be left out.
type TCB struct {
	BootLoader *int
	TEE        *int
	SNP        *int
	Microcode  *int
}

// Validate lists every fault, each as "Field: what is wrong and what would be right". None means that the value is usable.
func (r ReferenceValue) Validate() []string {
	_, faults := r.parse()
	return faults
}

// reference is a ReferenceValue that cannot hold a wrong value.
type reference struct {
	root        *x509.Certificate
	product     string // Milan or Genoa
	measurement [abi.MeasurementSize]byte
	minimum     kds.TCBParts
}

func (r ReferenceValue) parse() (reference, []string) {
	var (
		ref    reference
		faults []string
		err    error
	)
	if ref.root, ref.product, err = parseRoot(r.RootCA); err != nil {
		faults = append(faults, fmt.Sprintf("RootCA: %v", err))
	}
	if ref.measurement, err = parseMeasurement(r.Measurement); err != nil {
		faults = append(faults, fmt.Sprintf("Measurement: %v", err))
	}
	for _, part := range []struct {
		name  string
		value *int
		most  int
		to    *uint8
	}{
		{"BootLoader", r.MinimumTCB.BootLoader, 127, &ref.minimum.BlSpl},
		{"TEE", r.MinimumTCB.TEE, 127, &ref.minimum.TeeSpl},
		{"SNP", r.MinimumTCB.SNP, 127, &ref.minimum.SnpSpl},
		{"Microcode", r.MinimumTCB.Microcode, 255, &ref.minimum.UcodeSpl},
	} {
		switch {
		case part.value == nil:
			faults = append(faults, fmt.Sprintf("MinimumTCB.%s: is missing, want 0 to %d", part.name, part.most))
		case *part.value < 0 || *part.value > part.most:
			faults = append(faults, fmt.Sprintf("MinimumTCB.%s: is %d, want 0 to %d", part.name, *part.value, part.most))
		default:
			*part.to = uint8(*part.value)
		}
	}
	return ref, faults
}

func parseRoot(text string) (*x509.Certificate, string, error) {
	if text == "" {
		return nil, "", errors.New("is missing, want one certificate in PEM")
	}
	trimmed := bytes.TrimSpace([]byte(text))
	block, rest := pem.Decode(trimmed)
	if block == nil || block.Type != "CERTIFICATE" || len(block.Headers) > 0 || len(bytes.TrimSpace(rest)) > 0 ||
		!bytes.HasPrefix(trimmed, []byte("-----BEGIN CERTIFICATE-----")) {
		return nil, "", errors.New("is not one certificate in PEM and nothing else")
	}
	root, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, "", fmt.Errorf("is not a certificate: %w", err)
	}
	if _, ok := root.PublicKey.(*rsa.PublicKey); !ok || root.SignatureAlgorithm != x509.SHA384WithRSAPSS {
		return nil, "", errors.New("is not an AMD root key: want RSA, signed with RSASSA-PSS and SHA-384")
	}
	if err := root.CheckSignatureFrom(root); err != nil {
		return nil, "", fmt.Errorf("is not self-signed: %w", err)
	}
	product := strings.TrimPrefix(root.Subject.CommonName, "ARK-")
	if product != "Milan" && product != "Genoa" || product == root.Subject.CommonName {
		return nil, "", fmt.Errorf("has the common name %q, want ARK-Milan or ARK-Genoa", root.Subject.CommonName)
	}
	return root, product, nil
}

func parseMeasurement(s string) (m [abi.MeasurementSize]byte, err error) {
	if s == "" {
		return m, fmt.Errorf("is missing, want %d lower-case hexadecimal digits", 2*len(m))
	}
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != len(m) || hex.EncodeToString(b) != s {
		return m, fmt.Errorf("%q is not %d lower-case hexadecimal digits", s, 2*len(m))
	}
	if m = [abi.MeasurementSize]byte(b); m == [abi.MeasurementSize]byte{} {
		return m, errors.New("is all zero")
	}
	return m, nil
}
