// Package chromium drives a real browser in tests of pages: over the pipe of the Chrome DevTools Protocol, without a library
// and without a port that anybody else could reach.
package chromium

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// Browser is a headless browser with one page.
type Browser struct {
	to      *os.File
	session string

	mu      sync.Mutex
	last    int
	answers map[int]chan answer
	events  []Event
	news    chan struct{} // closed and made anew at each event
	err     error
}

// Event is something that the page did.
type Event struct {
	Method string          `json:"method"`
	Params json.RawMessage `json:"params"`
}

type answer struct {
	Result json.RawMessage
	Error  *struct{ Message string }
}

// Patience bounds one command. Browsers start slowly on a busy machine.
const Patience = time.Minute

// Start starts a browser, which ends with the test. Without one the test is skipped, loudly; with CI=true it fails.
func Start(t *testing.T) *Browser {
	t.Helper()
	path, err := exec.LookPath("chromium")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("no browser: %v: make test-packages installs the package chromium", err)
		}
		t.Skipf("SKIPPED, no browser: %v: make test-packages installs the package chromium", err)
	}
	fromTest, toBrowser, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	fromBrowser, toTest, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	// Not t.TempDir: what the browser leaves running for a moment may still write there, and that is no fault of the test's.
	home, err := os.MkdirTemp("", "chromium-")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	// What it would ask of the network by itself (updates, sync) is switched off; the page's own requests are watched.
	cmd := exec.CommandContext(ctx, path, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
		"--remote-debugging-pipe", "--user-data-dir="+filepath.Join(home, "profile"), "--no-first-run", "--disable-background-networking",
		"--disable-component-update", "--disable-sync", "--disable-extensions", "--hide-scrollbars", "--force-color-profile=srgb",
		"about:blank")
	cmd.ExtraFiles = []*os.File{fromTest, toTest} // 3 and 4, as --remote-debugging-pipe wants them
	cmd.Env = append(os.Environ(), "HOME="+home)
	cmd.WaitDelay = 10 * time.Second
	if err := cmd.Start(); err != nil {
		cancel()
		t.Fatal(err)
	}
	fromTest.Close()
	toTest.Close()
	b := &Browser{to: toBrowser, answers: make(map[int]chan answer), news: make(chan struct{})}
	read := make(chan struct{})
	go func() {
		defer close(read)
		b.read(fromBrowser)
	}()
	t.Cleanup(func() {
		// Asked to close it ends its own children; killed it would leave them.
		_ = b.send(0, "Browser.close", struct{}{}, false)
		ended := make(chan struct{})
		go func() {
			_ = cmd.Wait()
			close(ended)
		}()
		select {
		case <-ended:
		case <-time.After(20 * time.Second):
			cancel()
			<-ended
		}
		cancel()
		toBrowser.Close()
		fromBrowser.Close()
		<-read
		for range 100 {
			if os.RemoveAll(home) == nil {
				break
			}
			time.Sleep(50 * time.Millisecond)
		}
	})
	b.attach(t)
	return b
}

func (b *Browser) attach(t *testing.T) {
	t.Helper()
	var created struct{ TargetID string }
	b.Call(t, "Target.createTarget", map[string]any{"url": "about:blank"}, &created)
	var attached struct{ SessionID string }
	b.Call(t, "Target.attachToTarget", map[string]any{"targetId": created.TargetID, "flatten": true}, &attached)
	b.session = attached.SessionID
	for _, domain := range []string{"Page", "Network", "Log", "Runtime", "Audits", "Accessibility"} {
		b.Call(t, domain+".enable", struct{}{}, nil)
	}
}

// Call sends a command and decodes its result into result, which may be nil.
func (b *Browser) Call(t *testing.T, method string, params, result any) {
	t.Helper()
	b.mu.Lock()
	b.last++
	id, ch := b.last, make(chan answer, 1)
	b.answers[id] = ch
	failed := b.err
	b.mu.Unlock()
	if failed != nil {
		t.Fatalf("%s: the browser is gone: %v", method, failed)
	}
	if err := b.send(id, method, params, b.session != ""); err != nil {
		t.Fatalf("%s: %v", method, err)
	}
	select {
	case a, ok := <-ch:
		switch {
		case !ok:
			t.Fatalf("%s: the browser is gone", method)
		case a.Error != nil:
			t.Fatalf("%s: %s", method, a.Error.Message)
		case result != nil:
			if err := json.Unmarshal(a.Result, result); err != nil {
				t.Fatalf("%s: %v", method, err)
			}
		}
	case <-time.After(Patience):
		t.Fatalf("%s: no answer within %v", method, Patience)
	}
}

