package collateral_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-sev-guest/abi"
	"github.com/google/go-sev-guest/kds"
	"github.com/google/go-tdx-guest/pcs"
	"github.com/prometheus/client_golang/prometheus"

	"portcullis.dev/portcullis/attestation"
	"portcullis.dev/portcullis/attestation/collateral"
)

var (
	vcek    = kds.VCEKCertURL("Milan", bytes.Repeat([]byte{0xab}, abi.ChipIDSize), 0x7308000000000003)
	chain   = kds.ProductCertChainURL(abi.VcekReportSigner, "Milan")
	crl     = kds.CrlLinkByKey("Milan", abi.VcekReportSigner)
	tcbInfo = pcs.TcbInfoURL("50806f000000")
	qe      = pcs.QeIdentityURL()
	pckCRL  = pcs.PckCrlURL("platform")
)

// documents are what the vendors answer: real certificates and CRLs, signed by a key of the test's.
var documents = sync.OnceValue(func() (d struct {
	key            *ecdsa.PrivateKey
	ca             *x509.Certificate
	cert, crl, pem []byte
},
) {
	must := func(err error) {
		if err != nil {
			panic(err)
		}
	}
	var err error
	d.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "a vendor"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		SubjectKeyId: []byte{1},
	}
	d.cert, err = x509.CreateCertificate(rand.Reader, template, template, d.key.Public(), d.key)
	must(err)
	d.ca, err = x509.ParseCertificate(d.cert)
	must(err)
	d.crl, err = x509.CreateRevocationList(rand.Reader, &x509.RevocationList{
		Number: big.NewInt(1), ThisUpdate: time.Now(), NextUpdate: time.Now().Add(time.Hour),
	}, d.ca, d.key)
	must(err)
	block := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: d.cert})
	d.pem = append(block, block...)
	return d
})

// identity is a QE identity as far as a cache looks at it.
func identity(n int) string {
	return fmt.Sprintf(`{"enclaveIdentity":{"nextUpdate":"2026-12-25T12:00:00Z"},"n":%d}`, n)
}

// An answer is what a vendor says to one request.
type answer func(http.ResponseWriter, *http.Request)

func says(body []byte) answer {
	return func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(body) }
}

func status(code int) answer {
	return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }
}

// A world is the vendors on the loopback interface, under a CA of their own, and a clock.
type world struct {
	t         *testing.T
	transport *http.Transport
	log       bytes.Buffer
	logMutex  sync.Mutex

	mu      sync.Mutex
	now     time.Time
	answers map[string]answer
	fetches map[string]int
	down    bool   // nobody answers
	gone    string // this host does not
}

func (w *world) Write(b []byte) (int, error) {
	w.logMutex.Lock()
	defer w.logMutex.Unlock()
	return w.log.Write(b)
}

func (w *world) logged(text string) int {
	w.logMutex.Lock()
	defer w.logMutex.Unlock()
	return strings.Count(w.log.String(), text)
}

func newWorld(t *testing.T) *world {
	t.Helper()
	d := documents()
	w := &world{
		t: t, now: time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC), fetches: map[string]int{},
		answers: map[string]answer{
			vcek: says(d.cert), chain: says(d.pem), crl: says(d.crl), pckCRL: says(d.crl),
			tcbInfo: func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("TCB-Info-Issuer-Chain", "chain")
				w.Header().Set("Set-Cookie", "anything")
				_, _ = io.WriteString(w, `{"tcbInfo":{}}`)
			},
			qe: says([]byte(identity(0))),
		},
	}
	server := httptest.NewUnstartedServer(http.HandlerFunc(w.serve))
	server.TLS = &tls.Config{Certificates: []tls.Certificate{certificate(t, hosts()...)}}
	server.StartTLS()
	t.Cleanup(server.Close)
	roots := x509.NewCertPool()
	roots.AddCert(d.ca)
	w.transport = &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: roots},
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			w.mu.Lock()
			down := w.down || w.gone == strings.TrimSuffix(address, ":443")
			w.mu.Unlock()
			if down {
				return nil, errors.New("the network is unreachable")
			}
			return new(net.Dialer).DialContext(ctx, network, server.Listener.Addr().String())
		},
	}
	t.Cleanup(w.transport.CloseIdleConnections)
	return w
}

