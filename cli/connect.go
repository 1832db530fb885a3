package cli

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"portcullis.dev/portcullis/api"
	"portcullis.dev/portcullis/cli/connect"
	"portcullis.dev/portcullis/pki"
)

// environmentConnect tells a command where it reaches the workload.
const environmentConnect = "PORTCULLIS_CONNECT"

// graceToEnd is how long open connections have to end by themselves.
const graceToEnd = 10 * time.Second

type connectFlags struct {
	coordinatorFlags
	meshCA   string
	listen   string
	identity string
	json     bool
}

func newConnect() *cobra.Command {
	f := new(connectFlags)
	cmd := &cobra.Command{
		Use:   "connect [flags] HOST:PORT [-- COMMAND ARGUMENT...]",
		Short: "Reach a workload over verified TLS through a local port",
		Long: `Connect verifies the Coordinator by a manifest that you hold, as verify does, and opens a port of this machine's loopback
that leads to a workload. Each connection to it is carried over TLS to HOST:PORT, where a certificate under the mesh CA must be
shown, with HOST among its names, or --identity. Instead of asking a Coordinator, --mesh-ca takes a mesh-ca.pem that verify
wrote before.

With a command, that is run while the port is open: ` + environmentConnect + ` in its environment is the local address, and so
is each {} in its arguments. Its exit code becomes that of connect.

Ports with "false" in the ingress annotation ask for no certificate of the client's and can be reached. Others are for pods of
the mesh. On this machine everybody can reach the local port while it is open.`,
		Example: `  portcullis connect -c coordinator.example.com web.example.com:8080
  portcullis connect --mesh-ca mesh-ca.pem web.example.com:8080 -- curl http://{}/
  kubectl port-forward pod/web 8080 & portcullis connect --mesh-ca mesh-ca.pem --identity web-svc 127.0.0.1:8080`,
		RunE: func(cmd *cobra.Command, args []string) error { return f.run(cmd, args) },
	}
	f.register(cmd)
	cmd.Flags().StringVar(&f.meshCA, "mesh-ca", "", "mesh CA that verify wrote, instead of a Coordinator")
	cmd.Flags().StringVar(&f.listen, "listen", "127.0.0.1:0", "local address, of the loopback; port 0 is any that is free")
	cmd.Flags().StringVar(&f.identity, "identity", "", "name that the workload's certificate must carry (default: HOST)")
	flagJSON(cmd, &f.json)
	return cmd
}

func (f *connectFlags) run(cmd *cobra.Command, args []string) error {
	peer, command, err := f.parse(cmd, args)
	if err != nil {
		return err
	}
	if peer.CAs, err = f.authorities(cmd); err != nil {
		return err
	}
	progress(cmd, "checking the certificate of %s ...", peer.Address)
	if err := peer.Check(cmd.Context()); err != nil {
		return err
	}
	l, err := net.Listen("tcp", f.listen)
	if err != nil {
		return &problem{fmt.Errorf("open the local port: %w", err), exitFailed, "--listen 127.0.0.1:0 takes one that is free"}
	}
	local := l.Addr().String()
	var mu sync.Mutex
	tunnel := &connect.Tunnel{Peer: peer, Report: func(err error) {
		mu.Lock()
		defer mu.Unlock()
		fmt.Fprintln(cmd.ErrOrStderr(), "warning:", err)
	}}
	if len(command) > 0 {
		return f.runCommand(cmd, tunnel, l, command)
	}
	if f.json {
		err = writeJSON(cmd.OutOrStdout(), struct {
			Local    string `json:"local"`
			Workload string `json:"workload"`
		}{local, peer.Address})
	} else {
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s leads to %s\n", local, peer.Address)
	}
	if err != nil {
		return errors.Join(err, l.Close())
	}
	return tunnel.Serve(cmd.Context(), l, f.cut(cmd, tunnel))
}

