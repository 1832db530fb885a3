// Package image holds what the podVM's image and the programs in it must agree on. The scripts of this folder build the image.
package image

import _ "embed"

// DenyAll is a policy of the Kata agent that refuses every request: what holds where the pod's measured initdata says nothing.
//
//go:embed tree/etc/kata-opa/default-policy.rego
var DenyAll string
