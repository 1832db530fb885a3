package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"path/filepath"
	"syscall"

	"portcullis.dev/portcullis/api"
	"portcullis.dev/portcullis/tests/netlab"
)

// checkRecovery kills the Coordinator, and with it the only copy of the seed, and has its owner give the seed back.
func (d *demo) checkRecovery(ctx context.Context) error {
	pod := d.pods["coordinator"]
	if d.broke != "restart" {
		container := pod.Container("coordinator")
		if err := container.Signal(syscall.SIGKILL); err != nil {
			return err
		}
		<-container.Done()
		if err := pod.Start(ctx, "coordinator"); err != nil {
			return err
		}
		if err := d.awaitCoordinator(ctx, pod); err != nil {
			return err
		}
	}
	d.addState(ctx, "the Coordinator killed and started again", api.StateNeedsRecovery, pod.VM)
	if d.broke == "restart" {
		return nil
	}
	if d.broke != "owner" {
		if err := d.recover(ctx, pod.VM); err != nil {
			return err
		}
	}
	d.addState(ctx, "the Coordinator after portcullis recover", api.StateActive, pod.VM)
	return nil
}

// recover is what the seed-share owner does, with the key and the share that lie beside the manifest.
func (d *demo) recover(ctx context.Context, vm *netlab.PodVM) error {
	return d.ownerRuns(ctx, binary("portcullis"), "recover", "--coordinator", fmt.Sprintf("%s:%d", vm.IPv4, api.Port),
		"--manifest", filepath.Join(d.shop.dir, "manifest.json"))
}

// addState adds a row about what the Coordinator says of itself.
func (d *demo) addState(ctx context.Context, check, want string, vm *netlab.PodVM) {
	o := get(ctx, d.owner, netip.AddrPortFrom(vm.IPv4, api.Port), api.PathHealth, nil)
	saw := o.String()
	var health api.Health
	if json.Unmarshal([]byte(o.answer), &health) == nil && health.State != "" {
		saw = health.State
	}
	d.table.Add(check, "-", want, saw, saw == want)
}
