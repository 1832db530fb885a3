// Package meshproxy supervises the pod's Envoy and lifts the guard for it, in this order and no other:
//
//	the gate is down -> credentials are good -> Envoy is live -> the gate lets peers through to it -> ready
//
// The gate (package guard) is what protects the application; Envoy is what makes it useful to lift it. So whatever fails
// here leaves the gate down: a malformed configuration, missing credentials, a port that is taken, an Envoy that dies.
// Nothing becomes reachable because something is absent, and the proxy refuses to run where no gate was armed before it.
//
// The supervisor starts as root with CAP_NET_ADMIN (the guard), CAP_NET_RAW (to hand it on), CAP_SETUID, CAP_SETGID and
// CAP_KILL (to be apart from Envoy, and still its master), and needs nothing else: not even CAP_CHOWN or
// CAP_DAC_OVERRIDE, see identity.go. Envoy parses what strangers send, so it runs as a user of its own with CAP_NET_RAW
// alone (IP_TRANSPARENT and SO_MARK), which cannot touch the guard, the credentials on /contrast, or its own
// configuration.
package meshproxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"portcullis.dev/portcullis/guest/guard"
	"portcullis.dev/portcullis/guest/service"
	"portcullis.dev/portcullis/meshproxy/config"
	"portcullis.dev/portcullis/meshproxy/confine"
	"portcullis.dev/portcullis/meshproxy/envoy"
	"portcullis.dev/portcullis/meshproxy/probe"
)

const (
	// memoryLimit keeps the supervisor small: it is in every pod, and guest memory is encrypted and dear.
	memoryLimit = 20 << 20
	// liveTimeout is how long Envoy may take to be live. It takes a tenth of a second.
	liveTimeout = 60 * time.Second
	// stopTimeout is how long Envoy may take to exit when it is told to.
	stopTimeout = 2 * time.Second
	// watchInterval is how soon new credentials are noticed.
	watchInterval = 2 * time.Second
	// aliveInterval is how often a service manager hears that the supervisor turns.
	aliveInterval = 20 * time.Second
	// settling is how long a proxy that is ready still does things for the first time.
	settling = 10 * time.Second
	// ticketInterval is how long a ticket key makes tickets; it opens them for as long again.
	ticketInterval = 300 * time.Second
)

// Config is what a mesh proxy needs to know.
type Config struct {
	Mesh *config.Config
	// Envoy is the program: a path, or a name in PATH.
	Envoy string
	// EnvoyUser is the user and group id that Envoy runs as. Not root.
	EnvoyUser uint32
	// Concurrency is the number of Envoy's workers; zero means one.
	Concurrency int
	// Credentials is the folder that the Initializer writes.
	Credentials string
	// RunDir is the mesh proxy's own folder, in memory and writable by root alone.
	RunDir string
	// Drain is how long connections may take to end by themselves after a request to stop.
	Drain time.Duration
	// Hurry is closed to end the drain at once. It may be nil.
	Hurry <-chan struct{}
	// AccessLog logs every connection, and not only those that were refused.
	AccessLog bool
	// Guard is the kernel's when it is nil.
	Guard Guard
	// Service hears how things are, where a service manager started the mesh proxy.
	Service service.Notifier
	Log     *slog.Logger
}

// Run proxies until ctx is cancelled, then drains. It returns an error when it could not begin, or when the guard could
// not be set; the gate is down then, as far as the guard can be reached at all.
func Run(ctx context.Context, c Config) error {
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(memoryLimit)
	}
	switch {
	case c.Mesh == nil:
		return errors.New("start the mesh proxy: no mesh configuration")
	case c.EnvoyUser == 0:
		return errors.New("start the mesh proxy: Envoy must not run as root")
	}
	s := &supervisor{
		Config: c,
		dir:    envoyDir{Dir: envoy.Dir(filepath.Join(c.RunDir, "envoy")), gid: c.EnvoyUser},
		state:  state{cause: causeStarting, phase: "the mesh proxy is starting"},
	}
	if s.Guard == nil {
		s.Guard = kernelGuard{c.Mesh.EgressPolicy}
	}
	s.drops = &countingGuard{Guard: s.Guard}
	s.Guard = s.drops
	if s.Log == nil {
		s.Log = slog.New(slog.DiscardHandler)
	}
	s.logs = newLogs(s.Log, s.Mesh, s.AccessLog)
	defer s.logs.close()
	if err := s.prepare(ctx); err != nil {
		return err
	}
	return s.serve(ctx)
}

