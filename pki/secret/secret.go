// Package secret holds bytes that must not be printed.
//
// A workload secret or a seed that reaches a log has left the TEE for good: the host collects the logs. So a secret is
// not a []byte that everybody must remember to keep out of error messages, but a type whose every way into text says
// REDACTED. The one way to the bytes is Reveal, which is easy to search for.
package secret

import (
	"crypto/subtle"
	"fmt"
	"log/slog"
)

// Redacted is what a secret prints as.
const Redacted = "REDACTED"

// Bytes is a secret. The zero value holds nothing.
type Bytes struct {
	// A function, since package fmt calls no methods of unexported fields but prints them as it finds them: of a function
	// it finds the address.
	reveal func() []byte
}

// New takes a copy of b.
func New(b []byte) Bytes {
	c := append([]byte(nil), b...)
	return Bytes{reveal: func() []byte { return c }}
}

// Reveal returns a copy of the bytes; nil for the zero value.
func (s Bytes) Reveal() []byte { return append([]byte(nil), s.bytes()...) }

// Len is the number of bytes.
func (s Bytes) Len() int { return len(s.bytes()) }

// Equal compares in constant time. A secret without bytes equals nothing, not even another one.
func (s Bytes) Equal(o Bytes) bool {
	return s.Len() > 0 && subtle.ConstantTimeCompare(s.bytes(), o.bytes()) == 1
}

func (s Bytes) bytes() []byte {
	if s.reveal == nil {
		return nil
	}
	return s.reveal()
}

// String says REDACTED.
func (Bytes) String() string { return Redacted }

// GoString says REDACTED.
func (Bytes) GoString() string { return Redacted }

// Format says REDACTED, whatever the verb.
func (Bytes) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(Redacted)) }

// MarshalText says REDACTED.
func (Bytes) MarshalText() ([]byte, error) { return []byte(Redacted), nil }

// MarshalJSON says "REDACTED".
func (Bytes) MarshalJSON() ([]byte, error) { return []byte(`"` + Redacted + `"`), nil }

// LogValue says REDACTED.
func (Bytes) LogValue() slog.Value { return slog.StringValue(Redacted) }