// hosts are the vendors' names, as the libraries have them.
func hosts() (names []string) {
	for _, address := range []string{vcek, tcbInfo} {
		u, err := url.Parse(address)
		if err != nil {
			panic(err)
		}
		names = append(names, u.Host)
	}
	return names
}

func certificate(t *testing.T, names ...string) tls.Certificate {
	t.Helper()
	d := documents()
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(2), DNSNames: names, NotBefore: d.ca.NotBefore, NotAfter: d.ca.NotAfter,
	}, d.ca, d.key.Public(), d.key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: d.key}
}

func (w *world) serve(rw http.ResponseWriter, r *http.Request) {
	address := "https://" + r.Host + r.URL.RequestURI()
	w.mu.Lock()
	w.fetches[address]++
	answer := w.answers[address]
	w.mu.Unlock()
	if answer == nil {
		answer = status(http.StatusNotFound)
	}
	answer(rw, r)
}

func (w *world) cache(dir string) *collateral.Cache {
	w.t.Helper()
	c, err := collateral.New(collateral.Config{
		Dir: dir, Log: slog.New(slog.NewTextHandler(w, nil)), Transport: w.transport,
		Now: func() time.Time {
			w.mu.Lock()
			defer w.mu.Unlock()
			return w.now
		},
	})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() {
		if err := c.Close(); err != nil {
			w.t.Error(err)
		}
	})
	return c
}

func (w *world) answer(url string, a answer) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.answers[url] = a
}

func (w *world) pass(d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.now = w.now.Add(d)
}

func (w *world) setDown(down bool) {
	w.mu.Lock()
	w.down = down
	w.mu.Unlock()
	w.transport.CloseIdleConnections()
}

func (w *world) fetched(url string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.fetches[url]
}

// await waits for a condition that other goroutines bring about.
func await(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !condition(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("it never came that %s", what)
		}
	}
}