type supervisor struct {
	Config
	program string // Envoy's path
	limits  confine.Limits
	dir     envoyDir
	ports   guard.Ports
	admin   *adminClient
	logs    *logs
	stats   *envoy.Stats
	drops   *countingGuard
	gate    gate

	state
}

// state is what readiness, metrics and the admin view tell.
type state struct {
	mu          sync.Mutex
	cause       cause  // why the proxy is not ready, in a word
	phase       string // and in words; empty while it serves
	starts      int    // of Envoy
	published   int
	refused     int
	credentials *credentials // in force
	tickets     tickets      // in force

	generationChanged bool // the Initializer says so

	ticketsPublished int
}

func (s *state) set(cause cause, phase string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cause, s.phase = cause, phase
}

// prepare does everything that can fail before Envoy runs, and closes the gate first of all.
func (s *supervisor) prepare(ctx context.Context) error {
	if err := s.refuseWithoutGuard(ctx); err != nil {
		return err
	}
	if s.Mesh.Mode != config.Disabled {
		// Whatever a proxy before this one left behind: nothing is admitted until Envoy is live, and from here on the
		// egress lock holds, where it was asked for.
		if err := s.Guard.Close(ctx); err != nil {
			return fmt.Errorf("start the mesh proxy: %w", err)
		}
	}
	s.ports.PlaintextTCP, s.ports.PlaintextUDP, s.ports.NoClientAuth = s.Mesh.GuardPorts()
	program, err := exec.LookPath(s.Envoy)
	if err != nil {
		return &hinted{fmt.Errorf("find Envoy: %w", err), "--envoy names the program; it is Envoy 1.40.0 or later"}
	}
	s.program = program
	if err := s.refusePrivilegedPorts(); err != nil {
		return err
	}
	creds, err := readCredentials(s.Credentials, nil)
	if err != nil {
		return &hinted{err, "the Initializer writes them; it must have finished before the mesh proxy starts"}
	}
	connections, err := allConnections()
	if err != nil {
		return err
	}
	heap, err := maxHeap(os.DirFS("/"))
	if err != nil {
		return err
	}
	made, err := makeBootstrap(ctx, s.Mesh, envoy.Options{
		Dir: s.dir.Dir, MaxConnections: connections, MaxHeap: heap, MaxAge: creds.lifetime(), AccessLog: s.AccessLog,
	})
	if err != nil {
		return err
	}
	s.stats = envoy.NewStats(made)
	if s.limits, err = s.envoyLimits(made); err != nil {
		return err
	}
	if err := s.dir.make(s.RunDir, made.Bootstrap); err != nil {
		return fmt.Errorf("prepare the run directory: %w", err)
	}
	if err := s.publish(creds); err != nil {
		return err
	}
	s.admin = newAdminClient(s.dir.AdminSocket())
	return nil
}

// allConnections raises the limit of open files, which Envoy inherits, as far as it goes, and says how many connections
// that is: two descriptors each, and some for everything else.
func allConnections() (int64, error) {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return 0, fmt.Errorf("read the limit of open files: %w", err)
	}
	// Set even where it is that high: Go has raised its own limit, and gives children the lower one unless it is told.
	limit.Cur = limit.Max
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return 0, fmt.Errorf("raise the limit of open files to %d: %w", limit.Max, err)
	}
	const others, most = 256, 1 << 20
	if limit.Max < 2*others {
		return 0, fmt.Errorf("the limit of open files is %d, want at least %d", limit.Max, 2*others)
	}
	return int64(min((limit.Max-others)/2, most)), nil
}

