package main

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
)

// The peers get what they are at their best with: P-256 throughout, a fresh certificate signing request for each
// certificate, 24 hours or an hour of validity, no database for step-ca, and SPIRE's mint call on its local socket, which
// writes nothing.

func peerAuthorities(bin string) ([]*authority, error) {
	for _, name := range []string{"step-ca", "spire-server"} {
		if _, err := os.Stat(filepath.Join(bin, name)); err != nil {
			return nil, fmt.Errorf("%w; make bench-ca builds it", err)
		}
	}
	step, err := newStep(filepath.Join(bin, "step-ca"))
	if err != nil {
		return nil, err
	}
	return []*authority{step, newSPIRE(filepath.Join(bin, "spire-server"))}, nil
}

// authorityFiles makes a root and an intermediate CA in PEM files root.crt, int.crt and int.key.
func authorityFiles(dir string) (*x509.CertPool, error) {
	root, rootKey, err := newCA("bench root", nil, nil, 2)
	if err != nil {
		return nil, err
	}
	intermediate, key, err := newCA("bench intermediate", root, rootKey, 1)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	pool.AddCert(root)
	return pool, errors.Join(
		writePEM(dir, "root.crt", "CERTIFICATE", root.Raw),
		writePEM(dir, "int.crt", "CERTIFICATE", intermediate.Raw),
		writePEM(dir, "int.key", "EC PRIVATE KEY", der),
	)
}

func newCA(name string, parent *x509.Certificate, signer crypto.Signer, pathLen int) (*x509.Certificate, *ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(int64(pathLen)), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(1, 0, 0),
		IsCA: true, BasicConstraintsValid: true, MaxPathLen: pathLen, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	if parent == nil {
		parent, signer = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		return nil, nil, err
	}
	certificate, err := x509.ParseCertificate(der)
	return certificate, key, err
}

func writePEM(dir, name, kind string, der []byte) error {
	return os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600)
}

// order is one certificate that is asked for by CSR.
type order struct {
	key    *ecdsa.PrivateKey
	body   []byte
	answer []byte
}

func newCSR(template *x509.CertificateRequest) (*ecdsa.PrivateKey, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, template, key)
	return key, der, err
}

// wantKey says whether a certificate is for the key that asked.
func (o *order) wantKey(der []byte) error {
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		return err
	}
	if !o.key.PublicKey.Equal(certificate.PublicKey) {
		return errors.New("the certificate is for another key")
	}
	return nil
}

func newStep(program string) (*authority, error) {
	address, err := freeAddress()
	if err != nil {
		return nil, err
	}
	provisioner, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	jwk, id, err := publicJWK(&provisioner.PublicKey)
	if err != nil {
		return nil, err
	}
	var c *http.Client
	base := "https://" + address
	return &authority{
		name: "step-ca, one-time token",
		start: func(dir string) (*exec.Cmd, error) {
			pool, err := authorityFiles(dir)
			if err != nil {
				return nil, err
			}
			c = client(&http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}})
			config := map[string]any{
				"root": filepath.Join(dir, "root.crt"), "crt": filepath.Join(dir, "int.crt"), "key": filepath.Join(dir, "int.key"),
				"address": address, "dnsNames": []string{"127.0.0.1"}, "logger": map[string]string{"format": "text"},
				"authority": map[string]any{"provisioners": []any{map[string]any{"type": "JWK", "name": "bench", "key": jwk}}},
			}
			name := filepath.Join(dir, "ca.json")
			return exec.Command(program, name), os.WriteFile(name, marshal(config), 0o600)
		},
		ready: func() error {
			resp, err := c.Get(base + "/health")
			if err != nil {
				return err
			}
			return resp.Body.Close()
		},
		turn: func(n int) []stage {
			all := make([]order, n)
			return []stage{
				{do: func(_ context.Context, i int) error {
					key, der, err := newCSR(&x509.CertificateRequest{
						Subject: pkix.Name{CommonName: "w.example.org"}, DNSNames: []string{"w.example.org"},
					})
					if err != nil {
						return err
					}
					token, err := oneTimeToken(provisioner, id, base+"/1.0/sign")
					if err != nil {
						return err
					}
					all[i] = order{key: key, body: marshal(map[string]string{
						"csr": string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})), "ott": token,
					})}
					return nil
				}},
				{measured: true, do: func(ctx context.Context, i int) (err error) {
					all[i].answer, err = send(ctx, c, base+"/1.0/sign", "application/json", all[i].body)
					return err
				}},
				{do: func(_ context.Context, i int) error {
					var answer struct{ Crt string }
					if err := json.Unmarshal(all[i].answer, &answer); err != nil {
						return err
					}
					block, _ := pem.Decode([]byte(answer.Crt))
					if block == nil {
						return errors.New("there is no certificate in the answer")
					}
					return all[i].wantKey(block.Bytes)
				}},
			}
		},
	}, nil
}

