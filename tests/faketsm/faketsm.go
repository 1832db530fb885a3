// Package faketsm is a pretended configfs-tsm, which behaves as the kernel's does (Linux, drivers/virt/coco/guest/report.c): a
// request is a folder whose write-only attributes count its generation, and whose outblob is made when it is read for the
// first time in a generation. Nothing that is shipped imports it.
package faketsm

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strconv"
	"strings"
	"sync"
	"syscall"
)

// Folder is where requests are made.
const Folder = "/sys/kernel/config/tsm/report"

// Kernel is a configfsi.Client on a kernel of its own.
type Kernel struct {
	// Provider is the platform's driver. With none, no request can be made.
	Provider string
	// Report makes outblob and auxblob: it is the hardware.
	Report func(in []byte) (out, aux []byte, err error)
	// Floor is the lowest privilege level that the guest may ask for: above 0 under an SVSM.
	Floor int
	// Meddle is called after each write to a request, with a function that writes to it as another process would.
	Meddle func(attribute string, write func(attribute string, content []byte))
	// Denied is returned by whatever touches the folder: what the kernel says to other users than root.
	Denied error

	mu         sync.Mutex
	made, most int
	requests   map[string]*request
}

type request struct {
	in            []byte
	written, read int // generations
	out, aux      []byte
}

// Requests is how many requests there are now, how many were made, and how many there were at most at the same time.
func (k *Kernel) Requests() (now, made, most int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.requests), k.made, k.most
}

func fault(op, name string, err error) error { return &fs.PathError{Op: op, Path: name, Err: err} }

// MkdirTemp makes a request.
func (k *Kernel) MkdirTemp(dir, pattern string) (string, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	name := path.Join(dir, fmt.Sprintf("%s%d", pattern, k.made))
	switch {
	case k.Denied != nil:
		return "", fault("mkdir", name, k.Denied)
	case dir != Folder:
		return "", fault("mkdir", name, syscall.EPERM)
	case k.Provider == "":
		return "", fault("mkdir", name, syscall.ENXIO)
	}
	if k.requests == nil {
		k.requests = map[string]*request{}
	}
	k.made++
	k.requests[name] = &request{}
	k.most = max(k.most, len(k.requests))
	return name, nil
}

// ReadFile reads an attribute.
func (k *Kernel) ReadFile(name string) ([]byte, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	r := k.requests[path.Dir(name)]
	if r == nil {
		return nil, fault("open", name, syscall.ENOENT)
	}
	switch attribute := path.Base(name); attribute {
	case "provider":
		return []byte(k.Provider + "\n"), nil
	case "generation":
		return fmt.Appendf(nil, "%d\n", r.written), nil
	case "privlevel_floor":
		return fmt.Appendf(nil, "%d\n", k.Floor), nil
	case "inblob", "privlevel":
		return nil, fault("open", name, syscall.EACCES)
	case "outblob", "auxblob":
		if len(r.in) == 0 {
			return nil, fault("read", name, syscall.EINVAL)
		}
		if r.read != r.written {
			out, aux, err := k.Report(bytes.Clone(r.in))
			if err != nil {
				return nil, fault("read", name, err)
			}
			r.out, r.aux, r.read = out, aux, r.written
		}
		if attribute == "auxblob" {
			return bytes.Clone(r.aux), nil
		}
		return bytes.Clone(r.out), nil
	}
	return nil, fault("open", name, syscall.ENOENT)
}

// WriteFile writes an attribute.
func (k *Kernel) WriteFile(name string, content []byte) error {
	attribute := path.Base(name)
	if err := k.write(path.Dir(name), attribute, content); err != nil {
		return fault("write", name, err)
	}
	if k.Meddle != nil {
		k.Meddle(attribute, func(attribute string, content []byte) { _ = k.write(path.Dir(name), attribute, content) })
	}
	return nil
}

func (k *Kernel) write(folder, attribute string, content []byte) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	r := k.requests[folder]
	if r == nil {
		return syscall.ENOENT
	}
	switch attribute {
	case "inblob":
		if len(content) == 0 || len(content) > 64 {
			return syscall.EINVAL
		}
		r.in = bytes.Clone(content)
	case "privlevel":
		// Only SEV-SNP has levels.
		if k.Provider != "sev_guest" {
			return syscall.ENOENT
		}
		level, err := strconv.Atoi(strings.TrimSuffix(string(content), "\n"))
		if err != nil || level < k.Floor || level > 3 {
			return syscall.EINVAL
		}
	default:
		return syscall.EACCES
	}
	r.written++
	return nil
}

// RemoveAll ends a request.
func (k *Kernel) RemoveAll(name string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.requests[name] == nil {
		return fault("rmdir", name, syscall.ENOENT)
	}
	delete(k.requests, name)
	return nil
}

// ReadDir lists the requests.
func (k *Kernel) ReadDir(name string) ([]os.DirEntry, error) {
	return nil, fault("open", name, syscall.EACCES)
}