func get(t *testing.T, c *collateral.Cache, url string) string {
	t.Helper()
	_, body, err := c.Get(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}

// A pod behind the egress lock reaches the vendors by marked sockets, names and all.
func TestVendorsAreReachedByTheDialer(t *testing.T) {
	for _, variable := range []string{"HTTPS_PROXY", "https_proxy"} {
		if os.Getenv(variable) != "" {
			t.Skipf("SKIPPED: %s leads elsewhere", variable)
		}
	}
	ours := errors.New("our dialer was asked")
	c, err := collateral.New(collateral.Config{Dialer: &net.Dialer{
		Resolver: &net.Resolver{
			PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) { return nil, ours },
		},
		Control: func(string, string, syscall.RawConn) error { return ours },
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	refused(t, c, crl, ours.Error())
}

// refused sees that Get fails as an Unavailable with that text in it.
func refused(t *testing.T, c *collateral.Cache, url, text string) {
	t.Helper()
	_, body, err := c.Get(t.Context(), url)
	if _, ok := errors.AsType[*attestation.Unavailable](err); !ok || body != nil || !strings.Contains(err.Error(), text) {
		t.Errorf("%s: got %d bytes and %v, want an Unavailable about %q", url, len(body), err, text)
	}
}

func TestEveryKindIsFetchedAndKept(t *testing.T) {
	w := newWorld(t)
	c := w.cache("")
	for range 3 {
		for _, url := range []string{vcek, chain, crl, tcbInfo, qe, pckCRL} {
			if get(t, c, url) == "" {
				t.Errorf("%s: nothing", url)
			}
			if n := w.fetched(url); n != 1 {
				t.Errorf("%s: fetched %d times, want once", url, n)
			}
		}
	}
}

func TestOnlyIssuerChainsAreKeptOfTheHeaders(t *testing.T) {
	w := newWorld(t)
	header, _, err := w.cache("").Get(t.Context(), tcbInfo)
	if err != nil {
		t.Fatal(err)
	}
	if len(header) != 1 || header.Get(pcs.TcbInfoIssuerChainPhrase) != "chain" {
		t.Errorf("got %v, want the issuer chain alone", header)
	}
}

func TestWhatACallerGetsIsItsOwn(t *testing.T) {
	w := newWorld(t)
	c := w.cache("")
	for range 2 {
		header, body, err := c.Get(t.Context(), tcbInfo)
		if err != nil || string(body) != `{"tcbInfo":{}}` || header.Get(pcs.TcbInfoIssuerChainPhrase) != "chain" {
			t.Fatalf("got %v, %s, %v", header, body, err)
		}
		clear(body)
		header[pcs.TcbInfoIssuerChainPhrase][0] = ""
	}
}

func TestManyCallersAreOneRequest(t *testing.T) {
	w := newWorld(t)
	release := make(chan struct{})
	w.answer(crl, func(rw http.ResponseWriter, r *http.Request) {
		<-release
		says(documents().crl)(rw, r)
	})
	c := w.cache("")
	const callers = 200
	var all sync.WaitGroup
	var good atomic.Int64
	var started sync.WaitGroup
	started.Add(callers)
	for range callers {
		all.Go(func() {
			started.Done()
			if _, body, err := c.Get(t.Context(), crl); err != nil || !bytes.Equal(body, documents().crl) {
				t.Errorf("got %d bytes, %v", len(body), err)
			} else {
				good.Add(1)
			}
		})
	}
	started.Wait()
	await(t, "the vendor is asked", func() bool { return w.fetched(crl) > 0 })
	close(release)
	all.Wait()
	if n := w.fetched(crl); n != 1 || good.Load() != callers {
		t.Errorf("%d of %d callers got it, by %d requests; want all, by one", good.Load(), callers, n)
	}
}

// hang makes the vendor answer nothing until the client goes, which gone then says.
func (w *world) hang(url string) (asked, gone chan struct{}) {
	asked, gone = make(chan struct{}, 16), make(chan struct{}, 16)
	w.answer(url, func(_ http.ResponseWriter, r *http.Request) {
		asked <- struct{}{}
		<-r.Context().Done()
		gone <- struct{}{}
	})
	return asked, gone
}

func TestACallerWhoGoesStopsTheFetch(t *testing.T) {
	w := newWorld(t)
	asked, gone := w.hang(crl)
	c := w.cache("")
	ctx, cancel := context.WithCancel(t.Context())
	failed := make(chan error, 1)
	go func() {
		_, _, err := c.Get(ctx, crl)
		failed <- err
	}()
	<-asked
	begin := time.Now()
	cancel()
	err := <-failed
	if took := time.Since(begin); took > 100*time.Millisecond {
		t.Errorf("the caller left after %v, want at most 100ms", took)
	}
	if _, ok := errors.AsType[*attestation.Unavailable](err); !ok || !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want an Unavailable that says context canceled", err)
	}
	<-gone
	await(t, "the fetch is abandoned", func() bool { return values(t, c)["fetches_total abandoned amd"] == 1 })
	// It is no fault of the vendor's, nor of the next caller's.
	w.answer(crl, says(documents().crl))
	get(t, c, crl)
	if w.logged("does not answer") != 0 {
		t.Errorf("a caller who left counts as a vendor that is down:\n%s", w.log.String())
	}
}

func TestTheFetchGoesOnForThoseWhoStay(t *testing.T) {
	w := newWorld(t)
	asked, gone := make(chan struct{}), make(chan struct{}, 1)
	release := make(chan struct{})
	w.answer(crl, func(rw http.ResponseWriter, r *http.Request) {
		asked <- struct{}{}
		select {
		case <-release:
			says(documents().crl)(rw, r)
		case <-r.Context().Done():
			gone <- struct{}{}
		}
	})
	c := w.cache("")
	first, leave := context.WithCancel(t.Context())
	left, stayed := make(chan error, 1), make(chan error, 1)
	go func() {
		_, _, err := c.Get(first, crl)
		left <- err
	}()
	<-asked
	waiting := make(chan struct{})
	go func() {
		close(waiting)
		_, _, err := c.Get(t.Context(), crl)
		stayed <- err
	}()
	<-waiting
	await(t, "both wait", func() bool { return collateral.Waiters(c, crl) == 2 })
	leave()
	if err := <-left; !errors.Is(err, context.Canceled) {
		t.Errorf("who left got %v", err)
	}
	close(release)
	if err := <-stayed; err != nil {
		t.Errorf("who stayed got %v", err)
	}
	if len(gone) > 0 || w.fetched(crl) != 1 {
		t.Errorf("the fetch was stopped, or made %d times", w.fetched(crl))
	}
}

func TestAVendorThatIsDown(t *testing.T) {
	w := newWorld(t)
	c := w.cache("")
	get(t, c, crl)
	get(t, c, vcek)
	w.gone = hosts()[0]
	w.setDown(false)
	w.pass(12 * time.Hour)
	for range 50 {
		get(t, c, crl) // far beyond its hour, and nothing better can be had
		get(t, c, vcek)
	}
	refused(t, c, chain, "the VCEK certificate chain of Milan is not available: ")
	refused(t, c, chain, "no answer since 2026-11-26T00:00:00Z: ")
	get(t, c, qe) // another vendor's
	for range 3 { // it is asked again, by and by
		w.pass(time.Minute)
		refused(t, c, chain, "unreachable")
		refused(t, c, chain, "no answer since 2026-11-26T00:00:00Z: ")
	}
	if n := w.logged("does not answer"); n != 1 {
		t.Errorf("the log says %d times that a vendor is down, want once:\n%s", n, w.log.String())
	}

	w.gone = ""
	refused(t, c, chain, "no answer since") // not even asked
	if w.fetched(chain) != 0 {
		t.Error("the vendor was asked before its back-off ended")
	}
	w.pass(time.Minute)
	get(t, c, chain)
	if n := w.logged("answers again"); n != 1 {
		t.Errorf("the log says %d times that the vendor is back, want once:\n%s", n, w.log.String())
	}
	get(t, c, crl)
	if n := w.fetched(crl); n != 2 {
		t.Errorf("the CRL was fetched %d times, want anew once the vendor was back", n)
	}
}

func TestAVendorThatSaysComeBackLater(t *testing.T) {
	for _, code := range []int{429, 502, 503, 504} {
		w := newWorld(t)
		c := w.cache("")
		w.answer(crl, func(rw http.ResponseWriter, _ *http.Request) {
			rw.Header().Set("Retry-After", "120")
			rw.WriteHeader(code)
		})
		refused(t, c, crl, fmt.Sprintf("the vendor answers %d", code))
		w.pass(119 * time.Second)
		refused(t, c, vcek, "no answer since")
		w.pass(2 * time.Second)
		get(t, c, vcek)
	}
}

func TestADocumentThatIsRefusedIsNotAskedForAgainAtOnce(t *testing.T) {
	w := newWorld(t)
	c := w.cache("")
	w.answer(vcek, status(http.StatusNotFound))
	for range 5 {
		refused(t, c, vcek, "the VCEK certificate of a chip of Milan is not available: the vendor answers 404")
	}
	if n := w.fetched(vcek); n != 1 {
		t.Errorf("it was asked for %d times, want once", n)
	}
	get(t, c, crl) // others are not its business
	w.answer(vcek, says(documents().cert))
	w.pass(61 * time.Second)
	get(t, c, vcek)
}

func TestWhatIsNotTheDocumentIsRefused(t *testing.T) {
	page := says([]byte("<html>Sign in to the network</html>"))
	for _, tc := range []struct {
		name, url string
		answer    answer
		fault     string
	}{
		{"certificate is a page", vcek, page, "something else"},
		{"chain is a page", chain, page, "0 certificates in PEM, want 2"},
		{"chain of one", chain, says(documents().pem[:len(documents().pem)/2]), "1 certificates in PEM, want 2"},
		{"CRL is a page", crl, page, "something else"},
		{"CRL is a certificate", pckCRL, says(documents().cert), "something else"},
		{"TCB info is a page", tcbInfo, page, "not JSON"},
		{"empty", qe, says(nil), "not JSON"},
		{"other JSON", qe, says([]byte(`{"error":"try later"}`)), "JSON without tcbInfo or enclaveIdentity"},
		{"without end", qe, says(bytes.Repeat([]byte{' '}, 2<<20+1)), "longer than 2097152 bytes"},
		{"cut short", qe, func(rw http.ResponseWriter, _ *http.Request) {
			rw.Header().Set("Content-Length", "100")
			_, _ = io.WriteString(rw, "{}")
		}, "unexpected EOF"},
		{"redirected", qe, func(rw http.ResponseWriter, r *http.Request) {
			http.Redirect(rw, r, tcbInfo, http.StatusFound)
		}, "the vendor answers 302"},
		{"no content", qe, status(http.StatusNoContent), "the vendor answers 204"},
		{"server error", qe, status(http.StatusInternalServerError), "the vendor answers 500"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t)
			w.answer(tc.url, tc.answer)
			c := w.cache(t.TempDir())
			refused(t, c, tc.url, tc.fault)
			if w.fetched(tcbInfo) > 0 && tc.url != tcbInfo {
				t.Error("a redirection was followed")
			}
		})
	}
}

