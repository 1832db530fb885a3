package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	tcpproxyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"portcullis.dev/portcullis/attestation"
	"portcullis.dev/portcullis/guest/guard"
	"portcullis.dev/portcullis/meshproxy"
	"portcullis.dev/portcullis/meshproxy/config"
	"portcullis.dev/portcullis/meshproxy/envoy"
	"portcullis.dev/portcullis/pki"
	"portcullis.dev/portcullis/tests/netlab"
)

const (
	runDir  = "/run/portcullis"
	envoyIn = "/run/envoy" // of an Envoy without a mesh proxy
	nowhere = "nowhere"    // a cluster without endpoints
)

// portcullis is our way, as `portcullis generate` has it: a guard that was closed at boot, and the mesh proxy with every
// default, but for the flags.
func portcullis(programs programs, flags ...string) *variant {
	v := &variant{
		name:      "Portcullis",
		boot:      [][]string{{"/opt/bin/podvm-guard", "close"}},
		binaries:  []string{programs.podvmGuard, programs.meshproxy, programs.envoy},
		authority: meshAuthority,
		ready: func(ctx context.Context, root string) error {
			return meshproxy.Ready(ctx, root+runDir)
		},
	}
	v.proxy = func(p *pod) *netlab.Container {
		egress := ""
		if p == v.client {
			egress = fmt.Sprintf("answer#%s#%s:%d##sink#%s#%[2]s:%[5]d",
				egressAnswer, v.serverName(), portAnswer, egressSink, portSink)
		}
		return &netlab.Container{
			Name:    "meshproxy",
			Command: append([]string{"/opt/bin/" + nameOf(programs.meshproxy), "--ingress=", "--egress=" + egress}, flags...),
			Mounts: []netlab.Mount{
				{Volume: volumes + "contrast", Target: "/contrast", ReadOnly: true},
				{Volume: volumes + "meshproxy", Target: runDir},
			},
			Capabilities:    []string{"NET_ADMIN", "NET_RAW", "SETUID", "SETGID", "KILL"},
			NoNewPrivileges: true, ReadOnlyRoot: true,
		}
	}
	v.envoyAlone = func(*pod) *netlab.Container { return bareEnvoy(envoyIn + "/bootstrap.pb") }
	v.prepare = func(p *pod, id identity) error {
		files := map[string][]byte{
			"tls-config/certChain.pem": id.chain, "tls-config/key.pem": id.key, "tls-config/mesh-ca.pem": id.ca,
		}
		if err := p.put("contrast", files); err != nil {
			return err
		}
		if p != v.alone {
			return p.put("meshproxy", nil)
		}
		files, err := handshakesOnly(id)
		if err != nil {
			return err
		}
		if err := p.put("envoy", files); err != nil {
			return err
		}
		return p.Do(func() error { return guard.Raise(context.Background(), guard.Ports{}) })
	}
	return v
}

// meshAuthority is the Coordinator's CA, without the Coordinator.
func meshAuthority() (authority, error) {
	seed, err := pki.NewSeed(rand.Reader)
	if err != nil {
		return nil, err
	}
	root, err := pki.NewRootCA(seed.RootKey(), time.Now())
	if err != nil {
		return nil, err
	}
	var hash [32]byte
	rand.Read(hash[:])
	ca, err := pki.NewMeshCA(root, seed.RootKey(), hash, time.Now())
	if err != nil {
		return nil, err
	}
	return func(names ...string) (identity, error) {
		key, err := newLeafKey()
		if err != nil {
			return identity{}, err
		}
		var sans []pki.SAN
		for _, n := range names {
			san, err := pki.ParseSAN(n)
			if err != nil {
				return identity{}, err
			}
			sans = append(sans, san)
		}
		claims := attestation.Claims{Platform: attestation.Simulated, PolicyHash: attestation.PolicyHash{1}}
		leaf, err := ca.Issue(&key.PublicKey, sans, claims, 24*time.Hour, time.Now())
		if err != nil {
			return identity{}, err
		}
		pem, err := pki.EncodePrivateKey(key)
		if err != nil {
			return identity{}, err
		}
		return identity{
			chain: pki.EncodeCertificates(leaf, ca.Intermediate), key: pem.Reveal(), ca: pki.EncodeCertificates(ca.Certificate),
		}, nil
	}, nil
}