// parse reads the command line.
func (f *connectFlags) parse(cmd *cobra.Command, args []string) (peer connect.Peer, command []string, err error) {
	if at := cmd.ArgsLenAtDash(); at >= 0 {
		if args, command = args[:at], args[at:]; len(command) == 0 {
			return peer, nil, usageOf(cmd, errors.New("no command follows --"))
		}
	}
	if len(args) != 1 {
		return peer, nil, usageOf(cmd, fmt.Errorf("want one HOST:PORT, got %d arguments; a command follows --", len(args)))
	}
	if f.meshCA != "" && (cmd.Flags().Changed("coordinator") || cmd.Flags().Changed("manifest")) {
		return peer, nil, usageOf(cmd, errors.New("give --mesh-ca, or a Coordinator and a manifest, not both"))
	}
	if f.json && len(command) > 0 {
		return peer, nil, usageOf(cmd, errors.New("--json is of no use to a command"))
	}
	host, port, err := net.SplitHostPort(args[0])
	if err == nil && host == "" {
		err = errors.New("the host is empty")
	}
	if err == nil {
		if n, lookup := net.LookupPort("tcp", port); lookup != nil || n == 0 {
			err = fmt.Errorf("port %q, want 1 to 65535", port)
		}
	}
	if err != nil {
		return peer, nil, usageOf(cmd, fmt.Errorf("%q is not HOST:PORT: %w", args[0], err))
	}
	if f.identity != "" {
		if peer.Identity, err = pki.ParseSAN(f.identity); err != nil {
			return peer, nil, usageOf(cmd, fmt.Errorf("--identity: %w", err))
		}
	}
	// The port is plaintext, and whoever reaches it speaks to the workload as the data owner does.
	local, err := netip.ParseAddrPort(f.listen)
	if err != nil {
		return peer, nil, usageOf(cmd, fmt.Errorf("--listen %q is not an IP address and a port: %w", f.listen, err))
	}
	if !local.Addr().IsLoopback() {
		return peer, nil, usageOf(cmd, fmt.Errorf("--listen %s is not of the loopback: the port is plaintext, so it is for this machine alone", f.listen))
	}
	peer.Address = args[0]
	return peer, command, nil
}

// authorities are the CAs that a workload's certificate must be under.
func (f *connectFlags) authorities(cmd *cobra.Command) ([]*x509.Certificate, error) {
	if f.meshCA != "" {
		text, err := os.ReadFile(f.meshCA)
		if err != nil {
			return nil, &problem{fmt.Errorf("read the mesh CA: %w", err), exitFailed, "portcullis verify writes mesh-ca.pem"}
		}
		cas, err := pki.ParseCertificates(text)
		if err != nil {
			return nil, malformed("want the mesh-ca.pem that portcullis verify wrote", "read the mesh CA %s: %w", f.meshCA, err)
		}
		return cas, nil
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), f.timeout)
	defer cancel()
	s, err := f.open(cmd)
	if err != nil {
		return nil, err
	}
	defer s.close()
	progress(cmd, "checking the evidence of %s ...", s.client)
	v, _, err := s.attest(ctx, api.FormerOwners.VerifyCoordinator)
	if err != nil {
		return nil, err
	}
	if s.manifest.Simulated() {
		fmt.Fprintln(cmd.ErrOrStderr(), "warning: the manifest trusts a simulated TEE: no hardware vouches for any of this")
	}
	return []*x509.Certificate{v.MeshCA}, nil
}

// cut is closed when connections that are open at the end have had their time, or somebody does not want to wait.
func (f *connectFlags) cut(cmd *cobra.Command, tunnel *connect.Tunnel) <-chan struct{} {
	cut := make(chan struct{})
	context.AfterFunc(cmd.Context(), func() {
		defer close(cut)
		hurry, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
		defer stop()
		if n := tunnel.Open(); n > 0 {
			fmt.Fprintf(cmd.ErrOrStderr(), "%d open connections have %v to end; interrupt again to break them\n", n, graceToEnd)
		}
		patience, done := context.WithTimeout(hurry, graceToEnd)
		defer done()
		<-patience.Done()
	})
	return cut
}

// exitError is a command's own exit code.
type exitError struct {
	name string
	code int
}

func (e *exitError) Error() string { return fmt.Sprintf("%s ended with exit code %d", e.name, e.code) }
func (e *exitError) ExitCode() int { return e.code }

// runCommand serves while a command runs.
func (f *connectFlags) runCommand(cmd *cobra.Command, tunnel *connect.Tunnel, l net.Listener, command []string) error {
	local := l.Addr().String()
	args := make([]string, len(command)-1)
	for i, arg := range command[1:] {
		args[i] = strings.ReplaceAll(arg, "{}", local)
	}
	ctx, cancel := context.WithCancel(cmd.Context())
	defer cancel()
	child := exec.CommandContext(ctx, command[0], args...)
	child.Stdin, child.Stdout, child.Stderr = cmd.InOrStdin(), cmd.OutOrStdout(), cmd.ErrOrStderr()
	child.Env = append(os.Environ(), environmentConnect+"="+local)
	child.Cancel = func() error { return child.Process.Signal(syscall.SIGTERM) }
	child.WaitDelay = graceToEnd
	ended := make(chan struct{})
	var g errgroup.Group
	g.Go(func() error { return tunnel.Serve(ctx, l, ended) })
	err := child.Run()
	// Whoever is still connected outlived the command.
	cancel()
	close(ended)
	served := g.Wait()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.ExitCode() > 0 {
		return &exitError{command[0], exit.ExitCode()}
	}
	if err != nil {
		return &problem{fmt.Errorf("run %s: %w", command[0], err), exitFailed, "the command and its arguments follow --, each a word of its own"}
	}
	return served
}
