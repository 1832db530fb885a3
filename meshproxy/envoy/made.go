package envoy

import (
	"fmt"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	"google.golang.org/protobuf/proto"

	"portcullis.dev/portcullis/meshproxy/config"
)

// Made is a bootstrap in its binary form, and what of it concerns others than Envoy.
type Made struct {
	Bootstrap []byte
	Listeners []string // their names
	Ports     []uint16 // that listeners are on
	Clusters  []string // their names
	Secrets   []string // the names under which TLS contexts ask for secrets
}

// Make is Bootstrap for whoever hands it to Envoy.
func Make(cfg *config.Config, o Options) (*Made, error) {
	b, err := Bootstrap(cfg, o)
	if err != nil {
		return nil, err
	}
	return Describe(b)
}

// Describe is what Make makes of a bootstrap.
func Describe(b *bootstrapv3.Bootstrap) (*Made, error) {
	m := &Made{Secrets: secretsOf(b)}
	for _, l := range b.GetStaticResources().GetListeners() {
		m.Listeners = append(m.Listeners, l.GetName())
		m.Ports = append(m.Ports, uint16(l.GetAddress().GetSocketAddress().GetPortValue()))
	}
	for _, c := range b.GetStaticResources().GetClusters() {
		m.Clusters = append(m.Clusters, c.GetName())
	}
	var err error
	if m.Bootstrap, err = proto.Marshal(b); err != nil {
		return nil, fmt.Errorf("encode Envoy's bootstrap: %w", err)
	}
	return m, nil
}
