package snp

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/google/go-sev-guest/abi"
	"github.com/google/go-sev-guest/kds"

	"portcullis.dev/portcullis/attestation"
	"portcullis.dev/portcullis/attestation/internal/judge"
	"portcullis.dev/portcullis/attestation/internal/sevsnp"
)

// keyDistribution is AMD's key distribution service (AMD document 57230, "VCEK Certificate and KDS Interface
// Specification"), as a Getter reaches it. The library has a client of its own, which is not used: it remembers
// certificates for the whole process and takes an ASK for an ASVK when it asked for the other one first, and it looks for
// the ASK alone in a revocation list.
type keyDistribution struct {
	get attestation.Getter

	mu sync.Mutex
	// verified are the latest lists whose signature was verified, by their URL: one for a processor line and kind of key.
	verified map[string]verifiedList
}

type verifiedList struct {
	body []byte
	root *x509.Certificate
	list *x509.RevocationList
}

// maxList bounds a revocation list, in bytes. AMD's are below 2 KiB.
const maxList = 1 << 20

// Complete implements sevsnp.Vendor.
func (k *keyDistribution) Complete(ctx context.Context, e sevsnp.Evidence) error {
	ek, signer := sevsnp.Names(e.Key)
	noEK, noSigner := e.Missing()
	if noEK {
		chip := e.Report.GetChipId()
		switch {
		case e.Key != abi.VcekReportSigner:
			return judge.Rejected("CHAIN."+ek, "one in the certificate table: AMD gives it to its cloud alone", "none")
		case judge.AllZero(chip):
			return judge.Rejected("CHIP_ID", "a chip whose VCEK can be asked for, as the certificate table has none", "all zero")
		}
		body, err := k.fetch(ctx, "the VCEK of a "+e.Product,
			kds.VCEKCertURL(e.Product, chip, kds.TCBVersion(e.Report.GetReportedTcb())))
		if err != nil {
			return err
		}
		if len(body) == 0 || len(body) > sevsnp.MaxTable {
			return judge.Rejected("CHAIN."+ek, "a certificate", fmt.Sprintf("%d bytes", len(body)))
		}
		e.Table.VcekCert = body
	}
	if noSigner {
		body, err := k.fetch(ctx, "the "+signer+" of "+e.Product, kds.ProductCertChainURL(e.Key, e.Product))
		if err != nil {
			return err
		}
		if len(body) > sevsnp.MaxTable {
			return judge.Rejected("CHAIN."+signer, "two certificates", fmt.Sprintf("%d bytes", len(body)))
		}
		certificate, _, err := kds.ParseProductCertChain(body)
		if err != nil {
			return judge.Rejected("CHAIN."+signer, "two certificates in PEM", err.Error())
		}
		e.Table.AskCert = certificate
	}
	return nil
}

// NotRevoked implements sevsnp.Vendor. The list is the ARK's, so it names certificates that the ARK signed, itself among
// them. Those of VLEKs, which an ASVK signed, are looked up all the same; those of VCEKs cannot be, as all have the serial
// number 0: AMD revokes these by raising the TCB.
func (k *keyDistribution) NotRevoked(ctx context.Context, c sevsnp.Chain, now time.Time) error {
	list, err := k.list(ctx, c)
	if err != nil {
		return err
	}
	what := "a current CRL of " + c.Product
	switch {
	case now.Before(list.ThisUpdate):
		return &attestation.Unavailable{What: what, Err: fmt.Errorf("it begins to hold at %s", stamp(list.ThisUpdate))}
	case !now.Before(list.NextUpdate): // nor does a list hold that does not say until when
		return &attestation.Unavailable{What: what, Err: fmt.Errorf("the latest held until %s", stamp(list.NextUpdate))}
	}
	type named struct {
		name string
		*x509.Certificate
	}
	ek, signer := sevsnp.Names(c.Key)
	chain := []named{{"ARK", c.Root}, {signer, c.Signer}}
	if c.Key == abi.VlekReportSigner {
		chain = append(chain, named{ek, c.EndorsementKey})
	}
	for _, certificate := range chain {
		for _, revoked := range list.RevokedCertificateEntries {
			if revoked.SerialNumber.Cmp(certificate.SerialNumber) == 0 {
				return judge.Rejected("CHAIN."+certificate.name, "a certificate that is not revoked",
					fmt.Sprintf("serial number %v, revoked at %s", revoked.SerialNumber, stamp(revoked.RevocationTime)))
			}
		}
	}
	return nil
}

// list gets the revocation list that is in charge of c and makes sure that c's root signed it. A list that it has seen
// before, to the byte, has been verified before.
func (k *keyDistribution) list(ctx context.Context, c sevsnp.Chain) (*x509.RevocationList, error) {
	url := kds.CrlLinkByKey(c.Product, c.Key)
	body, err := k.fetch(ctx, "the CRL of "+c.Product, url)
	if err != nil {
		return nil, err
	}
	k.mu.Lock()
	known, ok := k.verified[url]
	k.mu.Unlock()
	if ok && known.root == c.Root && bytes.Equal(known.body, body) {
		return known.list, nil
	}
	list, r := verifyList(body, c.Root)
	if r != nil {
		return nil, r
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.verified == nil {
		k.verified = make(map[string]verifiedList)
	}
	k.verified[url] = verifiedList{body: bytes.Clone(body), root: c.Root, list: list}
	return list, nil
}

func verifyList(body []byte, root *x509.Certificate) (*x509.RevocationList, *attestation.Rejected) {
	if len(body) > maxList {
		return nil, judge.Rejected("CRL", fmt.Sprintf("at most %d bytes", maxList), fmt.Sprintf("%d bytes", len(body)))
	}
	list, err := x509.ParseRevocationList(body)
	if err != nil {
		return nil, judge.Rejected("CRL", "a revocation list", err.Error())
	}
	if !bytes.Equal(list.RawIssuer, root.RawSubject) {
		return nil, judge.Rejected("CRL", "one of "+root.Subject.CommonName, "one of "+list.Issuer.CommonName)
	}
	if err := list.CheckSignatureFrom(root); err != nil {
		return nil, judge.Rejected("CRL", "one that "+root.Subject.CommonName+" signed", err.Error())
	}
	for _, extension := range list.Extensions {
		if extension.Critical { // RFC 5280, section 5.2: who does not understand it must not use the list
			return nil, judge.Rejected("CRL", "one without critical extensions", extension.Id.String())
		}
	}
	return list, nil
}

func (k *keyDistribution) fetch(ctx context.Context, what, url string) ([]byte, error) {
	_, body, err := k.get.Get(ctx, url)
	if err == nil {
		return body, nil
	}
	if u, ok := errors.AsType[*attestation.Unavailable](err); ok && u.Err != nil {
		err = u.Err // What says more than the URL that the Getter knows
	}
	return nil, &attestation.Unavailable{What: what, Err: err}
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }
