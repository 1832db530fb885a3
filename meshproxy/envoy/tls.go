package envoy

import (
	"net/netip"
	"slices"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"portcullis.dev/portcullis/meshproxy/config"
	"portcullis.dev/portcullis/pki"
)

// keyExchange is post-quantum first; it costs 4 % of a handshake. Clients from outside may be bound to NIST's curves.
var (
	keyExchange        = []string{"X25519MLKEM768", "X25519"}
	outsideKeyExchange = append(slices.Clone(keyExchange), "P-256")
)

// mutualTLS wants a certificate of the mesh, and one of the identities when there are any.
func mutualTLS(dir Dir, chain string, identities []pki.SAN) *corev3.TransportSocket {
	common := commonTLS(dir, betweenMeshes())
	trust(common, dir, identities)
	return downstreamTLS(dir, chain, common, true, resumes(identities))
}

// serverTLS does not even ask for a client certificate, so it works for clients that would offer one of another world.
// Those clients may be as old as TLS 1.2.
func serverTLS(dir Dir, chain string) *corev3.TransportSocket {
	params := betweenMeshes()
	params.TlsMinimumProtocolVersion = tlsv3.TlsParameters_TLSv1_2
	params.EcdhCurves = outsideKeyExchange
	return downstreamTLS(dir, chain, commonTLS(dir, params), false, true)
}

func downstreamTLS(dir Dir, chain string, common *tlsv3.CommonTlsContext, clientCertificate, resume bool) *corev3.TransportSocket {
	d := &tlsv3.DownstreamTlsContext{
		CommonTlsContext:         common,
		RequireClientCertificate: wrapperspb.Bool(clientCertificate),
		// Sessions live in tickets alone, whose keys are the supervisor's to forget.
		DisableStatefulSessionResumption: true,
		SessionTicketKeysType: &tlsv3.DownstreamTlsContext_SessionTicketKeysSdsSecretConfig{
			SessionTicketKeysSdsSecretConfig: secret(chain, dir.Tickets()),
		},
	}
	if !resume {
		d.SessionTicketKeysType = &tlsv3.DownstreamTlsContext_DisableStatelessSessionResumption{
			DisableStatelessSessionResumption: true,
		}
	}
	return transportSocket(d)
}

func upstreamTLS(dir Dir, e config.Egress) *corev3.TransportSocket {
	common := commonTLS(dir, betweenMeshes())
	trust(common, dir, e.Identities)
	return transportSocket(&tlsv3.UpstreamTlsContext{
		CommonTlsContext: common,
		Sni:              e.Remote.Name, // empty for an address (RFC 6066, section 3)
		MaxSessionKeys:   wrapperspb.UInt32(upstreamSessions),
	})
}

func betweenMeshes() *tlsv3.TlsParameters {
	return &tlsv3.TlsParameters{
		TlsMinimumProtocolVersion: tlsv3.TlsParameters_TLSv1_3,
		TlsMaximumProtocolVersion: tlsv3.TlsParameters_TLSv1_3,
		EcdhCurves:                keyExchange,
	}
}

func commonTLS(dir Dir, params *tlsv3.TlsParameters) *tlsv3.CommonTlsContext {
	return &tlsv3.CommonTlsContext{
		TlsParams:                      params,
		TlsCertificateSdsSecretConfigs: []*tlsv3.SdsSecretConfig{secret(secretIdentity, dir.Credentials())},
	}
}

// trustedDepth is the leaf and one CA certificate: whoever signed a peer's certificate must be in the trust file itself.
// BoringSSL does not look at the path length of what is in there (seen): without this, a peer that shows a chain of
// cross-certificates would be of our manifest's successor's successor.
const trustedDepth = 1

// trust accepts peers under the mesh CA, and of those only the identities; no identities means all of them.
func trust(common *tlsv3.CommonTlsContext, dir Dir, identities []pki.SAN) {
	common.ValidationContextType = &tlsv3.CommonTlsContext_CombinedValidationContext{
		CombinedValidationContext: &tlsv3.CommonTlsContext_CombinedCertificateValidationContext{
			DefaultValidationContext: &tlsv3.CertificateValidationContext{
				MatchTypedSubjectAltNames: exactly(identities),
				MaxVerifyDepth:            wrapperspb.UInt32(trustedDepth),
			},
			ValidationContextSdsSecretConfig: secret(secretTrust, dir.Credentials()),
		},
	}
}

func exactly(identities []pki.SAN) []*tlsv3.SubjectAltNameMatcher {
	var m []*tlsv3.SubjectAltNameMatcher
	for _, id := range identities {
		m = append(m, &tlsv3.SubjectAltNameMatcher{
			SanType: kind(id),
			Matcher: &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: id.String()}},
		})
	}
	return m
}

func kind(id pki.SAN) tlsv3.SubjectAltNameMatcher_SanType {
	if strings.Contains(id.String(), "://") {
		return tlsv3.SubjectAltNameMatcher_URI
	}
	if _, err := netip.ParseAddr(id.String()); err == nil {
		return tlsv3.SubjectAltNameMatcher_IP_ADDRESS
	}
	return tlsv3.SubjectAltNameMatcher_DNS
}

// resumes says whether a chain for these identities may resume sessions. What allow must know of an address is lost in a
// ticket.
func resumes(identities []pki.SAN) bool {
	return !slices.ContainsFunc(identities, func(id pki.SAN) bool { return kind(id) == tlsv3.SubjectAltNameMatcher_IP_ADDRESS })
}

// secret is one secret in one file of a published directory. Envoy reads the file again when the link that leads to it is
// replaced, and only then: it would wake for every write in a directory that it watches.
func secret(name string, p Published) *tlsv3.SdsSecretConfig {
	return &tlsv3.SdsSecretConfig{Name: name, SdsConfig: &corev3.ConfigSource{
		ResourceApiVersion: corev3.ApiVersion_V3,
		ConfigSourceSpecifier: &corev3.ConfigSource_PathConfigSource{PathConfigSource: &corev3.PathConfigSource{
			Path:             p.File(name),
			WatchedDirectory: &corev3.WatchedDirectory{Path: string(p)},
		}},
	}}
}
