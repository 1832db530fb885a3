package coordinator

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"portcullis.dev/portcullis/api"
	"portcullis.dev/portcullis/attestation"
	"portcullis.dev/portcullis/manifest"
	"portcullis.dev/portcullis/manifest/strictjson"
	"portcullis.dev/portcullis/pki"
	"portcullis.dev/portcullis/pki/secret"
)

// This file is how a replica that has a history and no authority for it gets both keys, the seed and the mesh CA's, from
// one that serves.
//
// The network and the store are the host's. What it may try, and what is in its way: to ask in a replica's place (evidence,
// judged by the newest manifest, in which the policy must have the role of a coordinator); to have a replica begin with an
// old store (a giver knows the newest transition, and gives nothing to who asks for another); to answer in a replica's place
// (evidence again, judged by the manifest that is to be activated, over this one request's key); to hand over a seed or a mesh
// CA of its own (both must fit the signature and the hash in the store's latest, so it would have to have signed that
// with the seed). That a whole history is not the owners' at all, only they can see: docs/pinning.md.

const (
	maxPeers    = 16
	peerTimeout = 10 * time.Second
)

// peerState is what a generation holds that neither the seed nor the store gives back, and the seed. It has no business
// anywhere but between encode and decode: it is bytes in clear.
type peerState struct {
	Seed         []byte `json:"seed"`
	MeshKey      []byte `json:"meshKey"` // the scalar, 32 bytes
	MeshCA       []byte `json:"meshCa"`
	Intermediate []byte `json:"intermediate"`
	RootCA       []byte `json:"rootCa"` // its key follows from the seed; replicas also show one certificate of it
	// Overlaps are with the manifests before; the keys that signed them are gone.
	Overlaps overlaps `json:"overlaps,omitempty"`
}

// state is g as its peers need it.
func (g *generation) state() (secret.Bytes, error) {
	key, err := g.mesh.Key.Bytes()
	if err != nil {
		return secret.Bytes{}, fmt.Errorf("encode the mesh CA's key: %w", err)
	}
	text, err := json.Marshal(peerState{
		Seed: g.seed.Reveal(), MeshKey: key,
		MeshCA: g.mesh.Certificate.Raw, Intermediate: g.mesh.Intermediate.Raw, RootCA: g.root.Raw,
		Overlaps: g.overlaps,
	})
	if err != nil {
		return secret.Bytes{}, fmt.Errorf("encode the state: %w", err)
	}
	return secret.New(text), nil
}

// giveState gives what this Coordinator has to another replica of it.
func (c *Coordinator) giveState(ctx context.Context, req *api.PeerRequest) (*api.PeerResponse, error) {
	g, err := c.generation()
	if err != nil {
		return nil, err
	}
	if err := g.nonces.check(req.Nonce, c.clock.now()); err != nil {
		return nil, problem(api.CodeBadNonce).because(err)
	}
	if !bytes.Equal(req.TransitionHash, g.transition.Hash[:]) {
		return nil, problem(api.CodeConflict).
			saying("transitionHash is not the latest transition that this Coordinator knows: was the store rolled back?").
			because(fmt.Errorf("the replica's store ends with transition %x, want %x, the newest that this Coordinator knows",
				req.TransitionHash, g.transition.Hash))
	}
	claims, err := c.judgeReplica(ctx, g, req)
	if err != nil {
		return nil, err
	}
	// Only now, so that no stranger has the store asked: what this replica knows must be the newest that there is.
	if err := c.isLatest(ctx, g); err != nil {
		return nil, err
	}
	state, err := g.state()
	if err != nil {
		return nil, err
	}
	resp := new(api.PeerResponse)
	if err := resp.Seal(req, state); err != nil {
		return nil, err
	}
	if resp.Evidence, err = c.ownEvidence(ctx, resp.ReportData(req)); err != nil {
		return nil, err
	}
	if err := c.stillServes(g); err != nil {
		return nil, err
	}
	if err := c.auditGiven(g, req, claims); err != nil {
		return nil, err
	}
	c.log.Info("gave the state to another replica", "policyHash", claims.PolicyHash.String(), "platform", string(claims.Platform),
		"generation", len(g.history), "transition", hex.EncodeToString(g.transition.Hash[:]))
	return resp, nil
}

// judgeReplica says who asks, if it is a coordinator of the manifest.
func (c *Coordinator) judgeReplica(ctx context.Context, g *generation, req *api.PeerRequest) (attestation.Claims, error) {
	leave, err := c.judging.enter(ctx)
	if err != nil {
		return attestation.Claims{}, err
	}
	defer leave() // before the store is asked: pods do not wait for a store that hangs
	if _, err := api.ParseHPKEKey(req.HPKEKey); err != nil {
		return attestation.Claims{}, problem(api.CodeBadRequest).saying("hpkeKey is not a MLKEM768X25519 public key").because(err)
	}
	claims, policy, err := c.judge(ctx, g, req.Evidence, req.ReportData())
	if err != nil {
		return attestation.Claims{}, err
	}
	if policy.Role != manifest.RoleCoordinator {
		return attestation.Claims{}, c.refuseEvidence(req.Evidence, anotherPolicy(claims, wantCoordinator))
	}
	return claims, nil
}

