package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"time"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
)

// lockWait is how long OpenBolt waits for another process to release the file: a predecessor that is being stopped.
const lockWait = 2 * time.Second

var (
	objectsBucket = []byte("objects")
	latestBucket  = []byte("latest")
	latestKey     = []byte("latest")
)

// Bolt is a Store in one file. It makes each Commit one transaction, on the disk (fsync) before it returns.
type Bolt struct{ db *bbolt.DB }

var _ Store = (*Bolt)(nil)

// OpenBolt opens or makes the file, and the directory it lies in.
func OpenBolt(path string) (*Bolt, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("make the store's directory: %w", err)
	}
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		if err := makeBolt(path); err != nil {
			return nil, err
		}
	}
	db, err := openFile(path)
	if err != nil {
		return nil, err
	}
	return &Bolt{db: db}, nil
}

// makeBolt makes the file under another name first. bbolt writes the first pages of a new file in place: after a power
// failure half of them would be there, and bbolt does not refuse such a file but reads beyond its end, which ends the process.
// A process that is killed here leaves that other file behind, which nobody needs.
func makeBolt(path string) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("make store %s: %w", path, err)
		}
	}()
	unfinished, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".new-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(unfinished.Name())) }()
	if err := unfinished.Close(); err != nil {
		return err
	}
	db, err := openFile(unfinished.Name())
	if err != nil {
		return err
	}
	if err := db.Close(); err != nil {
		return err
	}
	// Not a rename, which would take the file of another process that was faster away from it.
	if err := os.Link(unfinished.Name(), path); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	// The name must outlive a power failure, as what is committed under it does; and so must that of a new directory.
	directory := filepath.Dir(path)
	return errors.Join(syncDirectory(directory), syncDirectory(filepath.Dir(directory)))
}

func syncDirectory(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func openFile(path string) (_ *bbolt.DB, err error) {
	defer refuseDamage(path, &err)()
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{Timeout: lockWait, FreelistType: bbolt.FreelistMapType})
	switch {
	case errors.Is(err, bolterrors.ErrTimeout):
		return nil, fmt.Errorf("open store %s: another process holds it", path)
	case err != nil:
		return nil, fmt.Errorf("open store %s: %w", path, err)
	}
	whole := false
	err = db.View(func(tx *bbolt.Tx) error {
		whole = tx.Bucket(objectsBucket) != nil && tx.Bucket(latestBucket) != nil
		return nil
	})
	if err == nil && !whole { // a transaction without changes would write, too
		err = db.Update(func(tx *bbolt.Tx) error {
			for _, bucket := range [][]byte{objectsBucket, latestBucket} {
				if _, err := tx.CreateBucketIfNotExists(bucket); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("prepare store %s: %w", path, err), db.Close())
	}
	return db, nil
}

// Object implements Store.
func (b *Bolt) Object(_ context.Context, name Name) ([]byte, error) {
	data, err := b.get(objectsBucket, []byte(name.String()))
	if err != nil {
		return nil, err
	}
	if err := name.Verify(data); err != nil {
		return nil, err
	}
	return data, nil
}

// Latest implements Store.
func (b *Bolt) Latest(context.Context) ([]byte, error) {
	value, err := b.get(latestBucket, latestKey)
	if err == nil && len(value) == 0 {
		return nil, fmt.Errorf("store %s is damaged: latest is empty", b.db.Path())
	}
	return value, err
}

// Commit implements Store.
func (b *Bolt) Commit(ctx context.Context, objects []Object, old, new []byte) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if len(new) == 0 {
		return fmt.Errorf("commit to store %s: latest would be empty", b.db.Path())
	}
	err := b.db.Update(func(tx *bbolt.Tx) error {
		latest := tx.Bucket(latestBucket)
		if current := latest.Get(latestKey); (current == nil) != (old == nil) || !bytes.Equal(current, old) {
			return ErrConflict
		}
		bucket := tx.Bucket(objectsBucket)
		for _, o := range objects {
			if err := bucket.Put([]byte(o.Name.String()), o.Data); err != nil {
				return fmt.Errorf("put %s: %w", o.Name, err)
			}
		}
		return latest.Put(latestKey, new)
	})
	if err != nil {
		return fmt.Errorf("commit to store %s: %w", b.db.Path(), err)
	}
	return nil
}

// Close implements Store.
func (b *Bolt) Close() error { return b.db.Close() }

// refuseDamage makes an error of what bbolt makes of a damaged file: it trusts what it maps, and panics, or is sent SIGBUS
// where the file ends too early. It is called at once, and what it returns is deferred.
func refuseDamage(path string, err *error) func() {
	before := debug.SetPanicOnFault(true)
	return func() {
		debug.SetPanicOnFault(before)
		if p := recover(); p != nil {
			*err = fmt.Errorf("read store %s: the file is damaged: %v", path, p)
		}
	}
}

func (b *Bolt) get(bucket, key []byte) (value []byte, err error) {
	defer refuseDamage(b.db.Path(), &err)()
	err = b.db.View(func(tx *bbolt.Tx) error {
		found := tx.Bucket(bucket).Get(key)
		if found == nil {
			return fmt.Errorf("%s: %w", key, ErrNotFound)
		}
		value = bytes.Clone(found) // found is the file's, and gone after the transaction
		return nil
	})
	return value, err
}
