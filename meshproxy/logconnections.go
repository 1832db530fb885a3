package meshproxy

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"net"
	"reflect"
	"strconv"
	"strings"

	"portcullis.dev/portcullis/meshproxy/envoy"
)

// Why a connection was refused, in a word. The metrics of refusals have the same words where Envoy counts the same thing.
const (
	reasonNoCertificate    = "no_certificate"    // the client showed none
	reasonUntrusted        = "untrusted"         // one of another authority, or outside its time
	reasonIdentity         = "identity"          // one of the mesh, and of nobody who is wanted there
	reasonHandshake        = "handshake"         // no common version, no TLS at all, or the other side refused us
	reasonHandshakeTimeout = "handshake_timeout" // it took too long
	reasonSecondLine       = "second_line"       // TLS let the identity pass, and the check behind it did not
	reasonBroken           = "broken"            // TLS failed after it had begun well, as when bytes are changed on the way
	reasonDestination      = "destination"       // the proxy's own port, or an address that is for the pod alone
	reasonApplication      = "application"       // the application does not listen there
	reasonNoAddress        = "no_address"        // the name of the one to call is not known
	reasonConnect          = "connect"           // the one to call does not answer
	reasonLimit            = "limit"             // too many connections
	reasonNoChain          = "no_chain"          // nothing is configured for that port
)

// The most that is shown of what a certificate or Envoy says.
const (
	maxField  = 256
	maxDetail = 1 << 10
)

// newConnectionLog takes the lines that one Envoy writes on standard output, as envoy.Line says, into the proxy's log.
func newConnectionLog(l *logs) *lines { return &lines{each: l.connection} }

func (l *logs) connection(raw []byte) {
	var line envoy.Line
	decodeBeginning(raw, &line)
	reason, detail := refusal(&line)
	switch {
	case reason != "":
		kind := "inbound " + reason
		if line.Outbound() {
			kind = "outbound " + reason
		}
		if l.refusals.allow(kind) {
			l.refusals.log.LogAttrs(context.Background(), slog.LevelWarn, "connection refused", l.attributes(&line, reason, detail)...)
		}
	case l.all && l.accesses.allow("connections"):
		l.accesses.log.LogAttrs(context.Background(), slog.LevelInfo, "connection", l.attributes(&line, "", "")...)
	}
}

// decodeBeginning reads the members of a JSON object until it ends or breaks off, in the middle of a text perhaps.
func decodeBeginning(raw []byte, into *envoy.Line) {
	d := json.NewDecoder(bytes.NewReader(raw))
	fields := reflect.ValueOf(into).Elem()
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return
	}
	for d.More() {
		name, err := d.Token()
		if err != nil {
			return
		}
		var value any = new(json.RawMessage) // of a member that is not known
		for i := range fields.NumField() {
			if fields.Type().Field(i).Tag.Get("json") == name {
				value = fields.Field(i).Addr().Interface()
			}
		}
		rest := raw[d.InputOffset():]
		if d.Decode(value) != nil {
			if text, ok := value.(*string); ok {
				*text = beginningOf(rest)
			}
			return
		}
	}
}

// beginningOf reads a text from its colon to where it breaks off.
func beginningOf(rest []byte) (text string) {
	_, rest, _ = bytes.Cut(rest, []byte(":"))
	// The last escape may have lost its end; the longest are of six bytes, and two of them a pair.
	for cut := 0; cut < min(12, len(rest)); cut++ {
		if json.Unmarshal(append(bytes.Clone(rest[:len(rest)-cut]), '"'), &text) == nil {
			return text
		}
	}
	return ""
}

// refusal says why the connection did not come about; an empty reason means that it did, or that the peer changed its mind.
func refusal(line *envoy.Line) (reason, detail string) {
	flags := strings.Split(line.Flags, ",")
	flagged := func(any ...string) bool {
		for _, f := range flags {
			for _, a := range any {
				if f == a {
					return true
				}
			}
		}
		return false
	}
	switch {
	case strings.HasPrefix(line.Details, envoy.DetailsDenied):
		return reasonSecondLine, line.Details
	case line.Details == envoy.DetailsHandshakeTimeout:
		return reasonHandshakeTimeout, ""
	case line.Failure != "":
		reason, detail = tlsFailure(line.Failure)
		if line.Upstream != "" { // which waits for the handshake
			reason = reasonBroken
		}
		return reason, detail
	case line.BlackHole():
		return reasonDestination, ""
	case flagged("NR", "NC"):
		return reasonNoChain, ""
	case flagged("UO"):
		return reasonLimit, ""
	case !line.Outbound() && flagged("UF", "UH"):
		return reasonApplication, line.UpstreamFailure
	case strings.HasPrefix(line.UpstreamFailure, tlsError):
		return tlsFailure(line.UpstreamFailure)
	case flagged("UH"):
		return reasonNoAddress, ""
	case flagged("UF"):
		return reasonConnect, line.UpstreamFailure
	}
	return "", ""
}

