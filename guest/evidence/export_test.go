package evidence

import (
	"portcullis.dev/portcullis/attestation"
	"portcullis.dev/portcullis/attestation/tsm"
)

// NewSocketIssuer lets tests use sockets of their own: there is one Socket per network namespace.
var NewSocketIssuer = newSocketIssuer

// HardwareOn is Hardware on another kernel.
func HardwareOn(
	tee string, open func() (*tsm.Source, error), device func() (attestation.Issuer, error),
) (attestation.Issuer, error) {
	return (&search{open: open, openDevice: device}).hardware(tee)
}
