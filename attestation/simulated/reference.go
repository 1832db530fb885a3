package simulated

import (
	"bytes"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/google/go-sev-guest/abi"

	"portcullis.dev/portcullis/attestation/internal/sevsnp"
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

// TCB is the components of TCB_VERSION.
type TCB = sevsnp.TCB

// Validate lists every fault, each as "Field: what is wrong and what would be right". None means that the value is usable.
func (r ReferenceValue) Validate() []string {
	_, faults := r.parse()
	return faults
}

// parse leaves to the operator what AMD's platform lets an owner choose: any chip, threads of one core in different guests
// as every cloud has it, and no ID block.
func (r ReferenceValue) parse() (sevsnp.Reference, []string) {
	var (
		faults []string
		err    error
	)
	ref := sevsnp.Reference{
		SigningKey: abi.VcekReportSigner,
		AllowSMT:   true,
		Chips:      sevsnp.Any,
		IDKeys:     sevsnp.None(abi.IDKeyDigestSize),
		AuthorKeys: sevsnp.None(abi.AuthorKeyDigestSize),
	}
	if ref.Root, ref.Product, err = parseRoot(r.RootCA); err != nil {
		faults = append(faults, fmt.Sprintf("RootCA: %v", err))
	}
	if ref.Measurement, err = sevsnp.ParseMeasurement(r.Measurement); err != nil {
		faults = append(faults, fmt.Sprintf("Measurement: %v", err))
	}
	minimum, tcbFaults := r.MinimumTCB.Parse()
	ref.MinimumTCB = minimum
	for _, fault := range tcbFaults {
		faults = append(faults, "MinimumTCB"+fault)
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
	product, ok := strings.CutPrefix(root.Subject.CommonName, "ARK-")
	if !ok || !slices.Contains(sevsnp.Products, product) {
		return nil, "", fmt.Errorf("has the common name %q, want ARK-Milan or ARK-Genoa", root.Subject.CommonName)
	}
	return root, product, nil
}
