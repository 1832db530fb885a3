package main

import (
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"google.golang.org/protobuf/proto"

	"portcullis.dev/portcullis/tests/podvm/kata"
)

// become makes a root of the image's programs and the container's mounts in a mount namespace of its own, and runs the process in it.
func become(encoded string, args []string) error {
	b, err := hex.DecodeString(encoded)
	if err != nil {
		return err
	}
	var spec kata.Spec
	if err := proto.Unmarshal(b, &spec); err != nil {
		return err
	}
	const root = "/run/kata-containers/root"
	if err := errors.Join(
		syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_SLAVE, ""),
		os.MkdirAll(root, 0o755),
		syscall.Mount("tmpfs", root, "tmpfs", 0, "mode=0755"),
	); err != nil {
		return fmt.Errorf("make a root: %w", err)
	}
	type mount struct {
		from, to string
		flags    uintptr
	}
	mounts := []mount{{"/usr", "/usr", 0}, {"/dev", "/dev", syscall.MS_REC}, {"/proc", "/proc", 0}}
	for _, m := range spec.GetMounts() {
		mounts = append(mounts, mount{m.GetSource(), m.GetDestination(), syscall.MS_REC})
	}
	for _, m := range mounts {
		at := filepath.Join(root, m.to)
		if err := errors.Join(os.MkdirAll(at, 0o755), syscall.Mount(m.from, at, "", syscall.MS_BIND|m.flags, "")); err != nil {
			return fmt.Errorf("mount %s: %w", m.to, err)
		}
	}
	for _, name := range []string{"bin", "lib", "lib64", "sbin"} {
		if err := os.Symlink("usr/"+name, filepath.Join(root, name)); err != nil {
			return err
		}
	}
	etc := filepath.Join(root, "etc")
	servers, _ := os.ReadFile(kata.ResolvConf)
	if err := errors.Join(
		os.MkdirAll(etc, 0o755), os.WriteFile(filepath.Join(etc, "resolv.conf"), servers, 0o644),
		syscall.Chroot(root), os.Chdir("/"),
	); err != nil {
		return err
	}
	user := spec.GetProcess().GetUser()
	if err := errors.Join(syscall.Setgid(int(user.GetGID())), syscall.Setuid(int(user.GetUID()))); err != nil {
		return err
	}
	return fmt.Errorf("run %s: %w", args[0], syscall.Exec(args[0], args, os.Environ()))
}
