// Package initializer obtains a pod's mesh credentials and puts them where the pod's other containers find them.
//
// It is the first process of a pod. It makes the pod's key, which never leaves the guest; shows the Coordinator evidence
// of what the guest is, over that key and the Coordinator's nonce; and gets a certificate, the two CAs to trust, and, for
// some pods, a secret that only pods of this kind get. It goes on asking until it succeeds: a Coordinator that is not
// there yet, or a manifest that is not set yet, is how every cluster starts. Then it stays, and renews the certificate under
// a new key when two thirds of its life are over.
//
// The threat is whoever stands between the two, the host first of all: it may answer in the Coordinator's place, with
// parts of several answers or an old one. So nothing is stored before all of it was verified together, and what was
// stored once is the pin: a pod never changes its mesh CA. What it accepts besides, while two manifests overlap, its own mesh
// CA signed for (overlap.go). Nothing here opens the guard but the explicit argument.
//
// A host may also run a genuine Coordinator, with a manifest of its own that admits this pod. Against that there is Config.Pin;
// without it, a pod's first mesh is that of whichever Coordinator answers.
package initializer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"portcullis.dev/portcullis/api"
	"portcullis.dev/portcullis/attestation"
	"portcullis.dev/portcullis/guest/guard"
	"portcullis.dev/portcullis/guest/service"
	"portcullis.dev/portcullis/manifest"
)

// Config is what an Initializer needs. There are no defaults, and without a Pin no Validation.
type Config struct {
	// Dir is the pod's volume for credentials, /contrast in every container.
	Dir string
	// NoMesh opens the guard, first thing: peers reach the pod's ports in plaintext then.
	NoMesh bool
	// Coordinator is whom to ask.
	Coordinator Coordinator
	// Pin is the one authority whose mesh this pod joins. Nil is a pod that joins that of any Coordinator.
	Pin *manifest.Pin
	// Validation is how evidence is judged with Pin.
	Validation manifest.ValidatorOptions
	// Issuer finds the guest's source of evidence. It is called for every attempt until it succeeds. An error with
	// ExitCode 2, for a source that does not exist, ends Run.
	Issuer func() (attestation.Issuer, error)
	// OpenGuard is guard.Open.
	OpenGuard func(context.Context) error
	// Volume is a volume in memory that gets the same files as Dir once it is mounted; empty where Dir is the pod's volume.
	Volume string
	// Service hears how things are, where a service manager started the Initializer.
	Service service.Notifier
	Log     *slog.Logger
}

// Coordinator is the part of api.Client that an Initializer uses.
type Coordinator interface {
	Nonce(context.Context) ([]byte, error)
	Certificate(context.Context, api.CertificateRequest) (*api.CertificateResponse, error)
	Attest(ctx context.Context, nonce []byte) (*api.AttestResponse, error)
	Successor(ctx context.Context, meshCA [32]byte) ([]byte, error)
}

// Run obtains credentials, unless the volume holds good ones, renews them, and returns when ctx is done: an Initializer is
// a sidecar, and a sidecar that ends is started again. An error means that going on is of no use.
func Run(ctx context.Context, c Config) error {
	if c.Dir == "" || c.Coordinator == nil || c.Issuer == nil || c.OpenGuard == nil || c.Log == nil {
		return errors.New("the Initializer's configuration is incomplete")
	}
	if info, err := os.Stat(c.Dir); err != nil {
		return fmt.Errorf("the volume for the credentials: %w", err)
	} else if !info.IsDir() {
		return fmt.Errorf("the volume for the credentials: %s is not a folder", c.Dir)
	}
	pin, err := newPinned(c.Pin, c.Validation)
	if err != nil {
		return err
	}
	if c.NoMesh {
		if err := openGuard(ctx, c); err != nil {
			return err
		}
	}
	held, err := Load(c.Dir)
	switch {
	case errors.Is(err, ErrNone):
	case err != nil:
		// Without the mesh CA that it holds, the pod would join whatever mesh answers.
		return fmt.Errorf("read the credentials that are there: %w", err)
	}
	if pin != nil {
		c.Log.Info("this pod joins the mesh of one Coordinator alone", "policyHash", pin.PolicyHash.String(),
			"workloadOwners", pin.WorkloadOwners.String())
	}
	k := &keeper{Config: c, pin: pin, held: held}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return k.renew(ctx) })
	group.Go(func() error { return k.follow(ctx) })
	group.Go(func() error { return k.publish(ctx) })
	return group.Wait()
}

