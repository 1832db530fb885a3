// Package testenvoy finds the Envoy that tests run. There is no test double for it: where it is missing, tests fail.
package testenvoy

import (
	"os"
	"path/filepath"
	"testing"
)

// Path is $PORTCULLIS_ENVOY, or the copy in the cache folder.
func Path(t testing.TB) string {
	t.Helper()
	path := os.Getenv("PORTCULLIS_ENVOY")
	if path == "" {
		cache, err := os.UserCacheDir()
		if err != nil {
			t.Fatal(err)
		}
		path = filepath.Join(cache, "portcullis", "envoy-1.40.0", "envoy")
	}
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("Envoy 1.40.0 is missing: %v (make fetches it into the cache folder; PORTCULLIS_ENVOY names another copy)", err)
	}
	return path
}
