package meshproxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"portcullis.dev/portcullis/guest/guard"
)

// viewed are the pages of Envoy's admin interface that may be read. The request's own path never reaches Envoy: it
// selects one of these constants.
var viewed = map[string]string{
	"/stats/prometheus": "/stats/prometheus",
	"/certs":            "/certs",
	"/listeners":        "/listeners",
	"/clusters":         "/clusters",
	"/server_info":      "/server_info",
}

// serveView answers on the admin port. To the guard it is a port like any other: behind mutual TLS unless the ingress
// configuration names it.
func (s *supervisor) serveView(ctx context.Context, l net.Listener) error {
	server := &http.Server{
		Handler:           http.HandlerFunc(s.view),
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      30 * time.Second,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    16 << 10,
	}
	stop := context.AfterFunc(ctx, func() { server.Close() })
	defer stop()
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve the admin port: %w", err)
	}
	return nil
}

func (s *supervisor) view(w http.ResponseWriter, r *http.Request) {
	page, ofEnvoy := viewed[r.URL.Path]
	switch {
	case !ofEnvoy && r.URL.Path != "/ready" && r.URL.Path != "/metrics":
		http.Error(w, "not found", http.StatusNotFound)
	case r.Method != http.MethodGet:
		w.Header().Set("Allow", http.MethodGet)
		http.Error(w, "the admin view is read-only", http.StatusMethodNotAllowed)
	case ofEnvoy:
		err := s.admin.do(r.Context(), http.MethodGet, page, func(h http.Header, body io.Reader) error {
			w.Header().Set("Content-Type", h.Get("Content-Type"))
			w.Header().Set("X-Content-Type-Options", "nosniff")
			_, err := io.Copy(w, body)
			return err
		})
		if err != nil && r.Context().Err() == nil {
			s.Log.Warn("the admin view has no answer", "page", page, "err", err)
			http.Error(w, "Envoy does not answer", http.StatusBadGateway)
		}
	case r.URL.Path == "/ready":
		if err := s.ready(r.Context()); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "LIVE") // as Envoy's own /ready says it
	default:
		s.metrics(r.Context(), w)
	}
}

// metrics are in Prometheus' text format, version 0.0.4.
func (s *supervisor) metrics(ctx context.Context, w http.ResponseWriter) {
	ready := 1
	if s.ready(ctx) != nil {
		ready = 0
	}
	status, err := s.Guard.Inspect(ctx)
	if err != nil {
		s.Log.Warn("the guard's state is not known", "err", err) // every state is 0 then
	}
	foreign, restored := s.counts()
	s.mu.Lock()
	defer s.mu.Unlock()
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	metric := func(name, kind, help string, value any) {
		fmt.Fprintf(w, "# HELP portcullis_meshproxy_%[1]s %[3]s\n# TYPE portcullis_meshproxy_%[1]s %[2]s\n", name, kind, help)
		fmt.Fprintf(w, "portcullis_meshproxy_%s %v\n", name, value)
	}
	metric("ready", "gauge", "Whether the mesh proxy serves.", ready)
	metric("envoy_starts_total", "counter", "How often Envoy was started.", s.starts)
	metric("credentials_published_total", "counter", "How often credentials were put in force.", s.published)
	metric("credentials_refused_total", "counter", "How often new credentials were refused.", s.refused)
	metric("certificate_not_after_seconds", "gauge", "When the certificate in force expires, in Unix time.",
		s.credentials.leaf.NotAfter.Unix())
	metric("foreign_rule_changes_total", "counter", "How often another process changed nftables rules.", foreign)
	metric("guard_restored_total", "counter", "How often the guard was not as it should be, and was put back.", restored)
	const name = "portcullis_meshproxy_guard_state"
	fmt.Fprintf(w, "# HELP %s The guard's state: 1 for the one it is in.\n# TYPE %s gauge\n", name, name)
	for _, state := range []guard.State{guard.Closed, guard.Mesh, guard.Opened, guard.Foreign} {
		is := 0
		if state == status.State {
			is = 1
		}
		fmt.Fprintf(w, "%s{state=%q} %d\n", name, state, is)
	}
}
