// Command standin is an agent for podVMs in tests. It stands where Kata's agent does, speaks its protocol, obeys its policy file in the
// simplest way, and starts programs of the image in place of containers, so that a boot test sees events in their real order. It
// pulls no image and confines nothing: it is not for use.
//
//	kata-agent                    the agent: on KATA_AGENT_SERVER_ADDR, and on the virtio port of tests where there is one
//	kata-agent serve PORT TEXT    a workload: an HTTP server that answers with TEXT, and whom it is called by
//	kata-agent fetch URL          a workload: fetches a page each second and prints what comes
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/ttrpc"
)

func main() {
	log.SetFlags(0)
	log.SetPrefix("stand-in agent: ")
	var err error
	switch words := os.Args[1:]; {
	case len(words) == 0:
		err = agent()
	case words[0] == "container" && len(words) > 2:
		err = become(words[1], words[2:])
	case words[0] == "serve" && len(words) == 3:
		err = serve(words[1], words[2])
	case words[0] == "fetch" && len(words) == 2:
		fetch(words[1])
	default:
		err = errors.New("want no words, serve PORT TEXT, or fetch URL")
	}
	if err != nil {
		log.Fatal(err)
	}
}

func agent() error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	policy, err := readPolicy()
	if err != nil {
		return err // as Kata's agent, whose unit then turns the machine off
	}
	server, err := ttrpc.NewServer()
	if err != nil {
		return err
	}
	newSandbox(policy).register(server)
	listeners := []net.Listener{}
	if address := os.Getenv("KATA_AGENT_SERVER_ADDR"); address != "" {
		path, ok := strings.CutPrefix(address, "unix://")
		if !ok {
			return fmt.Errorf("KATA_AGENT_SERVER_ADDR is %q: only unix:// is served here", address)
		}
		l, err := net.Listen("unix", path)
		if err != nil {
			return err
		}
		listeners = append(listeners, l)
	}
	failed := make(chan error, 2)
	for _, l := range append(listeners, newPort()) {
		go func() { failed <- server.Serve(ctx, l) }()
	}
	log.Print("serving")
	select {
	case <-ctx.Done():
		return nil
	case err := <-failed:
		return err
	}
}

// serve is a workload that knows nothing of the mesh.
func serve(port, text string) error {
	return http.ListenAndServe(net.JoinHostPort("", port), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s, to %s\n", text, r.RemoteAddr)
	}))
}

func fetch(url string) {
	client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	for ; ; time.Sleep(time.Second) {
		response, err := client.Get(url)
		if err != nil {
			fmt.Println("error:", err)
			continue
		}
		body, err := io.ReadAll(io.LimitReader(response.Body, 4096))
		response.Body.Close()
		fmt.Println(response.Status, strings.TrimSpace(string(body)), errors.Join(err))
	}
}
