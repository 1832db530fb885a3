// Package simcoordinator answers as a Coordinator would whose history is made up: for tests of what is made of answers.
package simcoordinator

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"time"

	"portcullis.dev/portcullis/api"
	"portcullis.dev/portcullis/attestation"
	"portcullis.dev/portcullis/manifest"
	"portcullis.dev/portcullis/pki"
)

// Step is a manifest and the owners that sign it.
type Step struct {
	Text    []byte
	Signers []*ecdsa.PrivateKey
}

// History signs steps one after the other.
func History(steps []Step) ([]api.HistoryEntry, error) {
	var entries []api.HistoryEntry
	var latest [32]byte
	for _, s := range steps {
		latest = manifest.TransitionHash(s.Text, latest)
		e := api.HistoryEntry{Manifest: s.Text}
		digest := sha256.Sum256(manifest.SignedMessage(latest))
		for _, key := range s.Signers {
			spki, err := pki.SPKI(&key.PublicKey)
			if err != nil {
				return nil, err
			}
			signature, err := ecdsa.SignASN1(rand.Reader, key, digest[:])
			if err != nil {
				return nil, err
			}
			e.Signatures = append(e.Signatures, api.Signature{PublicKey: spki, Signature: signature})
		}
		entries = append(entries, e)
	}
	return entries, nil
}

// Answer is the answer to Attest(nonce) of a Coordinator with that history, in whose TEE issuer is.
func Answer(ctx context.Context, issuer attestation.Issuer, nonce []byte, history []api.HistoryEntry) (*api.AttestResponse, error) {
	resp := &api.AttestResponse{History: history}
	key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		return nil, err
	}
	root, err := pki.NewRootCA(key, time.Now())
	if err != nil {
		return nil, err
	}
	certify := pki.NewMeshCA
	if n := len(history); n > 0 {
		if m, err := manifest.Parse(history[n-1].Manifest); err == nil && m.Overlap() > 0 {
			certify = pki.NewMeshCAWithSuccessors
		}
	}
	mesh, err := certify(root, key, resp.TransitionHash(), time.Now())
	if err != nil {
		return nil, err
	}
	sealing, err := api.NewHPKEKey()
	if err != nil {
		return nil, err
	}
	resp.RootCA, resp.MeshCA, resp.HPKEKey = root.Raw, mesh.Certificate.Raw, sealing.PublicKey().Bytes()
	return resp, Attest(ctx, issuer, nonce, resp)
}

// Attest makes the evidence in resp anew, over what is in it now.
func Attest(ctx context.Context, issuer attestation.Issuer, nonce []byte, resp *api.AttestResponse) error {
	data, err := resp.ReportData(nonce)
	if err != nil {
		return err
	}
	resp.Evidence, err = issuer.Issue(ctx, data)
	return err
}