// Evidence names the URL, so nothing but what the vendors publish is asked for, whoever asks.
func TestNothingElseIsFetched(t *testing.T) {
	w := newWorld(t)
	c := w.cache("")
	host := func(url, other string) string {
		rest := strings.TrimPrefix(url, "https://")
		return "https://" + other + rest[strings.Index(rest, "/"):]
	}
	for _, url := range []string{
		"", "x", "https://", "http://169.254.169.254/latest/meta-data", "https://localhost/vcek/v1/Milan/crl",
		strings.Replace(crl, "https", "http", 1), strings.Replace(crl, "https", "file", 1),
		host(crl, "localhost"), host(crl, hosts()[0]+".evil.example"), host(crl, hosts()[0]+":8443"),
		host(crl, "user@"+hosts()[0]), host(crl, hosts()[0]+"@evil.example"), host(crl, hosts()[1]),
		crl + "/../../../etc", crl + "?x=1", crl + "#x", strings.Replace(crl, "Milan", "..", 1),
		strings.Replace(crl, "Milan", "Milan/../Milan", 1), strings.Replace(crl, "crl", "%63rl", 1), crl + "\n",
		strings.Replace(vcek, "?", "/", 1), vcek + strings.Repeat("0", 512),
		pcs.PckCrlURL("other"), pcs.TcbInfoURL("0"), pcs.TcbInfoURL("50806f000000&x=1"), qe + "/", qe + "?update=early",
		strings.ToUpper(crl),
	} {
		refused(t, c, url, "no address that AMD or Intel publish")
	}
	if len(w.fetches) > 0 {
		t.Errorf("asked for %v", w.fetches)
	}
}

