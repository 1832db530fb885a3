package initdata_test

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"flag"
	"maps"
	"os"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"portcullis.dev/portcullis/guest/initdata"
)

var update = flag.Bool("update", false, "write the golden files anew")

func TestBuildWritesGolden(t *testing.T) {
	got, err := initdata.Build(map[string]string{
		"policy.rego":     "package agent_policy\n\ndefault AllowRequestsFailingPolicy := true\n",
		"portcullis.toml": "name = \"web\"\n",
		"quotes":          "'''\"\"\"\\ \x00\x7f\r\n\té",
		"empty":           "",
		"ends-in-quote":   "it's '",
		"no-newline":      "a\nb",
	})
	if err != nil {
		t.Fatal(err)
	}
	const path = "testdata/initdata.toml"
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("every pod's policy hash would change; got\n%s\nwant\n%s", got, want)
	}
	const digest = "e5bff5f811c01ecf1499801a64bf6df9a9345f30fbce851383e2ca4a5fab227f"
	if h := initdata.Digest(got).String(); h != digest {
		t.Errorf("digest %s, want %s", h, digest)
	}
}

func TestBuildParseRoundTrip(t *testing.T) {
	text := rapid.OneOf(rapid.String(), rapid.StringOf(rapid.SampledFrom([]rune("'\"\\\n\r\t\x00 =#[]a"))))
	rapid.Check(t, func(t *rapid.T) {
		data := rapid.MapOfN(rapid.StringMatching(`[A-Za-z0-9_-][A-Za-z0-9._-]{0,20}`), text, 1, 5).Draw(t, "data")
		document, err := initdata.Build(data)
		if err != nil {
			t.Fatal(err)
		}
		got, err := initdata.Parse(document)
		if err != nil {
			t.Fatalf("%v in\n%s", err, document)
		}
		if !maps.Equal(got, data) {
			t.Fatalf("got %q, want %q from\n%s", got, data, document)
		}
		value, err := initdata.Encode(document)
		if err != nil {
			t.Fatal(err)
		}
		again, err := initdata.Decode(value)
		if err != nil || !bytes.Equal(again, document) {
			t.Fatalf("decoded %q, %v, want %q", again, err, document)
		}
		if second, _ := initdata.Encode(document); second != value {
			t.Fatal("encoding twice gives two values")
		}
	})
}

func TestBuildRefuses(t *testing.T) {
	for _, c := range []struct {
		name string
		data map[string]string
		want string
	}{
		{"nothing", nil, "0 strings"},
		{"path as key", map[string]string{"../etc/passwd": ""}, "not a file name"},
		{"hidden file as key", map[string]string{".profile": ""}, "not a file name"},
		{"empty key", map[string]string{"": "x"}, "not a file name"},
		{"not UTF-8", map[string]string{"a": "\xff"}, "not UTF-8"},
		{"too large", map[string]string{"a": strings.Repeat("x", initdata.MaxSize)}, "the limit is"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if b, err := initdata.Build(c.data); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %q, %v, want an error with %q", b, err, c.want)
			}
		})
	}
}

func TestParseRefuses(t *testing.T) {
	const head = "version = \"0.1.0\"\nalgorithm = \"sha256\"\n"
	for _, c := range []struct{ name, document, want string }{
		{"nothing", "", `version is missing, want "0.1.0"`},
		{"no data", head, "no table [data]"},
		{"empty data", head + "[data]\n", "0 strings"},
		{"other version", "version = \"0.2.0\"\nalgorithm = \"sha256\"\n[data]\na = \"\"\n", `version is "0.2.0"`},
		{"weaker algorithm", "version = \"0.1.0\"\nalgorithm = \"sha1\"\n[data]\na = \"\"\n", `algorithm is "sha1"`},
		{"version of another type", "version = 1\nalgorithm = \"sha256\"\n[data]\na = \"\"\n", "version is 1"},
		{"name in another case", "Version = \"0.1.0\"\nalgorithm = \"sha256\"\n[data]\na = \"\"\n", `unknown name "Version"`},
		{"unknown name", head + "x = 1\n[data]\na = \"\"\n", `unknown name "x"`},
		{"unknown table", head + "[data]\na = \"\"\n[more]\n", `unknown name "more"`},
		{"not a string", head + "[data]\na = 1\n", `data."a" is not a string`},
		{"nested table", head + "[data.a]\nb = \"\"\n", `data."a" is not a string`},
		{"duplicate key", head + "[data]\na = \"\"\na = \"\"\n", "parse initdata"},
		{"path as key", head + "[data]\n\"a/b\" = \"\"\n", "not a file name"},
		{"not TOML", "{}", "parse initdata"},
		{"too large", head + strings.Repeat("#", initdata.MaxSize), "the limit is"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if data, err := initdata.Parse([]byte(c.document)); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %q, %v, want an error with %q", data, err, c.want)
			}
		})
	}
}

func TestParseReportsEveryFault(t *testing.T) {
	_, err := initdata.Parse([]byte("version = \"9\"\nx = 1\n[data]\n\"a/b\" = 2\n"))
	if err == nil {
		t.Fatal("accepted")
	}
	for _, want := range []string{"version", "algorithm", `"x"`, `"a/b" is not a string`, "not a file name"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q lacks %q", err, want)
		}
	}
}

func TestParseReadsAnotherWriter(t *testing.T) {
	data, err := initdata.Parse([]byte("algorithm='sha256' # as Kata's documentation writes it\nversion=\"0.1.0\"\n[data]\n" +
		"\"aa.toml\" = '''\nx\n'''\npolicy = \"p\"\n"))
	if err != nil || data["aa.toml"] != "x\n" || data["policy"] != "p" {
		t.Errorf("got %q, %v", data, err)
	}
}

func TestDecodeRefuses(t *testing.T) {
	pack := func(text string) []byte {
		var b bytes.Buffer
		z := gzip.NewWriter(&b)
		_, _ = z.Write([]byte(text))
		_ = z.Close()
		return b.Bytes()
	}
	encode := base64.StdEncoding.EncodeToString
	for _, c := range []struct{ name, value, want string }{
		{"nothing", "", "gzip"},
		{"not base64", "!", "illegal base64"},
		{"not gzip", encode([]byte("plain text, not gzip")), "gzip"},
		{"cut off", encode(pack("some text")[:20]), "gzip"},
		{"a second member", encode(append(pack("a"), pack("b")...)), "bytes follow the end"},
		{"bytes behind", encode(append(pack("a"), 0)), "bytes follow the end"},
		{"bomb", encode(pack(strings.Repeat("\x00", initdata.MaxSize+1))), "inflates to more"},
		{"too long", strings.Repeat("A", initdata.MaxEncoded+4), "the limit is"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if b, err := initdata.Decode(c.value); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %q, %v, want an error with %q", b, err, c.want)
			}
		})
	}
}

func TestEncodeRefusesWhatKubernetesWould(t *testing.T) {
	var random strings.Builder // hardly compressible
	seed := uint32(1)
	for random.Len() < 2*initdata.MaxEncoded {
		seed = seed*1664525 + 1013904223
		random.WriteByte(byte(seed >> 24))
	}
	if v, err := initdata.Encode([]byte(random.String())); err == nil || !strings.Contains(err.Error(), "Kubernetes allows") {
		t.Errorf("got %d bytes, %v", len(v), err)
	}
}
