package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"portcullis.dev/portcullis/cmd/internal/command"
	"portcullis.dev/portcullis/guest/hostdata"
	"portcullis.dev/portcullis/guest/initdata"
	"portcullis.dev/portcullis/image"
)

// A receiver accepts initdata that the host committed to.
type receiver struct {
	find func() (document []byte, device string, err error) // initdata.Find
	wait time.Duration                                      // for a disk that must come
	log  *slog.Logger
}

// receive returns what the guest's software is to read, with a policy for the agent in any case. An error means that the podVM must
// not go on: the host did not hand over what it committed to.
func (r receiver) receive(ctx context.Context, c hostdata.Commitment) (map[string]string, error) {
	committed := c.Measured() && c.Digest.Valid()
	document, device, err := r.find()
	if committed {
		document, device, err = r.await(ctx, document, device, err)
	}
	switch none := errors.Is(err, initdata.ErrNoInitdata); {
	case none && committed:
		return nil, &refusedError{
			fmt.Errorf("the host committed to initdata with the digest %v, and attached no disk with it in %v", c.Digest, r.wait),
			"the runtime must attach the initdata as a virtio disk",
		}
	case none:
		r.log.Info("no initdata: the agent's policy refuses every request")
		return map[string]string{initdata.KeyPolicy: image.DenyAll}, nil
	case err != nil:
		return nil, err
	case c.Measured() && !committed:
		return nil, &refusedError{
			fmt.Errorf("%s has initdata, and the host committed to none: %s", device, measuredBy(c)),
			"the runtime must put its SHA-256 into HOSTDATA or MRCONFIGID",
		}
	case committed && initdata.Digest(document) != c.Digest:
		return nil, &refusedError{
			fmt.Errorf("the initdata of %s has the digest %v, and the host committed to %v", device, initdata.Digest(document), c.Digest),
			"the digest is SHA-256 over the exact bytes of the document: whoever changed one made another pod",
		}
	case !c.Measured():
		r.log.Warn("the initdata is measured by nothing: this machine has no TEE, and its kernel's command line allows that",
			"word", hostdata.Simulated)
	}
	data, err := initdata.Parse(document)
	if err != nil {
		return nil, err
	}
	// Half a configuration is none: whoever reads it later must not be the first to find out.
	if text, ok := data[initdata.KeyConfig]; ok {
		if _, err := initdata.ParsePodConfig(text); err != nil {
			return nil, fmt.Errorf("%s: %w", initdata.KeyConfig, err)
		}
	}
	if _, ok := data[initdata.KeyPolicy]; !ok {
		r.log.Warn("the initdata has no policy: the agent's refuses every request")
		data[initdata.KeyPolicy] = image.DenyAll
	}
	r.log.Info("the initdata is the pod's", "device", device, "digest", initdata.Digest(document), "names", initdata.Names(data))
	return data, nil
}

// await looks again while there is no disk, for as long as a driver may take to find one.
func (r receiver) await(ctx context.Context, document []byte, device string, err error) ([]byte, string, error) {
	deadline := time.Now().Add(r.wait)
	for errors.Is(err, initdata.ErrNoInitdata) && time.Now().Before(deadline) {
		select {
		case <-ctx.Done():
			return nil, "", context.Cause(ctx)
		case <-time.After(50 * time.Millisecond):
		}
		document, device, err = r.find()
	}
	return document, device, err
}

// A refusedError is the answer no: what the host handed over is not what it committed to.
type refusedError struct {
	error
	hint string
}

func (e *refusedError) Unwrap() error { return e.error }

// Hint says what a runtime in good order does.
func (e *refusedError) Hint() string { return e.hint }

// ExitCode tells it from a machine that does not work.
func (*refusedError) ExitCode() int { return command.No }

func measuredBy(c hostdata.Commitment) string {
	return fmt.Sprintf("the report of its %s says so", c.Platform)
}
