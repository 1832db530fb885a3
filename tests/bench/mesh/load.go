package main

import (
	"bytes"
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Inside a pod the program plays the application and its callers. Its first argument says which.
const (
	roleApp  = "bench-app"  // serve
	roleCall = "bench-call" // connect, and print a result as one line of JSON
	roleExec = "bench-exec" // say when, then become another program
)

// The application's ports.
const (
	portAnswer = 8080 // answers each request
	portSink   = 8081 // swallows a stream, and says how much it was
)

const (
	requestSize = 128
	answerSize  = 1024
)

// role plays a part, where the program was started for that inside a pod. It must come before netlab.Enter.
func role() bool {
	if len(os.Args) < 2 {
		return false
	}
	roles := map[string]func([]string) error{roleApp: serve, roleCall: call, roleExec: execute}
	play, ok := roles[os.Args[1]]
	if ok {
		exitOn(play(os.Args[2:]))
	}
	return ok
}

// serve is the application: on every address of the pod, until it is killed.
func serve([]string) error {
	failed := make(chan error)
	for port, answer := range map[int]func(net.Conn) error{portAnswer: answerRequests, portSink: swallow} {
		l, err := net.Listen("tcp", ":"+strconv.Itoa(port))
		if err != nil {
			return err
		}
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					failed <- err
					return
				}
				go func() {
					defer c.Close()
					answer(c)
				}()
			}
		}()
	}
	fmt.Println("serving")
	return <-failed
}

func answerRequests(c net.Conn) error {
	request, answer := make([]byte, requestSize), bytes.Repeat([]byte("x"), answerSize)
	for {
		if _, err := io.ReadFull(c, request); err != nil {
			return err
		}
		if _, err := c.Write(answer); err != nil {
			return err
		}
	}
}

func swallow(c net.Conn) error {
	buf, total := make([]byte, 256<<10), uint64(0)
	for {
		n, err := c.Read(buf)
		total += uint64(n)
		if errors.Is(err, io.EOF) {
			return binary.Write(c, binary.BigEndian, total)
		}
		if err != nil {
			return err
		}
	}
}

// result is what a caller saw.
type result struct {
	Count   int     // connections, requests or handshakes that were completed
	Failed  int     // and those that were not
	Bytes   uint64  // of a stream, as the application counted them
	Seconds float64 // that it took
	P50us   float64 // of one connection, request or handshake
	P99us   float64
	CPU     float64 // seconds of the caller's own
	Error   string  // the first failure
}

// callTimeout is for one connection, request or handshake. It is far above what they take, so it only ends what is stuck.
const callTimeout = 10 * time.Second

// call is a caller.
func call(args []string) error {
	flags := flag.NewFlagSet(roleCall, flag.ContinueOnError)
	kind, target := flags.String("kind", "", ""), flags.String("target", "", "")
	parallel, duration := flags.Int("parallel", 1, ""), flags.Duration("for", time.Second, "")
	identity, tls12 := flags.String("identity", "", ""), flags.Bool("tls12", false, "")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *kind == "idle" {
		return hold(*target, *parallel)
	}
	var r result
	var err error
	switch *kind {
	case "connections":
		r = repeat(*parallel, *duration, func() (func() error, func(), error) {
			return func() error { return connectOnce(*target) }, func() {}, nil
		})
	case "requests":
		r = repeat(*parallel, *duration, func() (func() error, func(), error) { return keepAlive(*target) })
	case "handshakes", "handshakes-answer":
		var config *tls.Config
		if config, err = clientTLS(*identity, *tls12); err == nil {
			r = repeat(*parallel, *duration, func() (func() error, func(), error) {
				return func() error { return shakeHands(*target, config, *kind == "handshakes-answer") }, func() {}, nil
			})
		}
	case "stream":
		r, err = stream(*target, *parallel, *duration)
	default:
		err = fmt.Errorf("unknown kind %q", *kind)
	}
	if err != nil {
		return err
	}
	var used unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &used); err != nil {
		return err
	}
	r.CPU = seconds(used.Utime) + seconds(used.Stime)
	return json.NewEncoder(os.Stdout).Encode(r)
}

func seconds(t unix.Timeval) float64 { return float64(t.Sec) + float64(t.Usec)/1e6 }

// repeat lets parallel callers do something again and again until the time is over.
func repeat(parallel int, d time.Duration, begin func() (do func() error, end func(), err error)) result {
	var (
		all  sync.WaitGroup
		mu   sync.Mutex
		r    result
		took []time.Duration
	)
	note := func(lasted []time.Duration, failed int, err error) {
		mu.Lock()
		defer mu.Unlock()
		took, r.Failed = append(took, lasted...), r.Failed+failed
		if err != nil && r.Error == "" {
			r.Error = err.Error()
		}
	}
	began := time.Now()
	for range parallel {
		all.Go(func() {
			do, end, err := begin()
			if err != nil {
				note(nil, 1, err)
				return
			}
			defer end()
			var lasted []time.Duration
			var first error
			failed := 0
			for time.Since(began) < d {
				start := time.Now()
				if err := do(); err != nil {
					failed, first = failed+1, cmp.Or(first, err)
					time.Sleep(10 * time.Millisecond) // a target that refuses must not be hammered
					continue
				}
				lasted = append(lasted, time.Since(start))
			}
			note(lasted, failed, first)
		})
	}
	all.Wait()
	r.Seconds, r.Count = time.Since(began).Seconds(), len(took)
	if len(took) > 0 {
		slices.Sort(took)
		us := func(share float64) float64 { return float64(took[int(share*float64(len(took)-1))]) / 1e3 }
		r.P50us, r.P99us = us(0.5), us(0.99)
	}
	return r
}

