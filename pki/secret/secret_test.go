package secret_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"portcullis.dev/portcullis/pki/secret"
)

func TestASecretPrintsAsRedacted(t *testing.T) {
	s := secret.New([]byte("hunter2"))
	type nested struct {
		Public string
		Secret secret.Bytes
		hidden secret.Bytes
	}
	var printed bytes.Buffer
	for _, v := range []any{s, &s, nested{"web", s, s}, &nested{"web", s, s}, []secret.Bytes{s}, map[string]secret.Bytes{"k": s}} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d"} {
			fmt.Fprintf(&printed, verb+"\n", v)
		}
		slog.New(slog.NewJSONHandler(&printed, nil)).Info("log", "value", v)
		slog.New(slog.NewTextHandler(&printed, nil)).Info("log", "value", v)
		if err := json.NewEncoder(&printed).Encode(v); err != nil {
			t.Fatal(err)
		}
	}
	fmt.Fprintln(&printed, fmt.Errorf("with %v", s), s.String(), s.GoString())
	for _, form := range []string{"hunter2", fmt.Sprintf("%x", "hunter2"), fmt.Sprintf("%X", "hunter2"), "104 117 110", "0x68, 0x75"} {
		if strings.Contains(printed.String(), form) {
			t.Errorf("printed %q:\n%s", form, printed.String())
		}
	}
	if n := strings.Count(printed.String(), secret.Redacted); n < 60 {
		t.Errorf("REDACTED was printed %d times only:\n%s", n, printed.String())
	}
	if text, err := s.MarshalText(); err != nil || string(text) != secret.Redacted {
		t.Errorf("as text: %q, %v", text, err)
	}
}

func TestBytesAreCopied(t *testing.T) {
	b := []byte("hunter2")
	s := secret.New(b)
	b[0] = 'X'
	s.Reveal()[1] = 'X'
	if got := string(s.Reveal()); got != "hunter2" || s.Len() != 7 {
		t.Errorf("got %q of %d bytes", got, s.Len())
	}
}

func TestNothingEqualsNoSecret(t *testing.T) {
	a, b, none := secret.New([]byte("a")), secret.New([]byte("b")), secret.Bytes{}
	for _, tc := range []struct {
		x, y secret.Bytes
		want bool
	}{
		{a, a, true},
		{a, secret.New([]byte("a")), true},
		{a, b, false},
		{a, none, false},
		{none, a, false},
		{none, none, false},
		{secret.New(nil), secret.New(nil), false},
	} {
		if got := tc.x.Equal(tc.y); got != tc.want {
			t.Errorf("%q and %q: got %v, want %v", tc.x.Reveal(), tc.y.Reveal(), got, tc.want)
		}
	}
	if none.Len() != 0 || none.Reveal() != nil {
		t.Error("the zero secret holds something")
	}
}
