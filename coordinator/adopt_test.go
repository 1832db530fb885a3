package coordinator

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"testing"
	"time"

	"portcullis.dev/portcullis/api"
	"portcullis.dev/portcullis/manifest"
	"portcullis.dev/portcullis/manifest/strictjson"
	"portcullis.dev/portcullis/pki"
)

// handed is what a replica of three manifests that follow one another hands to another one, and its mesh CAs.
func handed(t testing.TB) (overlaps, []*pki.MeshCA) {
	t.Helper()
	seed, err := pki.NewSeed(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	root, err := pki.NewRootCA(seed.RootKey(), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	var o overlaps
	var meshes []*pki.MeshCA
	for i := range 3 {
		mesh, err := pki.NewMeshCAWithSuccessors(root, seed.RootKey(), [32]byte{byte(i + 1)}, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		if i > 0 {
			if err := mesh.Succeed(meshes[i-1], time.Hour, time.Now()); err != nil {
				t.Fatal(err)
			}
			o = append(o, overlap{mesh.Before.Predecessor.Raw, mesh.Before.Cross.Raw})
		}
		meshes = append(meshes, mesh)
	}
	return o, meshes
}

// received is a generation as a replica makes it from what it was handed: the same mesh CA, and nothing of before.
func received(mesh *pki.MeshCA) *generation {
	return &generation{mesh: &pki.MeshCA{Key: mesh.Key, Certificate: mesh.Certificate, Intermediate: mesh.Intermediate}}
}

func TestOverlapsTravelFromReplicaToReplica(t *testing.T) {
	o, meshes := handed(t)
	text, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	var read overlaps
	if err := strictjson.Unmarshal(text, &read); err != nil {
		t.Fatal(err)
	}
	g := received(meshes[2])
	if err := g.adopt(read); err != nil {
		t.Fatal(err)
	}
	if g.mesh.Before == nil || !g.mesh.Before.Predecessor.Equal(meshes[1].Certificate) {
		t.Error("the predecessor is not the one of the replica that gave it")
	}
	for i, mesh := range meshes[:2] {
		if got := g.overlaps.after(sha256.Sum256(mesh.Certificate.Raw), time.Now()); string(got) != string(o[i].Cross) {
			t.Errorf("after manifest %d: another cross-certificate", i+1)
		}
	}
	if g.overlaps.after(sha256.Sum256(meshes[2].Certificate.Raw), time.Now()) != nil {
		t.Error("something came after the last manifest")
	}
	over := time.Now().Add(time.Hour)
	if g.overlaps.after(sha256.Sum256(meshes[0].Certificate.Raw), over) != nil || len(g.overlaps.at(over)) != 0 {
		t.Error("what is over is still told")
	}
	// A manifest without Successors came last: the overlaps before it are handed on all the same.
	if last := received(meshes[2]); last.adopt(o[:1]) != nil || last.mesh.Before != nil || len(last.overlaps) != 1 {
		t.Error("an overlap of before is taken for this one's, or lost")
	}
	if none := received(meshes[2]); none.adopt(nil) != nil || none.mesh.Before != nil {
		t.Error("no overlaps are something")
	}
}

func TestOverlapsThatAreNoneAreNotAdopted(t *testing.T) {
	o, meshes := handed(t)
	other, _ := handed(t)
	for name, bad := range map[string]overlaps{
		"another Coordinator's predecessor": {o[0], {other[1].Predecessor, o[1].Cross}},
		"another's cross-certificate":       {o[0], {o[1].Predecessor, other[1].Cross}},
		"no cross-certificate":              {{Predecessor: o[0].Predecessor}, o[1]},
		"no predecessor":                    {o[0], {Cross: o[1].Cross}},
		"half a certificate":                {o[0], {o[1].Predecessor, o[1].Cross[:100]}},
		"the two exchanged":                 {{o[0].Cross, o[0].Predecessor}},
		"too many":                          make(overlaps, maxOverlaps+1),
	} {
		g := received(meshes[2])
		if g.adopt(bad) == nil || g.overlaps != nil || g.mesh.Before != nil {
			t.Errorf("%s: adopted", name)
		}
	}
}

func TestOwnersWhoSetManyManifestsDoNotFillTheMemory(t *testing.T) {
	seed, err := pki.NewSeed(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	d, err := manifest.NewOverlap(time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	m := &manifest.Manifest{Successors: &manifest.Successors{MaxOverlap: d}}
	var before *generation
	for i := range maxOverlaps + 3 {
		g := &generation{transition: &manifest.Transition{Manifest: m, Hash: [32]byte{byte(i + 1)}}}
		if err := g.take(seed, now); err != nil {
			t.Fatal(err)
		}
		if err := g.newMeshCA(uint64(i+1), now); err != nil {
			t.Fatal(err)
		}
		if err := g.succeed(before, now); err != nil {
			t.Fatal(err)
		}
		before = g
	}
	if n := len(before.overlaps); n != maxOverlaps {
		t.Errorf("%d overlaps are kept, want %d", n, maxOverlaps)
	}
	if last := before.overlaps[maxOverlaps-1]; string(last.Predecessor) != string(before.mesh.Before.Predecessor.Raw) {
		t.Error("the newest overlap is not among them")
	}
}

// What an old pod's question costs, HTTP aside, after as many updates as are kept:
//
//	go test ./coordinator -run '^$' -bench Successor
func BenchmarkSuccessor(b *testing.B) {
	o, meshes := handed(b)
	g := received(meshes[1])
	for len(g.overlaps) < maxOverlaps-1 {
		g.overlaps = append(g.overlaps, o[1])
	}
	g.overlaps = append(g.overlaps, o[0])
	var c Coordinator
	c.active.Store(g)
	digest := sha256.Sum256(o[0].Predecessor)
	for b.Loop() {
		if resp, err := c.successor(b.Context(), &api.SuccessorRequest{MeshCA: digest[:]}); err != nil || resp.Successor == nil {
			b.Fatal(resp, err)
		}
	}
}