func text64(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

// publicJWK is a key as a provisioner has it, and its thumbprint (RFC 7638).
func publicJWK(key *ecdsa.PublicKey) (jwk map[string]string, id string, err error) {
	point, err := key.Bytes()
	if err != nil {
		return nil, "", err
	}
	x, y := text64(point[1:33]), text64(point[33:])
	hash := sha256.Sum256(fmt.Appendf(nil, `{"crv":"P-256","kty":"EC","x":"%s","y":"%s"}`, x, y))
	id = text64(hash[:])
	return map[string]string{"use": "sig", "kty": "EC", "kid": id, "crv": "P-256", "alg": "ES256", "x": x, "y": y}, id, nil
}

// oneTimeToken is a JWT (RFC 7519) that lets its bearer have one certificate.
func oneTimeToken(key *ecdsa.PrivateKey, id, audience string) (string, error) {
	now := time.Now().Unix()
	signed := text64(marshal(map[string]string{"alg": "ES256", "kid": id, "typ": "JWT"})) + "." + text64(marshal(map[string]any{
		"iss": "bench", "aud": audience, "sub": "w.example.org", "sans": []string{"w.example.org"},
		"nbf": now - 1, "iat": now, "exp": now + 300, "jti": rand.Text(),
	}))
	digest := sha256.Sum256([]byte(signed))
	r, s, err := ecdsa.Sign(rand.Reader, key, digest[:])
	if err != nil {
		return "", err
	}
	signature := append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...)
	return signed + "." + text64(signature), nil
}

const spireConfig = `server {
  bind_address = "127.0.0.1"
  bind_port = "%[2]s"
  socket_path = "%[1]s/api.sock"
  trust_domain = "example.org"
  data_dir = "%[1]s"
  log_level = "WARN"
  ca_key_type = "ec-p256"
}
plugins {
  DataStore "sql" { plugin_data { database_type = "sqlite3" connection_string = "%[1]s/datastore.sqlite3" } }
  NodeAttestor "join_token" { plugin_data {} }
  KeyManager "memory" { plugin_data = {} }
  UpstreamAuthority "disk" { plugin_data { key_file_path = "%[1]s/int.key" cert_file_path = "%[1]s/int.crt" bundle_file_path = "%[1]s/root.crt" } }
}
`

func newSPIRE(program string) *authority {
	var socket string
	// gRPC is HTTP/2 with five octets in front of each message: this saves the bench a library that the product does not need.
	transport := &http.Transport{
		Protocols: new(http.Protocols),
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
	}
	transport.Protocols.SetUnencryptedHTTP2(true)
	c := client(transport)
	csr := func() (*ecdsa.PrivateKey, []byte, error) {
		return newCSR(&x509.CertificateRequest{URIs: []*url.URL{{Scheme: "spiffe", Host: "example.org", Path: "/w"}}})
	}
	return &authority{
		name: "SPIRE server, mint",
		start: func(dir string) (*exec.Cmd, error) {
			if _, err := authorityFiles(dir); err != nil {
				return nil, err
			}
			address, err := freeAddress()
			if err != nil {
				return nil, err
			}
			_, port, err := net.SplitHostPort(address)
			if err != nil {
				return nil, err
			}
			socket = filepath.Join(dir, "api.sock")
			name := filepath.Join(dir, "server.conf")
			return exec.Command(program, "run", "-config", name), os.WriteFile(name, fmt.Appendf(nil, spireConfig, dir, port), 0o600)
		},
		ready: func() error {
			_, der, err := csr()
			if err != nil {
				return err
			}
			_, err = mint(context.Background(), c, mintRequest(der))
			return err
		},
		turn: func(n int) []stage {
			all := make([]order, n)
			return []stage{
				{do: func(_ context.Context, i int) error {
					key, der, err := csr()
					all[i] = order{key: key, body: mintRequest(der)}
					return err
				}},
				{measured: true, do: func(ctx context.Context, i int) (err error) {
					all[i].answer, err = mint(ctx, c, all[i].body)
					return err
				}},
				{do: func(_ context.Context, i int) error {
					svid, err := field(all[i].answer, 1)
					if err != nil {
						return err
					}
					leaf, err := field(svid, 1)
					if err != nil {
						return err
					}
					return all[i].wantKey(leaf)
				}},
			}
		},
	}
}

// mintRequest is a MintX509SVIDRequest of spire-api-sdk in one gRPC message.
func mintRequest(csr []byte) []byte {
	message := protowire.AppendBytes(protowire.AppendTag(nil, 1, protowire.BytesType), csr)
	return append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(message))), message...)
}

func mint(ctx context.Context, c *http.Client, body []byte) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost,
		"http://spire/spire.api.server.svid.v1.SVID/MintX509SVID", bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/grpc")
	req.Header.Set("TE", "trailers")
	resp, err := c.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	if resp.Trailer.Get("Grpc-Status") != "0" || len(answer) < 5 {
		return nil, fmt.Errorf("SPIRE answers %s, gRPC status %q %q", resp.Status,
			resp.Header.Get("Grpc-Status")+resp.Trailer.Get("Grpc-Status"), resp.Header.Get("Grpc-Message")+resp.Trailer.Get("Grpc-Message"))
	}
	return answer[5:], nil
}

// field is the first field of that number in a protobuf message.
func field(message []byte, want protowire.Number) ([]byte, error) {
	for len(message) > 0 {
		number, kind, n := protowire.ConsumeTag(message)
		if n < 0 {
			return nil, protowire.ParseError(n)
		}
		message = message[n:]
		if number == want && kind == protowire.BytesType {
			value, n := protowire.ConsumeBytes(message)
			return value, protowire.ParseError(min(n, 0))
		}
		if n = protowire.ConsumeFieldValue(number, kind, message); n < 0 {
			return nil, protowire.ParseError(n)
		}
		message = message[n:]
	}
	return nil, fmt.Errorf("the answer has no field %d", want)
}
