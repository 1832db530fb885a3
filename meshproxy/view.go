package meshproxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"time"

	"golang.org/x/net/netutil"
)

// viewed are the pages of Envoy's admin interface that may be read. Nothing of a request reaches Envoy: its path selects
// one of these constants, letter by letter.
var viewed = map[string]string{
	"/stats/prometheus": "/stats/prometheus",
	"/certs":            "/certs",
	"/listeners":        "/listeners",
	"/clusters":         "/clusters",
	"/server_info":      "/server_info",
}

// viewConnections bounds what a network can make the supervisor hold, which is in every pod. A scrape takes one.
const viewConnections = 32

// serveView answers on the admin port. To the guard it is a port like any other: behind mutual TLS unless the ingress
// configuration names it.
func (s *supervisor) serveView(ctx context.Context, l net.Listener) error {
	server := &http.Server{
		Handler:           s.view(),
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       5 * time.Second,
		WriteTimeout:      15 * time.Second,
		IdleTimeout:       5 * time.Second,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(s.Log.Handler(), slog.LevelWarn),
		// or else it answers OPTIONS * by itself
		DisableGeneralOptionsHandler: true,
	}
	stop := context.AfterFunc(ctx, func() { server.Close() })
	defer stop()
	if err := server.Serve(netutil.LimitListener(l, viewConnections)); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve the admin port: %w", err)
	}
	return nil
}

// view answers a request with one of a few pages. It looks at the path as it was sent, so that there is one spelling of each,
// and takes no body, so that there is nothing to disagree about where a request ends.
func (s *supervisor) view() http.Handler {
	metrics := s.metrics()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Content-Type-Options", "nosniff")
		path, _, _ := strings.Cut(r.RequestURI, "?")
		page, ofEnvoy := viewed[path]
		switch {
		case !ofEnvoy && path != "/ready" && path != "/metrics":
			refuse(w, "not found", http.StatusNotFound)
		case r.Method != http.MethodGet:
			w.Header().Set("Allow", http.MethodGet)
			refuse(w, "the admin view is read-only", http.StatusMethodNotAllowed)
		case r.ContentLength != 0:
			refuse(w, "the admin view takes no body", http.StatusBadRequest)
		case ofEnvoy:
			s.viewEnvoy(w, r, page)
		case path == "/ready":
			if err := s.ready(r.Context()); err != nil {
				http.Error(w, err.Error(), http.StatusServiceUnavailable)
				return
			}
			fmt.Fprintln(w, "LIVE") // as Envoy's own /ready says it
		default:
			metrics.ServeHTTP(w, r)
		}
	})
}

// refuse ends the connection, too: whoever sends such a thing is no scraper.
func refuse(w http.ResponseWriter, why string, code int) {
	w.Header().Set("Connection", "close")
	http.Error(w, why, code)
}

func (s *supervisor) viewEnvoy(w http.ResponseWriter, r *http.Request, page string) {
	err := s.admin.do(r.Context(), http.MethodGet, page, func(h http.Header, body io.Reader) error {
		w.Header().Set("Content-Type", h.Get("Content-Type"))
		_, err := io.Copy(w, body)
		return err
	})
	if err != nil && r.Context().Err() == nil {
		if s.logs.messages.allow("admin view") {
			s.Log.Warn("the admin view has no answer", "page", page, "err", err)
		}
		http.Error(w, "Envoy does not answer", http.StatusBadGateway)
	}
}