func TestAServerThatIsNotTheVendorIsNotBelieved(t *testing.T) {
	w := newWorld(t)
	w.transport.TLSClientConfig.RootCAs = x509.NewCertPool()
	refused(t, w.cache(""), crl, "certificate signed by unknown authority")
}

func TestRevocationsAreSeenWithinTheHour(t *testing.T) {
	w := newWorld(t)
	c := w.cache("")
	get(t, c, qe)
	get(t, c, vcek)
	w.pass(59 * time.Minute)
	get(t, c, qe)
	if n := w.fetched(qe); n != 1 {
		t.Fatalf("fetched %d times within the hour", n)
	}

	// For another hour nobody waits: what is there serves, and is renewed beside.
	w.answer(qe, says([]byte(identity(1))))
	w.pass(2 * time.Minute)
	if got := get(t, c, qe); got != identity(0) {
		t.Errorf("got %s, want what was there", got)
	}
	await(t, "it is renewed", func() bool { return get(t, c, qe) == identity(1) })
	if n := w.fetched(qe); n != 2 {
		t.Errorf("fetched %d times, want twice", n)
	}

	// Nobody asked for long: then a caller waits for the newest.
	w.answer(qe, says([]byte(identity(2))))
	w.pass(24 * time.Hour)
	if got := get(t, c, qe); got != identity(2) {
		t.Errorf("got %s, want the newest", got)
	}
	get(t, c, vcek)
	if n := w.fetched(vcek); n != 1 {
		t.Errorf("the chip's certificate was fetched %d times, want once", n)
	}
}

