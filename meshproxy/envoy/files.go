package envoy

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"path/filepath"
)

// Dir is Envoy's directory. The supervisor writes it; Envoy reads it and makes its admin socket in it.
type Dir string

// Bootstrap is the bootstrap's path, in protobuf's binary form, which needs no JSON machinery to write.
func (d Dir) Bootstrap() string { return filepath.Join(string(d), "bootstrap.pb") }

// AdminDir is the one directory that Envoy may write in.
func (d Dir) AdminDir() string { return filepath.Join(string(d), "admin") }

// AdminSocket is the pipe that Envoy's admin interface listens on.
func (d Dir) AdminSocket() string { return filepath.Join(d.AdminDir(), "admin.sock") }

// Credentials holds the pod's certificate and key, and the mesh CA.
func (d Dir) Credentials() Published { return Published(filepath.Join(string(d), "credentials")) }

// Tickets holds the ticket keys of every chain of TicketChains.
func (d Dir) Tickets() Published { return Published(filepath.Join(string(d), "tickets")) }

// Published is a directory whose files change together: they are in a version beside it, and the link DataLink leads to
// the version in force.
type Published string

// DataLink is the link's name.
const DataLink = "..data"

// File is the path by which a secret is read.
func (p Published) File(secret string) string {
	return filepath.Join(string(p), DataLink, FileName(secret))
}

// FileName is the name of a secret's file within a version.
func FileName(secret string) string { return secret + ".json" }

const (
	secretIdentity = "identity"
	secretTrust    = "trust"
	typeSecret     = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"

	// TicketKeyLen is the length of one ticket key: name, HMAC key and AES key of BoringSSL's ticket format.
	TicketKeyLen = 80
)

// CredentialFiles are the files of a version of Dir.Credentials: certificate chain, key and mesh CA, each in PEM. The
// key's file is a secret.
func CredentialFiles(chain, key, meshCA []byte) map[string][]byte {
	return map[string][]byte{
		FileName(secretIdentity): resource(map[string]any{"name": secretIdentity, "tls_certificate": map[string]any{
			"certificate_chain": inline(chain),
			"private_key":       inline(key),
		}}),
		FileName(secretTrust): resource(map[string]any{"name": secretTrust, "validation_context": map[string]any{
			"trusted_ca": inline(meshCA),
		}}),
	}
}

// TicketFile is the file of one chain in a version of Dir.Tickets. New tickets are made with the first key; all of them
// open tickets. It is a secret.
func TicketFile(chain string, keys ...[TicketKeyLen]byte) []byte {
	var list []any
	for _, k := range keys {
		list = append(list, inline(k[:]))
	}
	return resource(map[string]any{"name": chain, "session_ticket_keys": map[string]any{"keys": list}})
}

func inline(b []byte) map[string]any {
	return map[string]any{"inline_bytes": base64.StdEncoding.EncodeToString(b)}
}

func resource(secret map[string]any) []byte {
	secret["@type"] = typeSecret
	b, err := json.Marshal(map[string]any{"resources": []any{secret}})
	if err != nil {
		panic(fmt.Sprintf("envoy: encode a secret: %v", err)) // maps of strings only
	}
	return b
}
