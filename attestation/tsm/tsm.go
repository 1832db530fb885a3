// Package tsm asks the kernel for evidence, through configfs-tsm (Linux, Documentation/ABI/testing/configfs-tsm-report): the
// one interface to SEV-SNP and TDX that needs no device file.
//
// A request is a folder with attributes: what is written to inblob comes back signed in outblob. The folder counts
// what is written to it, so that a reader can see that nobody else wrote meanwhile. The firmware behind it answers one
// request at a time, so here they queue up, and a caller who has gone leaves the queue.
package tsm

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/google/go-configfs-tsm/configfs/configfsi"
	"github.com/google/go-configfs-tsm/configfs/linuxtsm"
	"github.com/google/go-configfs-tsm/report"
)

// Path is the folder that requests are made in.
const Path = configfsi.TsmPrefix + "/report"

// The providers, as the attribute provider names them.
const (
	SNP = "sev_guest"
	TDX = "tdx_guest"
)

// Source is the kernel's interface with the provider behind it.
type Source struct {
	client   configfsi.Client
	provider string
	queue    *Queue
}

// Open finds out who provides evidence in this guest. The error says what is missing.
func Open() (*Source, error) {
	client, err := linuxtsm.MakeClient()
	if err != nil {
		return nil, err
	}
	return Through(client)
}

// Through is Open with another way to the attributes.
func Through(client configfsi.Client) (*Source, error) {
	s := &Source{client: client, queue: NewQueue()}
	n := &noting{Client: client}
	r, err := report.CreateOpenReport(n)
	if err != nil {
		return nil, n.fault(err)
	}
	provider, err := r.ReadOption("provider")
	if err := errors.Join(err, r.Destroy()); err != nil {
		return nil, n.fault(err)
	}
	if s.provider = name(provider); s.provider == "" {
		return nil, fmt.Errorf("%s names no provider", Path)
	}
	return s, nil
}

// Provider is SNP, TDX, or the name of a platform that is neither.
func (s *Source) Provider() string { return s.provider }

// Request is what is asked of the provider.
type Request struct {
	ReportData [64]byte
	// Privileged asks for privilege level 0, VMPL 0. Only SEV-SNP has such levels.
	Privileged bool
	// Auxiliary asks for the auxblob: on SEV-SNP the certificate table.
	Auxiliary bool
}

// Get asks for a report and returns the attributes outblob and auxblob. One request is made at a time.
func (s *Source) Get(ctx context.Context, r Request) (out, aux []byte, err error) {
	response, err := Ask(ctx, s.queue, func() (*report.Response, error) { return s.once(r) })
	if err != nil {
		return nil, nil, fmt.Errorf("ask %s for a report: %w", s.provider, err)
	}
	return response.OutBlob, response.AuxBlob, nil
}

func (s *Source) once(r Request) (*report.Response, error) {
	client := &noting{Client: s.client}
	request := &report.Request{InBlob: r.ReportData[:], GetAuxBlob: r.Auxiliary}
	if r.Privileged {
		request.Privilege = &report.Privilege{Level: 0}
	}
	response, err := report.Get(client, request)
	switch {
	case err != nil:
		return nil, client.fault(err)
	case name([]byte(response.Provider)) != s.provider:
		return nil, fmt.Errorf("the provider is %q now", name([]byte(response.Provider)))
	case len(response.OutBlob) == 0:
		return nil, errors.New("the report is empty")
	}
	return response, nil
}

// noting keeps the last error of a client: of most errors, the library keeps the text alone.
type noting struct {
	configfsi.Client
	last error
}

// fault is the library's error and what caused it.
func (n *noting) fault(err error) error {
	if n.last == nil || errors.Is(err, n.last) {
		return err
	}
	return &fault{err, n.last}
}

type fault struct{ library, cause error }

func (f *fault) Error() string { return f.library.Error() }

func (f *fault) Unwrap() []error { return []error{f.library, f.cause} }

func (n *noting) note(err error) error {
	if err != nil {
		n.last = err
	}
	return err
}

func (n *noting) MkdirTemp(dir, pattern string) (string, error) {
	path, err := n.Client.MkdirTemp(dir, pattern)
	return path, n.note(err)
}

func (n *noting) ReadFile(name string) ([]byte, error) {
	b, err := n.Client.ReadFile(name)
	return b, n.note(err)
}

func (n *noting) WriteFile(name string, contents []byte) error {
	return n.note(n.Client.WriteFile(name, contents))
}

func (n *noting) RemoveAll(path string) error { return n.note(n.Client.RemoveAll(path)) }

// name is an attribute's text.
func name(attribute []byte) string { return strings.TrimSuffix(string(attribute), "\n") }