func dial(target string) (net.Conn, error) {
	c, err := net.DialTimeout("tcp", target, callTimeout)
	if err != nil {
		return nil, err
	}
	return c, c.SetDeadline(time.Now().Add(callTimeout))
}

var (
	request = bytes.Repeat([]byte("q"), requestSize)
	answers = sync.Pool{New: func() any { b := make([]byte, answerSize); return &b }}
)

// ask sends a request and reads its answer.
func ask(c net.Conn) error {
	if _, err := c.Write(request); err != nil {
		return err
	}
	answer := answers.Get().(*[]byte)
	defer answers.Put(answer)
	_, err := io.ReadFull(c, *answer)
	return err
}

// connectOnce is a connection for one request.
func connectOnce(target string) error {
	c, err := dial(target)
	if err != nil {
		return err
	}
	defer c.Close()
	return ask(c)
}

// keepAlive is a connection for many.
func keepAlive(target string) (func() error, func(), error) {
	c, err := dial(target)
	if err != nil {
		return nil, nil, err
	}
	return func() error {
		if err := c.SetDeadline(time.Now().Add(callTimeout)); err != nil {
			return err
		}
		return ask(c)
	}, func() { c.Close() }, nil
}

// shakeHands makes a full handshake on a new connection, and asks for an answer or waits for the other side to end the
// connection. Either way the server has judged the client's certificate, which with TLS 1.3 it does after the client is done.
func shakeHands(target string, config *tls.Config, request bool) error {
	raw, err := dial(target)
	if err != nil {
		return err
	}
	defer raw.Close()
	c := tls.Client(raw, config)
	if err := c.Handshake(); err != nil {
		return err
	}
	if request {
		if err := ask(c); err != nil {
			return err
		}
		return c.Close()
	}
	if n, err := c.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
		return fmt.Errorf("want the end of the connection after the handshake, got %d bytes (%w)", n, err)
	}
	return nil
}

// clientTLS reads an identity: a file with the chain, its key and the CA.
func clientTLS(file string, tls12 bool) (*tls.Config, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	chain, ca, found := strings.Cut(string(text), identityMark)
	if !found {
		return nil, fmt.Errorf("%s is no identity", file)
	}
	certificate, err := tls.X509KeyPair([]byte(chain), []byte(chain))
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM([]byte(ca)) {
		return nil, fmt.Errorf("%s has no CA", file)
	}
	config := &tls.Config{
		Certificates: []tls.Certificate{certificate}, RootCAs: roots, ServerName: nameOfServer,
		MinVersion: tls.VersionTLS13, CurvePreferences: []tls.CurveID{tls.X25519MLKEM768},
	}
	if tls12 {
		config.MinVersion, config.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
		// In TLS 1.2 the list also says which curves a certificate may have.
		config.CurvePreferences = []tls.CurveID{tls.X25519, tls.CurveP256}
	}
	return config, nil
}

// stream sends as fast as it goes, and lets the application say how much came through.
func stream(target string, parallel int, d time.Duration) (r result, err error) {
	var all sync.WaitGroup
	var mu sync.Mutex
	began := time.Now()
	for range parallel {
		all.Go(func() {
			n, streamErr := streamOnce(target, began.Add(d))
			mu.Lock()
			defer mu.Unlock()
			r.Bytes += n
			err = errors.Join(err, streamErr)
		})
	}
	all.Wait()
	r.Seconds = time.Since(began).Seconds()
	return r, err
}

func streamOnce(target string, until time.Time) (total uint64, err error) {
	c, err := dial(target)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	if err := c.SetDeadline(until.Add(callTimeout)); err != nil {
		return 0, err
	}
	for block := make([]byte, 128<<10); time.Now().Before(until); {
		if _, err := c.Write(block); err != nil {
			return 0, err
		}
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		return 0, err
	}
	err = binary.Read(c, binary.BigEndian, &total)
	return total, err
}

// hold makes idle connections, each of which has had an answer, says so, and keeps them until standard input ends.
func hold(target string, n int) error {
	connections := make([]net.Conn, 0, n)
	for range n {
		c, err := dial(target)
		if err != nil {
			return err
		}
		connections = append(connections, c)
		if err := ask(c); err != nil {
			return err
		}
	}
	if err := json.NewEncoder(os.Stdout).Encode(result{Count: len(connections)}); err != nil {
		return err
	}
	_, err := io.Copy(io.Discard, os.Stdin)
	return err
}

// execute prints the monotonic clock, which is the same everywhere on a machine, and becomes another program, on one
// processor when one is named.
func execute(args []string) error {
	cpu, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	runtime.LockOSThread() // affinity is a thread's, and the one that executes keeps its own
	if cpu >= 0 && cpu < runtime.NumCPU() {
		var set unix.CPUSet
		set.Set(cpu)
		if err := unix.SchedSetaffinity(0, &set); err != nil {
			return err
		}
	}
	path, err := exec.LookPath(args[1])
	if err != nil {
		return err
	}
	now, err := monotonic()
	if err != nil {
		return err
	}
	fmt.Printf("%s%d\n", executed, now)
	return fmt.Errorf("exec %s: %w", path, syscall.Exec(path, args[1:], os.Environ()))
}

const executed = "executed at "

func monotonic() (time.Duration, error) {
	var now unix.Timespec
	err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now)
	return time.Duration(now.Nano()), err
}