// A document that its own date makes useless is no longer fresh, whatever its age.
func TestNextUpdateIsNotSleptThrough(t *testing.T) {
	w := newWorld(t)
	w.pass(time.Date(2026, 12, 25, 11, 50, 0, 0, time.UTC).Sub(w.now))
	c := w.cache("")
	get(t, c, qe)
	w.answer(qe, says([]byte(strings.Replace(identity(1), "25T12:00", "25T12:05", 1))))
	w.pass(9 * time.Minute)
	if got := get(t, c, qe); got != identity(0) {
		t.Errorf("got %s before NextUpdate, want what is held", got)
	}
	w.pass(2 * time.Minute)
	if got := get(t, c, qe); got == identity(0) {
		t.Errorf("got %s after NextUpdate, want the newer one", got)
	}
	// A vendor that itself has nothing better is asked once a minute.
	w.pass(10 * time.Minute)
	for range 50 {
		get(t, c, qe)
	}
	if n := w.fetched(qe); n != 3 {
		t.Errorf("it was fetched %d times, want 3", n)
	}
}

func TestAClockSetBackMakesNothingFresh(t *testing.T) {
	w := newWorld(t)
	c := w.cache("")
	get(t, c, qe)
	w.pass(-30 * 24 * time.Hour)
	get(t, c, qe)
	if n := w.fetched(qe); n != 2 {
		t.Errorf("fetched %d times, want twice", n)
	}
}

func TestRefreshFetchesAnewWhatChanges(t *testing.T) {
	w := newWorld(t)
	c := w.cache(t.TempDir())
	for range 2 {
		if err := c.Refresh(t.Context(), []string{vcek, qe}); err != nil {
			t.Fatal(err)
		}
	}
	if w.fetched(vcek) != 1 || w.fetched(qe) != 2 {
		t.Errorf("fetched the certificate %d times and the QE identity %d times, want 1 and 2", w.fetched(vcek), w.fetched(qe))
	}
	w.answer(qe, status(http.StatusNotFound))
	w.answer(crl, status(http.StatusNotFound))
	err := c.Refresh(t.Context(), []string{qe, vcek, crl})
	for _, want := range []string{
		"the QE identity is not available: the vendor answers 404", "the CRL of Milan is not available",
	} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q in it", err, want)
		}
	}
	get(t, c, qe)
}

// values are the metrics, by name and labels' values.
func values(t *testing.T, c *collateral.Cache) map[string]float64 {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(c)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			name := strings.TrimPrefix(f.GetName(), "portcullis_collateral_")
			for _, l := range m.GetLabel() {
				name += " " + l.GetValue()
			}
			got[name] = m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	return got
}

func TestMetrics(t *testing.T) {
	w := newWorld(t)
	c := w.cache("")
	get(t, c, qe)
	get(t, c, qe)
	refused(t, c, pcs.TcbInfoURL("000000000000"), "404")
	w.setDown(true)
	w.pass(12 * time.Hour)
	get(t, c, qe)
	refused(t, c, crl, "unreachable")
	got := values(t, c)
	for name, want := range map[string]float64{
		"fetches_total ok intel": 1, "fetches_total refused intel": 1, "fetches_total down amd": 1,
		"fetches_total ok amd": 0, "fetches_total abandoned amd": 0,
		"hits_total": 1, "stale_total": 1, "entries": 1, "vendor_up amd": 0, "last_answer_seconds amd": 0,
		"last_answer_seconds intel": float64(time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC).Unix()),
	} {
		if value, ok := got[name]; !ok || value != want {
			t.Errorf("%s is %v, want %v; all: %v", name, value, want, got)
		}
	}
	if got["bytes"] == 0 {
		t.Error("bytes is 0")
	}
}

// roundTrip is a transport in this process, for tests in a bubble of their own time.
type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func ok(body string) (*http.Response, error) {
	return &http.Response{StatusCode: 200, Body: io.NopCloser(strings.NewReader(body)), Header: http.Header{}}, nil
}