func (b *Browser) send(id int, method string, params any, toPage bool) error {
	message := map[string]any{"id": id, "method": method, "params": params}
	if toPage {
		message["sessionId"] = b.session
	}
	text, err := json.Marshal(message)
	if err != nil {
		return err
	}
	_, err = b.to.Write(append(text, 0))
	return err
}

func (b *Browser) read(from *os.File) {
	r := bufio.NewReader(from)
	for {
		text, err := r.ReadBytes(0)
		if err != nil {
			b.mu.Lock()
			b.err = err
			for id, ch := range b.answers {
				close(ch)
				delete(b.answers, id)
			}
			b.mu.Unlock()
			return
		}
		var m struct {
			ID int
			Event
			answer
		}
		if json.Unmarshal(text[:len(text)-1], &m) != nil {
			continue
		}
		b.mu.Lock()
		if ch := b.answers[m.ID]; ch != nil {
			delete(b.answers, m.ID)
			ch <- m.answer
		} else if m.Method != "" {
			b.events = append(b.events, m.Event)
			close(b.news)
			b.news = make(chan struct{})
		}
		b.mu.Unlock()
	}
}

// Open loads url and returns when it is loaded. Events of before are forgotten.
func (b *Browser) Open(t *testing.T, url string) {
	t.Helper()
	b.mu.Lock()
	b.events = nil
	b.mu.Unlock()
	var navigated struct{ ErrorText string }
	b.Call(t, "Page.navigate", map[string]any{"url": url}, &navigated)
	if navigated.ErrorText != "" {
		t.Fatalf("open %s: %s", url, navigated.ErrorText)
	}
	deadline := time.After(Patience)
	for {
		b.mu.Lock()
		news := b.news
		for _, e := range b.events {
			if e.Method == "Page.loadEventFired" {
				b.mu.Unlock()
				return
			}
		}
		b.mu.Unlock()
		select {
		case <-news:
		case <-deadline:
			t.Fatalf("open %s: it does not load within %v", url, Patience)
		}
	}
}

// Events are what the page did since it was opened. A command is answered behind all events before it, so there is nothing
// to wait for.
func (b *Browser) Events(t *testing.T) []Event {
	t.Helper()
	b.Evaluate(t, "0", nil)
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]Event(nil), b.events...)
}

// Evaluate evaluates an expression in the page, which the page's policy does not hinder, and decodes its value.
func (b *Browser) Evaluate(t *testing.T, expression string, value any) {
	t.Helper()
	var r struct {
		Result           struct{ Value json.RawMessage }
		ExceptionDetails *struct {
			Text      string
			Exception struct{ Description string }
		}
	}
	b.Call(t, "Runtime.evaluate", map[string]any{"expression": expression, "returnByValue": true, "awaitPromise": true}, &r)
	if e := r.ExceptionDetails; e != nil {
		t.Fatalf("evaluate: %s %s", e.Text, e.Exception.Description)
	}
	if value != nil {
		if err := json.Unmarshal(r.Result.Value, value); err != nil {
			t.Fatalf("evaluate: %v: %s", err, r.Result.Value)
		}
	}
}

// Size makes the window so many pixels wide and high.
func (b *Browser) Size(t *testing.T, width, height int) {
	t.Helper()
	b.Call(t, "Emulation.setDeviceMetricsOverride",
		map[string]any{"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}, nil)
}

// Media emulates a medium, screen or print, and a colour scheme, light or dark.
func (b *Browser) Media(t *testing.T, medium, scheme string) {
	t.Helper()
	b.Call(t, "Emulation.setEmulatedMedia", map[string]any{
		"media": medium, "features": []map[string]string{{"name": "prefers-color-scheme", "value": scheme}},
	}, nil)
}

// Screenshot is the whole page as PNG.
func (b *Browser) Screenshot(t *testing.T) []byte {
	t.Helper()
	var r struct{ Data []byte }
	b.Call(t, "Page.captureScreenshot", map[string]any{"format": "png", "captureBeyondViewport": true}, &r)
	return r.Data
}

// PDF is the page as it is printed.
func (b *Browser) PDF(t *testing.T) []byte {
	t.Helper()
	var r struct{ Data []byte }
	b.Call(t, "Page.printToPDF", map[string]any{"preferCSSPageSize": true, "paperWidth": 8.27, "paperHeight": 11.69}, &r)
	return r.Data
}

// Complaints are what the browser would write to its console: errors, violations of the page's policy, and issues.
func Complaints(events []Event) error {
	var all []error
	for _, e := range events {
		switch e.Method {
		case "Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Audits.issueAdded":
			all = append(all, fmt.Errorf("%s %s", e.Method, e.Params))
		}
	}
	return errors.Join(all...)
}
