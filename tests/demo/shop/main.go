// Command shop is the workload of the demo: a small HTTP server that also calls its backends. It knows nothing of any
// mesh: it listens on all addresses in plain HTTP and calls plain HTTP on loopback, as a workload under a mesh does.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

const usage = "usage: shop serve --name=NAME --listen=ADDR [--metrics=ADDR] [--backend=NAME=URL ...]"

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintf(os.Stderr, "shop: %v\n", err)
		os.Exit(1)
	}
}

type shop struct {
	name     string
	backends map[string]string
	served   atomic.Int64
}

func run(args []string) error {
	if len(args) == 0 || args[0] != "serve" {
		return errors.New(usage)
	}
	s := &shop{backends: map[string]string{}}
	flags := flag.NewFlagSet("shop serve", flag.ContinueOnError)
	flags.StringVar(&s.name, "name", "shop", "what the server calls itself")
	listen := flags.String("listen", ":8080", "the shop's address")
	metrics := flags.String("metrics", "", "the metrics' address; none by default")
	flags.Func("backend", "NAME=URL of a backend; repeats", func(v string) error {
		name, url, ok := strings.Cut(v, "=")
		if !ok {
			return errors.New("want NAME=URL")
		}
		s.backends[name] = url
		return nil
	})
	if err := flags.Parse(args[1:]); err != nil {
		return err
	}

	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	failed := make(chan error, 2)
	serve := func(addr string, h http.Handler) {
		failed <- (&http.Server{Addr: addr, Handler: h, ReadHeaderTimeout: 10 * time.Second}).ListenAndServe()
	}
	front := http.NewServeMux()
	front.HandleFunc("GET /{$}", s.greet)
	front.HandleFunc("GET /ask/{backend}", s.ask)
	go serve(*listen, front)
	if *metrics != "" {
		back := http.NewServeMux()
		back.HandleFunc("GET /metrics", s.metrics)
		go serve(*metrics, back)
	}
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
		return nil
	}
}

// greet answers with words that a test can look for on the wire.
func (s *shop) greet(w http.ResponseWriter, _ *http.Request) {
	s.served.Add(1)
	fmt.Fprintf(w, "confidential goods of %s\n", s.name)
}

func (s *shop) ask(w http.ResponseWriter, r *http.Request) {
	s.served.Add(1)
	url, ok := s.backends[r.PathValue("backend")]
	if !ok {
		http.NotFound(w, r)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), 5*time.Second)
	defer cancel()
	// A new connection each time: what is shown is a handshake, not a connection kept from before.
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	req.Close = true
	answer, err := http.DefaultClient.Do(req)
	if err != nil {
		http.Error(w, fmt.Sprintf("%s cannot reach %s: %v", s.name, r.PathValue("backend"), err), http.StatusBadGateway)
		return
	}
	defer answer.Body.Close()
	fmt.Fprintf(w, "%s asked and heard: ", s.name)
	io.Copy(w, io.LimitReader(answer.Body, 1<<16))
}

func (s *shop) metrics(w http.ResponseWriter, _ *http.Request) {
	fmt.Fprintf(w, "# TYPE shop_requests_total counter\nshop_requests_total %d\n", s.served.Load())
}
