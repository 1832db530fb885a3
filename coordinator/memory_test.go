package coordinator_test

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"

	"portcullis.dev/portcullis/api"
	"portcullis.dev/portcullis/attestation/collateral"
	"portcullis.dev/portcullis/coordinator"
	"portcullis.dev/portcullis/manifest"
)

// held is what a process holds on to.
type held struct {
	heap        uint64 // octets, after garbage collection
	goroutines  int
	descriptors int
	resident    uint64 // octets
}

func (h held) String() string {
	return fmt.Sprintf("heap %d KiB, %d goroutines, %d file descriptors, %d MiB resident",
		h.heap>>10, h.goroutines, h.descriptors, h.resident>>20)
}

func holds(t *testing.T) (h held) {
	t.Helper()
	var m runtime.MemStats
	for range 3 { // what has a finalizer takes more than one
		runtime.GC()
	}
	runtime.ReadMemStats(&m)
	h.heap, h.goroutines = m.HeapAlloc, runtime.NumGoroutine()
	open, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	h.descriptors = len(open)
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kib, err := strconv.ParseUint(strings.Fields(rest)[0], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			h.resident = kib << 10
		}
	}
	return h
}

// The Coordinator holds nothing for a pod. A hundred thousand certificates, and a refusal for every tenth, leave it as
// large as a thousand do. The pods are in the same process, and leave nothing either.
func TestMemoryIsFlatOverManyCertificates(t *testing.T) {
	const warmUp, callers = 200, 8
	certificates := 1000
	if os.Getenv("PORTCULLIS_SOAK") != "" {
		certificates = 100_000
	}
	h := platforms(t)["SNP"]
	cache, err := collateral.New(collateral.Config{Transport: h.vendor})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cache.Close() })
	f := start(t, h.roots, func(c *coordinator.Config) {
		c.Collateral, c.Issuer = cache, h.machine(coordPolicy)
		c.Log = slog.New(slog.DiscardHandler) // the fixture's would grow
	})
	f.mustSet(t, newManifest(t, func(m *manifest.Manifest) { m.ReferenceValues = h.values }))

	issue := func(n int) {
		work := make(chan int)
		var wg sync.WaitGroup
		for range callers {
			wg.Go(func() {
				for i := range work {
					if err := f.askFor(t, h, i); err != nil {
						t.Error(err)
					}
				}
			})
		}
		for i := range n {
			work <- i
		}
		close(work)
		wg.Wait()
		if t.Failed() {
			t.FailNow()
		}
	}
	issue(warmUp)
	before := holds(t)
	issue(certificates)
	after := holds(t)
	t.Logf("before: %v", before)
	t.Logf("after %d certificates: %v", certificates, after)

	// 64 KiB is noise; the rest would be a certificate's.
	const most = 16
	if grown := int64(after.heap) - int64(before.heap); grown > 64<<10+int64(certificates)*most {
		t.Errorf("the heap grew by %d bytes, %d for each certificate", grown, grown/int64(certificates))
	}
	if after.goroutines > before.goroutines+callers || after.descriptors > before.descriptors+callers {
		t.Error("goroutines or file descriptors are left over")
	}
	if after.resident > before.resident+(64<<20) {
		t.Error("the resident memory grew by more than 64 MiB")
	}
}

// askFor is one pod's first start. Of ten, one has another image and is refused.
func (f *fixture) askFor(t *testing.T, h hardware, i int) error {
	p := forgottenPod(t, webPolicy)
	issuer := h.machine(webPolicy)
	stranger := i%10 == 9
	if stranger {
		issuer = h.stranger
	}
	nonce, err := f.Nonce(t.Context())
	if err != nil {
		return err
	}
	req := &api.CertificateRequest{
		Nonce: nonce, PublicKey: spki(t, &p.key.PublicKey), HPKEKey: p.hpkeKey.PublicKey().Bytes(),
	}
	if req.Evidence, err = issuer.Issue(t.Context(), req.ReportData()); err != nil {
		return err
	}
	p.sign(t, req)
	_, err = f.Certificate(t.Context(), *req)
	if stranger {
		if err == nil {
			return errors.New("another image got a certificate")
		}
		return nil
	}
	return err
}
