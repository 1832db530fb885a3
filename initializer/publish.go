package initializer

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// publishInterval is how soon a volume that appeared is filled, and keptInterval how often it is looked at after that.
const publishInterval, keptInterval = 250 * time.Millisecond, 5 * time.Second

// publish keeps the pod's volume for its containers as the folder of the services: with the same files, for as long as the volume is
// there. In a guest's own placement the agent mounts it when it makes the sandbox, which may be before or after the credentials came.
func (k *keeper) publish(ctx context.Context) error {
	if k.Volume == "" {
		return nil
	}
	var published *Credentials
	var into uint64
	var complained string
	for {
		if held := k.current(); held != nil {
			device, err := memoryVolume(k.Volume)
			switch {
			case errors.Is(err, fs.ErrNotExist):
				published = nil
			case err == nil && (held != published || device != into):
				if err = held.store(k.Volume, time.Now()); err == nil {
					published, into = held, device
					k.Log.Info("the pod's volume has the credentials", "volume", k.Volume)
				}
			}
			switch {
			case err == nil, errors.Is(err, fs.ErrNotExist):
				complained = ""
			case err.Error() != complained:
				complained = err.Error()
				k.Log.Error("the pod's volume does not get the credentials", "error", complained)
			}
		}
		wait := publishInterval
		if published != nil {
			wait = keptInterval
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
	}
}

// memoryVolume says which file system is mounted on path: it must be one in memory, mounted there. Keys go to no disk, which is the
// host's, and to no folder that is only called as the volume is. The error is fs.ErrNotExist until something is mounted there.
func memoryVolume(path string) (device uint64, err error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	parent, err := os.Stat(filepath.Dir(path))
	if err != nil {
		return 0, err
	}
	var stat unix.Stat_t
	var statfs unix.Statfs_t
	if err := errors.Join(unix.Fstat(fd, &stat), unix.Fstatfs(fd, &statfs)); err != nil {
		return 0, err
	}
	switch {
	case stat.Dev == parent.Sys().(*syscall.Stat_t).Dev:
		return 0, fmt.Errorf("%s: nothing is mounted on it yet: %w", path, fs.ErrNotExist)
	case statfs.Type != unix.TMPFS_MAGIC && statfs.Type != unix.RAMFS_MAGIC:
		return 0, fmt.Errorf("%s is not in memory: its file system is %#x", path, statfs.Type)
	}
	return stat.Dev, nil
}