// How Envoy says why TLS failed: TLS_error:|number:SSL_routines:OPENSSL_internal:CODE:more:TLS_error_end. What the peer chose
// is in more and nowhere before.
const (
	tlsError     = "TLS_error:"
	tlsErrorEnd  = ":TLS_error_end"
	sanMismatch  = "verify_cert_failed:_SAN_matcher,"
	certificates = "_certificate_SANs_are_["
)

func tlsFailure(text string) (reason, detail string) {
	detail = strings.TrimSuffix(strings.TrimPrefix(text, tlsError), tlsErrorEnd)
	_, first, _ := strings.Cut(detail, ":OPENSSL_internal:")
	if first != "" {
		detail = first
	}
	code, more, _ := strings.Cut(first, ":")
	switch {
	case code == "PEER_DID_NOT_RETURN_A_CERTIFICATE":
		return reasonNoCertificate, ""
	case code == "CERTIFICATE_VERIFY_FAILED" && strings.HasPrefix(more, sanMismatch):
		return reasonIdentity, ""
	case code == "CERTIFICATE_VERIFY_FAILED":
		return reasonUntrusted, more
	}
	return reasonHandshake, detail
}

// presented are the names in the certificate that a failure of reasonIdentity tells of.
func presented(failure string) string {
	_, names, _ := strings.Cut(failure, certificates)
	return strings.TrimSuffix(strings.TrimSuffix(names, tlsErrorEnd), "]")
}

// attributes are the fields of an entry, for people who search: who, where to, why.
func (l *logs) attributes(line *envoy.Line, reason, detail string) []slog.Attr {
	var out []slog.Attr
	text := func(name, value string, most int) {
		if value != "" {
			out = append(out, slog.String(name, printable(value, most)))
		}
	}
	direction, rule := "inbound", line.Chain
	if line.Outbound() {
		direction, rule = "outbound", line.Cluster
	}
	text("direction", direction, maxField)
	text("reason", reason, maxField)
	text("detail", detail, maxDetail)
	text("peer", line.Remote, maxField)
	if _, port, err := net.SplitHostPort(line.Local); err == nil {
		if n, err := strconv.ParseUint(port, 10, 16); err == nil {
			out = append(out, slog.Uint64("port", n))
		}
	}
	text("local", line.Local, maxField)
	text("chain", line.Chain, maxField)
	text("upstream", line.Upstream, maxField)

	if line.Outbound() {
		switch {
		case reason == reasonIdentity:
			l.identity(&out, true, "names", presented(line.UpstreamFailure))
		case reason == "":
			l.identity(&out, true, "dns", line.UpstreamDNS, "uri", line.UpstreamURI, "ip", line.UpstreamIP)
		}
	} else {
		// After a handshake, or when nothing but the identity was wrong, the mesh CA stands for what the certificate says.
		// Before, it is what a stranger says.
		verified := reason == reasonIdentity || line.Failure == "" && line.Details != envoy.DetailsHandshakeTimeout ||
			reason == reasonBroken
		l.identity(&out, verified, "dns", line.DNS, "uri", line.URI, "ip", line.IP, "subject", line.Subject, "serial", line.Serial)
	}
	if wanted := l.wanted[rule]; reason == reasonIdentity && len(wanted) > 0 {
		names := make([]string, len(wanted))
		for i, w := range wanted {
			names[i] = w.String()
		}
		text("wanted", strings.Join(names, ","), maxDetail)
	}
	if reason == "" {
		out = append(out, slog.Int64("received", line.BytesReceived), slog.Int64("sent", line.BytesSent),
			slog.Int64("milliseconds", line.Duration))
	}
	return out
}

// identity adds the names of a certificate, if there is one, and whether the mesh CA stands for them.
func (l *logs) identity(out *[]slog.Attr, verified bool, names ...string) {
	fields := []any{slog.Bool("verified", verified)}
	for i := 0; i < len(names); i += 2 {
		if names[i+1] != "" {
			fields = append(fields, slog.String(names[i], printable(names[i+1], maxDetail)))
		}
	}
	if len(fields) > 1 {
		*out = append(*out, slog.Group("certificate", fields...))
	}
}