// keeper is a volume and what is on it. renew and follow change it, one at a time.
type keeper struct {
	Config
	pin *pinned

	mutex sync.Mutex
	held  *Credentials // replaced, never changed; nil before the first
}

func (k *keeper) current() *Credentials {
	k.mutex.Lock()
	defer k.mutex.Unlock()
	return k.held
}

// change stores what f makes of the credentials that are held, nil for no change.
func (k *keeper) change(f func(held *Credentials, now time.Time) *Credentials) error {
	k.mutex.Lock()
	defer k.mutex.Unlock()
	now := time.Now()
	next := f(k.held, now)
	if next == nil {
		return nil
	}
	if err := next.store(k.Dir, now); err != nil {
		return fmt.Errorf("store the credentials in %s: %w", k.Dir, err)
	}
	k.held = next
	return nil
}

// renew obtains credentials, unless there are good ones, and renews them until ctx is done.
func (k *keeper) renew(ctx context.Context) error {
	if held := k.current(); held != nil && held.good(time.Now()) {
		k.Log.Info("the volume holds credentials already", held.describe()...)
		k.awaitRenewal(ctx, held)
	}
	for ctx.Err() == nil {
		// The old credentials stay where they are until there are others.
		got, err := k.obtain(ctx)
		if err != nil {
			if ctx.Err() != nil {
				break
			}
			return err
		}
		err = k.change(func(held *Credentials, _ time.Time) *Credentials {
			if held != nil { // under the same mesh CA: what came after it is as good as before
				got.Trust.Successor = held.Trust.Successor
			}
			return got
		})
		if err != nil {
			return err
		}
		k.Log.Info("stored mesh credentials", got.describe()...)
		k.awaitRenewal(ctx, got)
	}
	return nil
}

// awaitRenewal says that credentials are there, and waits until they should be renewed, or ctx is done. It is early by chance, by
// up to a tenth: pods that started together do not come back together. It looks at the clock again and again, because certificates end by the clock,
// which the host may set, and timers do not follow it. It always waits a little, so that certificates of no life do not make a
// pod and its Coordinator run in circles.
func (k *keeper) awaitRenewal(ctx context.Context, c *Credentials) {
	k.Service.Ready("credentials until " + c.Chain.Leaf.NotAfter.UTC().Format(time.RFC3339))
	now := time.Now().Round(0) // without the timers' time
	left := c.renewal().Sub(now)
	if left <= 0 { // a certificate of minutes, and backdated
		left = c.Chain.Leaf.NotAfter.Sub(now) / 3 * 2
	}
	left = max(left, soonest)
	at := now.Add(left - rand.N(left/10+1))
	for wait := soonest; wait > 0; wait = min(time.Minute, at.Sub(time.Now().Round(0))) {
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
			k.Service.Alive()
			debug.FreeOSMemory() // for weeks, nothing of what it took to come here is needed again
		}
	}
}

func openGuard(ctx context.Context, c Config) error {
	switch err := c.OpenGuard(ctx); {
	case errors.Is(err, guard.ErrNoGuard):
		// This container was started again, or the image never had a guard: either way it is open, as was asked.
		c.Log.Warn("--no-mesh: there is no guard to open")
		return nil
	case err != nil:
		return fmt.Errorf("--no-mesh: %w", err)
	}
	c.Log.Warn("--no-mesh: the guard is open, peers reach this pod's ports in plaintext")
	return nil
}