// handshakesOnly is what our Envoy reads, with one difference: after the handshake it has nowhere to connect to, and ends the
// connection.
func handshakesOnly(id identity) (map[string][]byte, error) {
	cfg, err := config.Parse("", "", "", "")
	if err != nil {
		return nil, err
	}
	b, err := envoy.Bootstrap(cfg, envoy.Options{Dir: envoyIn, MaxConnections: 1 << 10, MaxHeap: 1 << 30, MaxAge: time.Hour})
	if err != nil {
		return nil, err
	}
	if err := leadNowhere(b); err != nil {
		return nil, err
	}
	raw, err := proto.Marshal(b)
	if err != nil {
		return nil, err
	}
	files := map[string][]byte{"bootstrap.pb": raw, "admin/empty": nil}
	for name, content := range envoy.CredentialFiles(id.chain, id.key, id.ca) {
		files["credentials/"+envoy.DataLink+"/"+name] = content
	}
	for _, chain := range envoy.TicketChains(cfg) {
		var key [envoy.TicketKeyLen]byte
		rand.Read(key[:])
		files["tickets/"+envoy.DataLink+"/"+envoy.FileName(chain)] = envoy.TicketFile(chain, key)
	}
	return files, nil
}

func leadNowhere(b *bootstrapv3.Bootstrap) error {
	changed := 0
	for _, l := range b.StaticResources.Listeners {
		l.AccessLog = nil // or it would tell of every connection that it led nowhere
		for _, chain := range append(l.FilterChains, l.DefaultFilterChain) {
			for _, f := range chain.GetFilters() {
				proxy := &tcpproxyv3.TcpProxy{}
				if !f.GetTypedConfig().MessageIs(proxy) {
					continue
				}
				if err := f.GetTypedConfig().UnmarshalTo(proxy); err != nil {
					return err
				}
				if proxy.UpstreamConnectMode != tcpproxyv3.UpstreamConnectMode_ON_DOWNSTREAM_TLS_HANDSHAKE {
					continue
				}
				proxy.ClusterSpecifier = &tcpproxyv3.TcpProxy_Cluster{Cluster: nowhere}
				packed, err := anypb.New(proxy)
				if err != nil {
					return err
				}
				f.ConfigType = &listenerv3.Filter_TypedConfig{TypedConfig: packed}
				changed++
			}
		}
	}
	if changed == 0 {
		return errors.New("our bootstrap has no filter chain that waits for a handshake")
	}
	b.StaticResources.Clusters = append(b.StaticResources.Clusters, &clusterv3.Cluster{
		Name: nowhere, ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC},
		LoadAssignment: &endpointv3.ClusterLoadAssignment{ClusterName: nowhere},
	})
	return nil
}

// bareEnvoy is an Envoy with one worker on the first processor, and no mesh proxy around it.
func bareEnvoy(configFile string) *netlab.Container {
	return &netlab.Container{
		Name: "envoy",
		Command: []string{
			"/opt/bin/envoy", "--config-path", configFile, "--concurrency", "1", "--disable-hot-restart", "--log-level", "warning",
		},
		Mounts:          []netlab.Mount{{Volume: volumes + "envoy", Target: envoyIn}},
		Capabilities:    []string{"NET_ADMIN", "NET_RAW", "DAC_OVERRIDE"},
		NoNewPrivileges: true, ReadOnlyRoot: true,
	}
}

func envoyLive(ctx context.Context, root string) error {
	_, err := askAdmin(ctx, root+adminSocket, "/ready")
	return err
}
