package simtee

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/google/go-sev-guest/abi"
	"github.com/google/go-sev-guest/kds"

	"portcullis.dev/portcullis/attestation"
)

// KDS answers what AMD's key distribution service would, for the chips of its worlds: certificate chains, VCEKs and
// revocation lists. It is an attestation.Getter and an http.RoundTripper. Its fields are set before its first use.
type KDS struct {
	// Worlds have different products.
	Worlds []*World
	// Alter changes a revocation list before it is signed. It may be nil.
	Alter func(*x509.RevocationList)
	// Answer gets the body of each answer and returns what is sent instead. It may be nil.
	Answer func(ctx context.Context, url string, body []byte) ([]byte, error)

	mu    sync.Mutex
	lists map[string][]byte // by URL
	asked []string
}

// KDS answers for this world.
func (w *World) KDS() *KDS { return &KDS{Worlds: []*World{w}} }

// Roots are the world's root as snp.Options have them.
func (w *World) Roots() map[string]*x509.Certificate {
	return map[string]*x509.Certificate{w.Product: w.ARK}
}

var errNotFound = errors.New("404 Not Found")

// Get implements attestation.Getter.
func (k *KDS) Get(ctx context.Context, url string) (http.Header, []byte, error) {
	k.mu.Lock()
	k.asked = append(k.asked, url)
	k.mu.Unlock()
	body, err := k.body(url)
	if err == nil && k.Answer != nil {
		body, err = k.Answer(ctx, url, body)
	}
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	if err != nil {
		return nil, nil, &attestation.Unavailable{What: url, Err: err}
	}
	return http.Header{}, body, nil
}

// RoundTrip implements http.RoundTripper.
func (k *KDS) RoundTrip(r *http.Request) (*http.Response, error) {
	status := http.StatusOK
	header, body, err := k.Get(r.Context(), r.URL.String())
	switch {
	case errors.Is(err, errNotFound):
		status = http.StatusNotFound
	case err != nil:
		return nil, err
	}
	return &http.Response{
		Status: http.StatusText(status), StatusCode: status, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: header, Body: io.NopCloser(bytes.NewReader(body)), ContentLength: int64(len(body)), Request: r,
	}, nil
}

// Asked lists the URLs that were asked for.
func (k *KDS) Asked() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Clone(k.asked)
}

func (k *KDS) body(url string) ([]byte, error) {
	for _, w := range k.Worlds {
		for _, key := range []abi.ReportSigner{abi.VcekReportSigner, abi.VlekReportSigner} {
			signer := w.ASK
			if key == abi.VlekReportSigner {
				signer = w.ASVK
			}
			switch {
			case signer == nil:
			case url == kds.ProductCertChainURL(key, w.Product):
				return append(encode(signer), encode(w.ARK)...), nil
			case url == kds.CrlLinkByKey(w.Product, key):
				return k.list(url, w)
			}
		}
		if url == kds.VCEKCertURL(w.Product, chipID[:], kds.TCBVersion(mustCompose(TCB))) {
			return w.VCEK.Raw, nil
		}
	}
	return nil, errNotFound
}

// list signs a revocation list once.
func (k *KDS) list(url string, w *World) ([]byte, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if list, ok := k.lists[url]; ok {
		return list, nil
	}
	template := &x509.RevocationList{
		Number:             big.NewInt(1),
		SignatureAlgorithm: x509.SHA384WithRSAPSS,
		ThisUpdate:         time.Now().Add(-time.Hour),
		NextUpdate:         time.Now().AddDate(0, 1, 0),
	}
	if k.Alter != nil {
		k.Alter(template)
	}
	list, err := SignList(template, w)
	if err != nil {
		return nil, err
	}
	if k.lists == nil {
		k.lists = make(map[string][]byte)
	}
	k.lists[url] = list
	return list, nil
}

// SignList signs a revocation list with a world's root.
func SignList(template *x509.RevocationList, by *World) ([]byte, error) {
	list, err := x509.CreateRevocationList(rand.Reader, template, by.ARK, by.Keys.ARK)
	if err != nil {
		return nil, fmt.Errorf("sign a revocation list: %w", err)
	}
	return list, nil
}

func encode(c *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
}
