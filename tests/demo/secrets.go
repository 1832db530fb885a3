package main

import (
	"context"
	"crypto/ecdsa"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"

	"portcullis.dev/portcullis/api"
	"portcullis.dev/portcullis/manifest"
	"portcullis.dev/portcullis/pki"
	"portcullis.dev/portcullis/pki/secret/secrettest"
	"portcullis.dev/portcullis/tests/netlab"
)

// checkSecrets looks for every secret of this demo in what a host collects: all logs, the Coordinator's metrics and its store.
// Those that were never outside of a process (the mesh CA's key, HPKE keys) it cannot know; the tests of those programs do.
func (d *demo) checkSecrets(ctx context.Context) error {
	var secrets secrettest.Set
	for _, dir := range []string{d.shop.dir, d.path("other")} {
		if err := addOwners(&secrets, dir); err != nil {
			return err
		}
	}
	leaves := 0
	for _, pod := range d.pods {
		// Not every podVM has credentials: some were never to get any.
		if cert, err := credentials(pod.VM); err == nil {
			secrets.AddKey("a leaf key", cert.PrivateKey.(*ecdsa.PrivateKey))
			leaves++
		}
	}
	if leaves < 3 {
		return fmt.Errorf("%d pods have leaf keys to look for, want three and more", leaves)
	}
	if d.broke == "leak" {
		cert, err := d.pods["cart"].VM.Command("cat", "/run/volumes/contrast-secrets/tls-config/key.pem").Output()
		if err != nil {
			return err
		}
		if err := os.WriteFile(d.path("logs/leak.log"), cert, 0o600); err != nil {
			return err
		}
	}
	found, logs, err := secrets.FindInFiles(d.path("logs"), func(string) bool { return true })
	if err != nil {
		return err
	}
	coordinator := d.pods["coordinator"].VM
	metrics := get(ctx, d.owner, netip.AddrPortFrom(coordinator.IPv4, api.Port), api.PathMetrics, nil)
	store, err := d.readAs(coordinator, "coordinator", "/var/lib/portcullis/coordinator.db")
	if err != nil || metrics.answer == "" {
		return errors.Join(err, fmt.Errorf("the Coordinator's metrics: %s", metrics))
	}
	for where, text := range map[string][]byte{"the metrics": []byte(metrics.answer), "the store": store} {
		for _, s := range secrets.Find(text) {
			found = append(found, where+" have "+s)
		}
	}
	saw := fmt.Sprintf("none of %d secrets in %d logs", secrets.Len(), logs)
	if len(found) > 0 {
		saw = found[0]
	}
	d.table.Add("secrets in logs, metrics and store", "-", "none", saw, len(found) == 0)
	return nil
}

// addOwners adds what the owners of a deployment hold: their keys, and the seed, which their share of it gives back.
func addOwners(secrets *secrettest.Set, dir string) error {
	read := func(name string) ([]byte, error) { return os.ReadFile(filepath.Join(dir, name)) }
	text, err := read("workload-owner.pem")
	if err != nil {
		return err
	}
	workloadOwner, err := pki.ParsePrivateKey(text)
	if err != nil {
		return err
	}
	secrets.AddKey("the workload owner's key", workloadOwner)
	if text, err = read("seedshare-owner.pem"); err != nil {
		return err
	}
	shareOwner, err := pki.ParseSeedshareKey(text)
	if err != nil {
		return err
	}
	secrets.AddKey("the seed-share owner's signing key", shareOwner.Signing)
	secrets.AddHPKE("the seed-share owner's HPKE key", shareOwner.HPKE)
	files, err := filepath.Glob(filepath.Join(dir, "share-*.json"))
	if err != nil || len(files) != 1 {
		return fmt.Errorf("%s has the shares %v, want one: %w", dir, files, err)
	}
	if text, err = os.ReadFile(files[0]); err != nil {
		return err
	}
	var sealed api.SealedShare
	if err := json.Unmarshal(text, &sealed); err != nil {
		return err
	}
	share, err := sealed.Open(shareOwner.HPKE)
	if err != nil {
		return err
	}
	secrets.Add("the seed's share", share.Reveal()[1:])
	seed, err := pki.Combine([]pki.Share{share})
	if err != nil {
		return err
	}
	if text, err = read("manifest.json"); err != nil {
		return err
	}
	m, err := manifest.Parse(text)
	if err != nil {
		return err
	}
	var ids []string
	for _, p := range m.Policies {
		if p.WorkloadSecretID != "" {
			ids = append(ids, string(p.WorkloadSecretID))
		}
	}
	secrets.AddSeed(seed, ids...)
	return nil
}

// readAs reads a file as a program of a podVM sees it.
func (d *demo) readAs(vm *netlab.PodVM, program, path string) ([]byte, error) {
	found, err := vm.Processes(program)
	if err != nil || len(found) != 1 {
		return nil, fmt.Errorf("%s runs %d processes %s: %w", vm.Name, len(found), program, err)
	}
	return os.ReadFile(fmt.Sprintf("/proc/%d/root%s", found[0].Pid, path))
}
