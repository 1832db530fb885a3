package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"strings"
	"time"

	"portcullis.dev/portcullis/pki"
	"portcullis.dev/portcullis/tests/netlab"
)

// plaintext is no mesh at all.
func plaintext() *variant { return &variant{name: "plaintext", plain: true} }

// incumbent is what is common today: rules of iptables that hand connections to an Envoy that has nearly every setting at its
// default, under a CA of P-384.
func incumbent(programs programs) *variant {
	v := &variant{
		name:        "iptables TPROXY, Envoy defaults, P-384 CA",
		binaries:    []string{programs.envoy},
		authority:   p384Authority,
		ready:       envoyLive,
		callerTLS12: true, // as far as Envoy goes as a client
	}
	v.proxy = func(*pod) *netlab.Container {
		c := bareEnvoy(envoyIn + "/bootstrap.yaml")
		c.Command = []string{
			"/opt/bin/envoy", "--config-path", envoyIn + "/bootstrap.yaml", "--disable-hot-restart", "--log-level", "warning",
		}
		return c
	}
	v.envoyAlone = func(*pod) *netlab.Container { return bareEnvoy(envoyIn + "/bootstrap.yaml") }
	v.prepare = func(p *pod, id identity) error {
		behind, listeners, clusters := "in", "", ""
		switch p {
		case v.alone:
			// after the handshake there is nowhere to connect to
			behind = "hole, upstream_connect_mode: ON_DOWNSTREAM_TLS_HANDSHAKE, max_early_data_bytes: 0"
		case v.client:
			for name, at := range map[string]string{"answer": egressAnswer, "sink": egressSink} {
				host, port, _ := strings.Cut(at, ":")
				listeners += fmt.Sprintf(incumbentEgressListener, name, host, port)
				clusters += fmt.Sprintf(incumbentEgressCluster, name, v.serverName(), port)
			}
		}
		bootstrap := fmt.Sprintf(incumbentBootstrap, listeners, behind, clusters)
		if err := p.put("envoy", map[string][]byte{
			"bootstrap.yaml": []byte(bootstrap), "chain.pem": id.chain, "key.pem": id.key, "ca.pem": id.ca, "admin/empty": nil,
		}); err != nil {
			return err
		}
		if out, err := p.Command("sh", "-ec", incumbentRules).CombinedOutput(); err != nil {
			return fmt.Errorf("iptables: %w: %s", err, out)
		}
		return nil
	}
	return v
}

// incumbentRules accept what belongs to a known connection, and hand over the rest.
const incumbentRules = `
iptables-nft -t mangle -N PROXY_IN
iptables-nft -t mangle -N PROXY_REDIRECT
iptables-nft -t mangle -A PREROUTING -p tcp -j PROXY_IN
iptables-nft -t mangle -A PROXY_IN -p tcp -i lo -j RETURN
iptables-nft -t mangle -A PROXY_IN -p tcp -m conntrack --ctstate RELATED,ESTABLISHED -j RETURN
iptables-nft -t mangle -A PROXY_IN -p tcp -j PROXY_REDIRECT
iptables-nft -t mangle -A PROXY_REDIRECT -p tcp -j TPROXY --on-port 15006
`