// refusePrivilegedPorts says before Envoy would, and better, that an unprivileged process cannot listen there.
func (s *supervisor) refusePrivilegedPorts() error {
	const setting = "net.ipv4.ip_unprivileged_port_start"
	text, err := os.ReadFile("/proc/sys/net/ipv4/ip_unprivileged_port_start")
	if err != nil {
		return fmt.Errorf("read %s: %w", setting, err)
	}
	first, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return fmt.Errorf("read %s: %w", setting, err)
	}
	for _, e := range s.Mesh.Egress {
		if int(e.Listen.Port()) < first {
			return &hinted{
				fmt.Errorf("egress entry %q: Envoy may not listen on port %d: %s is %d", e, e.Listen.Port(), setting, first),
				"choose a higher port, or set that sysctl in the pod's securityContext",
			}
		}
	}
	return nil
}

// openedMark is left in the run directory when this pod's proxy opened the guard on request (DISABLED), so that the
// proxy's next start does not take the missing table for an image that is not ours.
const openedMark = "guard-opened"

func (s *supervisor) refuseWithoutGuard(ctx context.Context) error {
	status, err := s.Guard.Inspect(ctx)
	if err != nil {
		return fmt.Errorf("start the mesh proxy: %w", err)
	}
	if status.State != guard.Opened {
		return nil
	}
	if s.Mesh.Mode == config.Disabled {
		if _, err := os.Stat(filepath.Join(s.RunDir, openedMark)); err == nil {
			return nil
		}
	}
	return fmt.Errorf("start the mesh proxy: %w", guard.ErrNoGuard)
}

// serve runs what runs all the time, side by side.
func (s *supervisor) serve(ctx context.Context) error {
	readiness, err := s.listenReady()
	if err != nil {
		return err
	}
	defer readiness.Close()
	var view net.Listener
	if s.Mesh.AdminPort != 0 {
		// On every address: peers come in through Envoy, which connects to the address that they dialled.
		if view, err = net.Listen("tcp", net.JoinHostPort("", strconv.Itoa(int(s.Mesh.AdminPort)))); err != nil {
			return fmt.Errorf("open the admin port: %w", err)
		}
		defer view.Close()
	}
	var names net.PacketConn
	if s.Mesh.EgressPolicy != config.EgressOpen {
		if names, err = listenNames(); err != nil {
			return err
		}
		defer names.Close()
	}
	var probes net.Listener
	if len(s.Mesh.Probes) > 0 {
		if probes, err = probe.Listen(); err != nil {
			return err
		}
		defer probes.Close()
	}
	// The others end when the supervision of Envoy has, which drains first; and one that cannot go on ends all.
	ctx, failed := context.WithCancel(ctx)
	defer failed()
	all, stop := context.WithCancel(context.WithoutCancel(ctx))
	var group errgroup.Group
	beside := func(f func() error) {
		group.Go(func() error {
			err := f()
			if err != nil {
				failed()
			}
			return err
		})
	}
	beside(func() error { return s.answerReady(all, readiness) })
	beside(func() error { return s.keepSecrets(all) })
	beside(func() error { return s.keepGuard(all) })
	if names != nil {
		beside(func() error { return newNameServer(s.Mesh.Egress).serve(all, names) })
	}
	if view != nil {
		beside(func() error { return s.serveView(all, view) })
	}
	if probes != nil {
		beside(func() error { return probe.Serve(all, probes, s.Mesh.Probes, s.Log) })
	}
	group.Go(func() error {
		defer stop()
		return s.supervise(ctx)
	})
	return group.Wait()
}

// hinted is an error with a second line that says what to do.
type hinted struct {
	error
	hint string
}

func (h *hinted) Unwrap() error { return h.error }
func (h *hinted) Hint() string  { return h.hint }