// wantCoordinator is what the policy hash of a replica is to be, at either end.
var wantCoordinator = fmt.Sprintf("the hash of a policy with the role %q", manifest.RoleCoordinator)

// isLatest says whether the store names g, and nothing newer.
func (c *Coordinator) isLatest(ctx context.Context, g *generation) error {
	c.setMutex.Lock()
	defer c.setMutex.Unlock()
	if err := c.observe(ctx); err != nil {
		return problem(api.CodeUnavailable).saying("the store cannot be read now").because(err)
	}
	if s := c.split.Load(); s != nil {
		return problem(api.CodeSplitHistory).because(errors.New(s.reason))
	}
	return c.stillServes(g)
}

// asking is how the questions about one recovery went.
type asking struct {
	of     *recovery
	rounds int
	said   map[string]string // by address, so that one reason is logged once
}

// askPeers asks all peers at once, since any of them may be a hole in the network, and takes the first answer that is good.
// It says whether this replica serves again.
func (c *Coordinator) askPeers(ctx context.Context, r *recovery, a *asking) bool {
	if a.of != r {
		*a = asking{of: r}
	}
	a.rounds++
	ctx, cancel := context.WithTimeout(ctx, peerTimeout)
	defer cancel()
	addresses, err := c.peers(ctx)
	if err != nil {
		c.peerRefused(a, "", "unresolved", err)
		return false
	}
	rand.Shuffle(len(addresses), func(i, j int) { addresses[i], addresses[j] = addresses[j], addresses[i] })
	var got *generation
	var mutex sync.Mutex // over got and a
	var all sync.WaitGroup
	for _, address := range addresses[:min(len(addresses), maxPeers)] {
		all.Go(func() {
			g, err := c.askPeer(ctx, r, address)
			mutex.Lock()
			defer mutex.Unlock()
			switch {
			case got != nil: // too late, and perhaps cancelled therefore
			case err != nil:
				c.peerRefused(a, address, outcome(err), err)
			default:
				got = g
				cancel()
				c.metrics.peers.WithLabelValues("ok").Inc()
				c.log.Info("a peer gave its state", "peer", address)
			}
		})
	}
	all.Wait()
	return got != nil && c.takeOver(context.WithoutCancel(ctx), r, got)
}

// takeOver serves by what a peer gave for r, unless the store has moved on since.
func (c *Coordinator) takeOver(ctx context.Context, r *recovery, g *generation) bool {
	c.setMutex.Lock()
	defer c.setMutex.Unlock()
	if err := c.observe(ctx); err != nil {
		c.log.Warn("a peer's state is not used: whether it is the newest cannot be seen", "reason", err)
		return false
	}
	if c.recovering.Load() != r {
		return false
	}
	if err := c.auditRecovery(g); err != nil {
		c.log.Warn("a peer's state is not used", "reason", err)
		return false
	}
	c.activate(g)
	c.log.Info("recovered from a peer", "generation", len(g.history), "transition", hex.EncodeToString(g.transition.Hash[:]))
	return true
}

// askPeer is the protocol: the peer's nonce, evidence over it and a new key, the state sealed to that key.
func (c *Coordinator) askPeer(ctx context.Context, r *recovery, address string) (*generation, error) {
	client, err := api.New(address)
	if err != nil {
		return nil, err
	}
	req := &api.PeerRequest{TransitionHash: r.latest.transition[:]}
	if req.Nonce, err = client.Nonce(ctx); err != nil {
		return nil, err
	}
	key, err := api.NewHPKEKey()
	if err != nil {
		return nil, fmt.Errorf("make an HPKE key: %w", err)
	}
	req.HPKEKey = key.PublicKey().Bytes()
	if req.Evidence, err = c.ownEvidence(ctx, req.ReportData()); err != nil {
		return nil, err
	}
	resp, err := client.PeerState(ctx, *req)
	if err != nil {
		return nil, err
	}
	if err := r.judgePeer(ctx, req, resp); err != nil {
		return nil, err
	}
	state, err := resp.Open(req, key)
	if err != nil {
		return nil, &badAnswer{err}
	}
	g, err := r.fromPeer(state, time.Now(), c.log)
	if err != nil {
		return nil, &badAnswer{err}
	}
	return g, nil
}

