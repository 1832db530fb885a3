package main

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"portcullis.dev/portcullis/attestation"
	"portcullis.dev/portcullis/guest/hostdata"
	"portcullis.dev/portcullis/guest/initdata"
	"portcullis.dev/portcullis/image"
)

func build(t *testing.T, data map[string]string) []byte {
	t.Helper()
	b, err := initdata.Build(data)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestReceive(t *testing.T) {
	pod := map[string]string{"policy.rego": "allowed\n", "other": "very private"}
	document := build(t, pod)
	one := initdata.Digest(document)
	broken := build(t, map[string]string{"policy.rego": "x", "portcullis.toml": "Kind = 3"})
	bare := build(t, map[string]string{"other": "x"})
	measured := func(digest attestation.PolicyHash) hostdata.Commitment {
		return hostdata.Commitment{Platform: attestation.SNP, Digest: digest}
	}
	for _, c := range []struct {
		name     string
		host     hostdata.Commitment
		document []byte
		late     int // how often there is no disk yet
		policy   string
		err      string
	}{
		{name: "the pod's own", host: measured(one), document: document, policy: "allowed\n"},
		{name: "the pod's own, late", host: measured(one), document: document, late: 2, policy: "allowed\n"},
		{name: "no policy in it", host: measured(initdata.Digest(bare)), document: bare, policy: image.DenyAll},
		{name: "nothing at all", host: measured(attestation.PolicyHash{}), policy: image.DenyAll},
		{name: "nothing, and no TEE", policy: image.DenyAll},
		{name: "no TEE", document: document, policy: "allowed\n"},
		{name: "another's", host: measured(attestation.PolicyHash{9}), document: document, err: "and the host committed to 09"},
		{name: "hidden", host: measured(one), err: "attached no disk with it"},
		{name: "uncalled for", host: measured(attestation.PolicyHash{}), document: document, err: "the host committed to none"},
		{name: "not a document", host: measured(initdata.Digest([]byte("x"))), document: []byte("x"), err: "parse initdata"},
		{name: "half a configuration", host: measured(initdata.Digest(broken)), document: broken, err: "portcullis.toml:"},
		{name: "half a configuration, no TEE", document: broken, err: "portcullis.toml:"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var said bytes.Buffer
			asked := 0
			r := receiver{wait: 300 * time.Millisecond, log: slog.New(slog.NewJSONHandler(&said, nil)), find: func() ([]byte, string, error) {
				asked++
				if c.document == nil || asked <= c.late {
					return nil, "", initdata.ErrNoInitdata
				}
				return c.document, "/dev/vdb", nil
			}}
			data, err := r.receive(context.Background(), c.host)
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) || data != nil {
					t.Errorf("%v, error %v, want %q", data, err, c.err)
				}
				return
			}
			if err != nil || data["policy.rego"] != c.policy {
				t.Errorf("%q, %v", data, err)
			}
			if warned := strings.Contains(said.String(), "measured by nothing"); warned != (!c.host.Measured() && c.document != nil) {
				t.Errorf("it says %s", said.String())
			}
			if strings.Contains(said.String(), "private") {
				t.Errorf("what the initdata holds is in the log: %s", said.String())
			}
		})
	}
}

func TestReceiveStopsWaiting(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	r := receiver{wait: time.Hour, log: slog.New(slog.DiscardHandler), find: func() ([]byte, string, error) { return nil, "", initdata.ErrNoInitdata }}
	if _, err := r.receive(ctx, hostdata.Commitment{Platform: attestation.SNP, Digest: attestation.PolicyHash{1}}); err == nil {
		t.Error("received")
	}
}

func TestAFaultOfTheDisksIsTold(t *testing.T) {
	fault := errors.New("/dev/vdb and /dev/vdc both have initdata")
	r := receiver{log: slog.New(slog.DiscardHandler), find: func() ([]byte, string, error) { return nil, "", fault }}
	for _, c := range []hostdata.Commitment{{}, {Platform: attestation.SNP}, {Platform: attestation.SNP, Digest: attestation.PolicyHash{1}}} {
		if data, err := r.receive(context.Background(), c); !errors.Is(err, fault) || data != nil {
			t.Errorf("%+v: %v, error %v, want the disks' own", c, data, err)
		}
	}
}