func TestAVendorThatSaysNothingIsGivenUpAndLeftAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked atomic.Int64
		c, err := collateral.New(collateral.Config{Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
			asked.Add(1)
			<-r.Context().Done()
			return nil, r.Context().Err()
		})})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		begin := time.Now()
		// One queue of a hundred documents: it does not take a hundred times as long.
		var all sync.WaitGroup
		for i := range 100 {
			all.Go(func() {
				if _, _, err := c.Get(t.Context(), pcs.TcbInfoURL(fmt.Sprintf("%012x", i))); err == nil {
					t.Error("nothing was an answer")
				}
			})
		}
		all.Wait()
		if took := time.Since(begin); took > 11*time.Second || asked.Load() > 8 {
			t.Errorf("giving up took %v and %d requests, want ten seconds and 8", took, asked.Load())
		}
		// Those eight were one failure: it is asked again after a second.
		asked.Store(0)
		time.Sleep(1100 * time.Millisecond)
		if _, _, err := c.Get(t.Context(), qe); err == nil || asked.Load() != 1 {
			t.Errorf("after a second, the vendor was asked %d times, want once", asked.Load())
		}
		// In the next hour it is asked once a minute or less, by one request, however many want an answer.
		asked.Store(0)
		for range 3600 {
			time.Sleep(time.Second)
			for i := range 3 {
				ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
				all.Go(func() {
					defer cancel()
					_, _, _ = c.Get(ctx, pcs.TcbInfoURL(fmt.Sprintf("%012x", i)))
				})
			}
		}
		all.Wait()
		if n := asked.Load(); n < 30 || n > 70 {
			t.Errorf("the vendor was asked %d times in an hour, want about once a minute", n)
		}
	})
}

// Nothing is left behind: a bubble does not end before its goroutines.
func TestCloseEndsEverything(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, err := collateral.New(collateral.Config{Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
			<-r.Context().Done()
			return nil, r.Context().Err()
		})})
		if err != nil {
			t.Fatal(err)
		}
		var all sync.WaitGroup
		for i := range 20 {
			all.Go(func() { _, _, _ = c.Get(t.Context(), pcs.TcbInfoURL(fmt.Sprintf("%012x", i))) })
		}
		synctest.Wait()
		begin := time.Now()
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		all.Wait()
		if took := time.Since(begin); took > 0 {
			t.Errorf("it took %v", took)
		}
		refused(t, c, qe, "the cache is closed")
	})
}

func TestMemoryIsBounded(t *testing.T) {
	long := string(documents().pem) + strings.Repeat("\n", 1<<20)
	renewed := 0
	c, err := collateral.New(collateral.Config{Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
		switch {
		case strings.HasSuffix(r.URL.Path, "/cert_chain"):
			return ok(long)
		case strings.HasSuffix(r.URL.Path, "/identity"):
			renewed++
		}
		return ok(identity(0))
	})})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	get(t, c, qe)
	for i := range 100 {
		get(t, c, kds.ProductCertChainURL(abi.VcekReportSigner, "Product"+strings.Repeat("x", i%8)+string(rune('a'+i/8))))
		get(t, c, qe) // in use, so it stays
	}
	entries, bytes := collateral.Held(c)
	if bytes > 64<<20 || entries < 50 || entries > 64 {
		t.Errorf("%d documents of 1 MiB, %d bytes, are held; want 64 MiB at most", entries, bytes)
	}
	for i := range 4200 {
		get(t, c, pcs.TcbInfoURL(fmt.Sprintf("%012x", i)))
		get(t, c, qe)
	}
	if renewed != 1 {
		t.Errorf("what is always in use was fetched %d times, want once", renewed)
	}
	if entries, _ := collateral.Held(c); entries != 4096 {
		t.Errorf("%d documents are held, want 4096 at most", entries)
	}
	if n := collateral.Failed(c, 3000); n > 1024 {
		t.Errorf("%d refusals are remembered, want 1024 at most", n)
	}
}

// What a validation pays for each document that is held.
func BenchmarkGetHeld(b *testing.B) {
	c, err := collateral.New(collateral.Config{Transport: roundTrip(func(*http.Request) (*http.Response, error) {
		return ok(string(documents().cert))
	})})
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, _, err := c.Get(b.Context(), vcek); err != nil {
				b.Error(err)
			}
		}
	})
}