// obtain asks until it succeeds. It fails when ctx is done, and for a configuration that no retry can mend.
func (k *keeper) obtain(ctx context.Context) (*Credentials, error) {
	request, err := newRequester()
	if err != nil {
		return nil, err
	}
	var b backoff
	for {
		got, err := k.attempt(ctx, request)
		if err == nil {
			return got, nil
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if e, ok := errors.AsType[exitCoder](err); ok && isUsage(e) {
			return nil, err
		}
		wait := b.next(retryAfter(err))
		if isGenerationChanged(err) {
			wait = max(wait, changedWait)
			k.markChanged()
		}
		report(k.Log, err, wait)
		k.Service.Alive()
		k.Service.Status("no certificate yet, asking again in " + wait.Round(time.Second).String() + ": " + oneLine(err))
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(wait):
		}
	}
}

// markChanged leaves a mark for operators that this pod should be rolled out again. Whoever said so may not be the
// Coordinator: nothing but a mark depends on it, and other credentials do away with it.
func (k *keeper) markChanged() {
	err := k.change(func(held *Credentials, now time.Time) *Credentials {
		if held == nil || !held.Changed.IsZero() {
			return nil
		}
		marked := *held
		marked.Changed = now
		return &marked
	})
	if err != nil {
		k.Log.Warn("it cannot be marked that the manifest has changed", "error", err.Error())
	}
}

func (k *keeper) attempt(ctx context.Context, r *requester) (*Credentials, error) {
	issuer, err := k.Issuer()
	if err != nil {
		return nil, err
	}
	held := k.current()
	got, err := r.ask(ctx, k.Coordinator, issuer, k.pin, held)
	if err != nil {
		return nil, err
	}
	if held != nil && !bytes.Equal(held.Chain.MeshCA.Raw, got.Chain.MeshCA.Raw) {
		return nil, &refused{errors.New("its mesh CA is not the one that this pod holds")}
	}
	return got, nil
}

// oneLine is an error for a status, of which systemd takes a line.
func oneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }

type exitCoder interface {
	error
	ExitCode() int
}

// isUsage tells a mistake of whoever started us from a Coordinator's refusal: the latter may yet be mended there.
func isUsage(e exitCoder) bool {
	_, answered := e.(*api.Error)
	return e.ExitCode() == 2 && !answered
}

// isGenerationChanged says that the mesh moved on without this pod. It is asked again all the same: whoever says so may not
// be the Coordinator.
func isGenerationChanged(err error) bool {
	e, ok := errors.AsType[*api.Error](err)
	return ok && e.Code == api.CodeGenerationChanged
}

func retryAfter(err error) time.Duration {
	if e, ok := errors.AsType[*api.Error](err); ok {
		return e.RetryAfter
	}
	return 0
}

// report logs why an attempt failed. A rejection is told apart from what passes by itself: somebody has to act on it.
func report(log *slog.Logger, err error, wait time.Duration) {
	retry := slog.String("retryIn", wait.Round(time.Millisecond).String())
	if e, ok := errors.AsType[*api.Error](err); ok {
		answer := slog.Group("answer", "status", e.Status, "code", e.Code, "detail", e.Detail)
		if e.Code == api.CodeGenerationChanged {
			log.Error("the manifest has changed, and this pod belongs to the old one: it works until its certificate ends; roll it out again",
				answer, retry)
			return
		}
		if e.Temporary() {
			log.Warn("the Coordinator cannot issue a certificate yet", answer, retry)
			return
		}
		log.Error("the Coordinator rejected this pod", answer, retry, "hint", e.Hint())
		return
	}
	if e, ok := errors.AsType[*refused](err); ok {
		log.Error("the Coordinator's answer was refused", "field", e.field(), "error", e.Error(), retry)
		return
	}
	log.Warn("no certificate yet", "error", err.Error(), retry)
}
