package pki

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"strings"

	"golang.org/x/net/idna"
)

// SAN is one subject alternative name of a mesh certificate: an identity of the mesh. It holds the one spelling of a
// DNS name, an IP address or a URI that identities are compared in, so == compares identities. The zero value names
// nothing and is refused.
type SAN struct {
	kind  sanKind
	value string
}

type sanKind uint8

const (
	sanDNS sanKind = iota + 1
	sanIP
	sanURI
)

// ParseSAN reads a DNS name (lower case, no final dot; "*" may stand for the first label, see Wildcard), an IP address,
// or, where s contains "://", a URI of scheme, host name and path such as a SPIFFE ID. A second spelling of the same
// identity is refused, not translated: a reviewer and a peer must read the same thing.
func ParseSAN(s string) (SAN, error) {
	if strings.Contains(s, "://") {
		if err := checkURI(s); err != nil {
			return SAN{}, fmt.Errorf("SAN %q is not a URI identity: %w", s, err)
		}
		return SAN{sanURI, s}, nil
	}
	if ip, err := netip.ParseAddr(s); err == nil {
		switch canonical := ip.Unmap().WithZone(""); {
		case ip.Zone() != "":
			return SAN{}, fmt.Errorf("SAN %q is an address with a zone, which is known to one host only", s)
		case canonical.IsUnspecified():
			return SAN{}, fmt.Errorf("SAN %q is the unspecified address", s)
		case canonical.String() != s:
			return SAN{}, fmt.Errorf("SAN %q: write the address as %s", s, canonical)
		}
		return SAN{sanIP, s}, nil
	}
	if len(s) > maxDNS { // with the asterisk: verifiers count it
		return SAN{}, fmt.Errorf("SAN of %d characters, at most %d are allowed in a DNS name", len(s), maxDNS)
	}
	if err := checkDNS(strings.TrimPrefix(s, "*.")); err != nil {
		return SAN{}, fmt.Errorf("SAN %q is neither a DNS name nor an IP address nor a URI: %w", s, err)
	}
	return SAN{sanDNS, s}, nil
}

// Wildcard says whether s stands for more than one name: "*.shop.svc" satisfies a peer that asks for "billing.shop.svc".
func (s SAN) Wildcard() bool { return s.kind == sanDNS && strings.HasPrefix(s.value, "*.") }

// String is what ParseSAN read.
func (s SAN) String() string { return s.value }

// MarshalText is String.
func (s SAN) MarshalText() ([]byte, error) {
	if s.kind == 0 {
		return nil, errors.New("encode the empty SAN")
	}
	return []byte(s.value), nil
}

// UnmarshalText is ParseSAN.
func (s *SAN) UnmarshalText(b []byte) (err error) {
	*s, err = ParseSAN(string(b))
	return err
}

func (s SAN) addTo(c *x509.Certificate) error {
	switch s.kind {
	case sanDNS:
		c.DNSNames = append(c.DNSNames, s.value)
	case sanIP:
		ip, err := netip.ParseAddr(s.value)
		if err != nil {
			return fmt.Errorf("SAN %q: %w", s.value, err)
		}
		c.IPAddresses = append(c.IPAddresses, ip.AsSlice())
	case sanURI:
		u, err := url.Parse(s.value)
		if err != nil {
			return fmt.Errorf("SAN %q: %w", s.value, err)
		}
		c.URIs = append(c.URIs, u)
	default:
		return errors.New("a SAN is empty")
	}
	return nil
}

// maxDNS is the longest name, in characters (RFC 1035, 2.3.4, without the lengths of its first label and of the root).
const maxDNS = 253

// checkDNS wants letters, digits and hyphens (RFC 1123, 2.1), in lower case, and well-formed A-labels (RFC 5890).
func checkDNS(name string) error {
	if name == "" {
		return errors.New("it is empty")
	}
	if len(name) > maxDNS {
		return fmt.Errorf("it has %d characters, at most %d are allowed", len(name), maxDNS)
	}
	labels := strings.Split(name, ".")
	for _, l := range labels {
		switch {
		case l == "":
			return errors.New("a label is empty")
		case len(l) > 63:
			return fmt.Errorf("label %q has %d characters, at most 63 are allowed", l, len(l))
		case l[0] == '-' || l[len(l)-1] == '-':
			return fmt.Errorf("label %q begins or ends with a hyphen", l)
		}
		for _, c := range l {
			if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
				return fmt.Errorf("character %q is not allowed (lower-case letters, digits and hyphens are)", c)
			}
		}
		if strings.HasPrefix(l, "xn--") {
			unicode, err := idna.Registration.ToUnicode(l)
			if err != nil {
				return fmt.Errorf("label %q is not a valid internationalised label: %w", l, err)
			}
			if ascii, err := idna.Registration.ToASCII(unicode); err != nil || ascii != l {
				return fmt.Errorf("label %q is not the usual form of %q", l, unicode)
			}
		}
	}
	if last := labels[len(labels)-1]; strings.Trim(last, "0123456789") == "" {
		return fmt.Errorf("the last label %q is a number, as in an IP address", last)
	}
	return nil
}

func checkURI(s string) error {
	u, err := url.Parse(s)
	if err != nil {
		return err
	}
	switch {
	case u.Scheme == "":
		return errors.New("it has no scheme")
	case u.User != nil || u.Port() != "" || u.RawQuery != "" || u.ForceQuery || u.Fragment != "":
		return errors.New("it may have a scheme, a host name and a path, and nothing else")
	case u.String() != s || strings.Contains(s, "%"):
		return errors.New("it is not in its plain spelling (lower-case scheme, nothing percent-encoded)")
	}
	for _, c := range s {
		if c <= ' ' || c > '~' {
			return fmt.Errorf("character %q is not allowed", c)
		}
	}
	for _, segment := range strings.Split(u.Path, "/") {
		if segment == "." || segment == ".." {
			return fmt.Errorf("path segment %q is not allowed", segment)
		}
	}
	if err := checkDNS(u.Host); err != nil {
		return fmt.Errorf("host %q: %w", u.Host, err)
	}
	if !strings.Contains(u.Host, ".") {
		// RFC 5280, 4.2.1.6
		return fmt.Errorf("host %q is not fully qualified (such as shop.example)", u.Host)
	}
	return nil
}