// judgePeer says whether the answer is that of a coordinator of the manifest that r would activate.
func (r *recovery) judgePeer(ctx context.Context, req *api.PeerRequest, resp *api.PeerResponse) error {
	claims, err := r.validator.Validate(ctx, resp.Evidence, resp.ReportData(req))
	if err != nil {
		return err
	}
	if r.transition().Manifest.Policies[claims.PolicyHash].Role != manifest.RoleCoordinator {
		return anotherPolicy(claims, wantCoordinator)
	}
	return nil
}

// fromPeer makes the generation that the history ends with, if this is its state.
func (r *recovery) fromPeer(text secret.Bytes, now time.Time, log *slog.Logger) (*generation, error) {
	var s peerState
	if strictjson.Unmarshal(text.Reveal(), &s) != nil {
		return nil, errors.New("the state is malformed") // its errors might quote what is secret
	}
	seed, err := pki.ParseSeed(s.Seed)
	if err != nil {
		return nil, err
	}
	if !r.latest.signedBy(&seed.TransactionKey().PublicKey) {
		return nil, errors.New("the seed's transaction key did not sign the store's latest")
	}
	if hash := sha256.Sum256(s.MeshCA); hash != r.latest.meshCA {
		return nil, fmt.Errorf("the mesh CA is %x, want %x, which the store's latest names", hash, r.latest.meshCA)
	}
	g, err := r.generation(seed, now, log)
	if err != nil {
		return nil, err
	}
	root, err := x509.ParseCertificate(s.RootCA)
	if err != nil {
		return nil, fmt.Errorf("parse the root CA: %w", err)
	}
	if !bytes.Equal(root.RawSubjectPublicKeyInfo, g.root.RawSubjectPublicKeyInfo) {
		return nil, errors.New("the root CA is not of the seed")
	}
	if err := root.CheckSignatureFrom(root); err != nil {
		return nil, fmt.Errorf("the root CA is not self-signed: %w", err)
	}
	g.root, g.meshHash = root, r.latest.meshCA
	key, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), s.MeshKey)
	if err != nil {
		return nil, errors.New("the mesh CA's key is not an ECDSA P-256 key")
	}
	if g.mesh, err = pki.RestoreMeshCA(key, s.MeshCA, s.Intermediate, root, g.transition.Hash); err != nil {
		return nil, err
	}
	return g, g.adopt(s.Overlaps)
}

// badAnswer is an answer of a genuine peer that does not fit, or one that cannot be opened.
type badAnswer struct{ err error }

func (b *badAnswer) Error() string { return b.err.Error() }
func (b *badAnswer) Unwrap() error { return b.err }

// outcome is why a peer gave nothing, as one of few words, none of them the peer's.
func outcome(err error) string {
	if refused, ok := errors.AsType[*api.Error](err); ok {
		if _, known := problems[refused.Code]; known {
			return string(refused.Code)
		}
		return "other"
	}
	if _, rejected := errors.AsType[*attestation.Rejected](err); rejected {
		return "evidence-of-peer-rejected"
	}
	if _, unavailable := errors.AsType[*attestation.Unavailable](err); unavailable {
		return "evidence-of-peer-not-judged"
	}
	if _, own := errors.AsType[*refusal](err); own {
		return "no-evidence-of-its-own"
	}
	if _, bad := errors.AsType[*badAnswer](err); bad {
		return "state-of-peer-refused"
	}
	return "unreachable"
}

func (c *Coordinator) peerRefused(a *asking, address, outcome string, err error) {
	c.metrics.peers.WithLabelValues(outcome).Inc()
	if a.said[address] == outcome {
		return
	}
	if a.said == nil || len(a.said) > 4*maxPeers { // the host makes up addresses
		a.said = make(map[string]string)
	}
	a.said[address] = outcome
	c.log.LogAttrs(context.Background(), slog.LevelWarn, "no state from this peer",
		append([]slog.Attr{slog.String("peer", address), slog.String("outcome", outcome)}, reason(err)...)...)
}

// PeersAt returns the addresses of a name, "host" or "host:port", looked up anew at each call. In Kubernetes it is a headless
// Service's, with the addresses of replicas that are not ready among them.
func PeersAt(name string) (func(context.Context) ([]string, error), error) {
	host, port := name, strconv.Itoa(api.Port)
	if strings.ContainsAny(name, ":[]") {
		var err error
		if host, port, err = net.SplitHostPort(name); err != nil {
			return nil, fmt.Errorf("%q: want host or host:port", name)
		}
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 || host == "" {
		return nil, fmt.Errorf("%q: want host or host:port, and a port from 1 to 65535", name)
	}
	return func(ctx context.Context) ([]string, error) {
		found, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
		if err != nil {
			return nil, fmt.Errorf("look up the peers: %w", err)
		}
		for i, ip := range found {
			found[i] = ip.Unmap()
		}
		slices.SortFunc(found, netip.Addr.Compare)
		var addresses []string
		for _, ip := range slices.Compact(found) {
			addresses = append(addresses, net.JoinHostPort(ip.String(), port))
		}
		return addresses, nil
	}, nil
}