const (
	incumbentBootstrap = `
node: {id: envoy, cluster: mesh}
admin: {address: {pipe: {path: /run/envoy/admin/admin.sock, mode: 0600}}}
static_resources:
  listeners:
  - name: ingress
    address: {socket_address: {address: 0.0.0.0, port_value: 15006}}
    transparent: true
    listener_filters:
    - name: original_dst
      typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.listener.original_dst.v3.OriginalDst}
    filter_chains:
    - filter_chain_match: {destination_port: 15006}
      filters:
      - name: tcp
        typed_config:
          {"@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: hole, cluster: hole}
    - transport_socket:
        name: tls
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
          require_client_certificate: true
          common_tls_context: &tls
            tls_certificates:
            - {certificate_chain: {filename: /run/envoy/chain.pem}, private_key: {filename: /run/envoy/key.pem}}
            validation_context: {trusted_ca: {filename: /run/envoy/ca.pem}}
      filters:
      - name: tcp
        typed_config:
          {"@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: in, cluster: %[2]s}
%[1]s
  clusters:
  - {name: in, type: ORIGINAL_DST, lb_policy: CLUSTER_PROVIDED}
  - {name: hole, type: STATIC, load_assignment: {cluster_name: hole}}
%[3]s
`
	incumbentEgressListener = `
  - name: %[1]s
    address: {socket_address: {address: %[2]s, port_value: %[3]s}}
    filter_chains:
    - filters:
      - name: tcp
        typed_config:
          {"@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: %[1]s, cluster: %[1]s}
`
	incumbentEgressCluster = `
  - name: %[1]s
    type: LOGICAL_DNS
    dns_lookup_family: V4_ONLY
    load_assignment:
      cluster_name: %[1]s
      endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: %[2]s, port_value: %[3]s}}}}]}]
    transport_socket:
      name: tls
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext
        common_tls_context: *tls
`
)

// p384Authority is a root, a CA below it that is also its own root for the mesh, and leaves of P-256.
func p384Authority() (authority, error) {
	newCA := func(name string) (*ecdsa.PrivateKey, *x509.Certificate, error) {
		key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
		return key, &x509.Certificate{
			SerialNumber: serialNumber(), Subject: pkix.Name{CommonName: name}, KeyUsage: x509.KeyUsageCertSign,
			IsCA: true, BasicConstraintsValid: true, NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(24 * time.Hour),
		}, err
	}
	rootKey, rootTemplate, err := newCA("root")
	if err != nil {
		return nil, err
	}
	meshKey, meshTemplate, err := newCA("mesh")
	if err != nil {
		return nil, err
	}
	sign := func(c, parent *x509.Certificate, public *ecdsa.PublicKey, key *ecdsa.PrivateKey) (*x509.Certificate, error) {
		der, err := x509.CreateCertificate(rand.Reader, c, parent, public, key)
		if err != nil {
			return nil, err
		}
		return x509.ParseCertificate(der)
	}
	root, err := sign(rootTemplate, rootTemplate, &rootKey.PublicKey, rootKey)
	if err != nil {
		return nil, err
	}
	mesh, err := sign(meshTemplate, meshTemplate, &meshKey.PublicKey, meshKey)
	if err != nil {
		return nil, err
	}
	meshTemplate.SerialNumber = serialNumber()
	intermediate, err := sign(meshTemplate, root, &meshKey.PublicKey, rootKey)
	if err != nil {
		return nil, err
	}
	return func(names ...string) (identity, error) {
		key, err := newLeafKey()
		if err != nil {
			return identity{}, err
		}
		leaf, err := sign(&x509.Certificate{
			SerialNumber: serialNumber(), Subject: pkix.Name{CommonName: names[0]}, DNSNames: names,
			KeyUsage:    x509.KeyUsageDigitalSignature,
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
			NotBefore:   time.Now().Add(-time.Minute), NotAfter: time.Now().Add(24 * time.Hour),
		}, mesh, &key.PublicKey, meshKey)
		if err != nil {
			return identity{}, err
		}
		pem, err := pki.EncodePrivateKey(key)
		if err != nil {
			return identity{}, err
		}
		return identity{
			chain: pki.EncodeCertificates(leaf, intermediate), key: pem.Reveal(), ca: pki.EncodeCertificates(mesh),
		}, nil
	}, nil
}

func newLeafKey() (*ecdsa.PrivateKey, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) }

func serialNumber() *big.Int {
	b := make([]byte, 16)
	rand.Read(b)
	b[0] &= 0x7f
	return new(big.Int).SetBytes(b)
}
