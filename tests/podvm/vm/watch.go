package vm

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"portcullis.dev/portcullis/tests/netlab"
)

// A Door is what is knocked at: a transport, "tcp" or "udp", and a port.
type Door struct {
	Transport string
	Port      uint16
}

func (d Door) String() string { return fmt.Sprintf("%d/%s", d.Port, d.Transport) }

// Watch knocks at every door of some addresses without pause, until it is stopped. It is started before the machine is.
type Watch struct {
	from   *netlab.Host
	cancel context.CancelFunc
	all    sync.WaitGroup

	mu     sync.Mutex
	knocks []Knock
}

// Knock is one attempt.
type Knock struct {
	Began, Ended time.Time
	To           netip.Addr
	Door         Door
	// Answered says that the machine sent anything at all back: a handshake, a reset, a byte, an ICMP error of its own.
	Answered bool
	// Bytes are the first that an application sent over TCP.
	Bytes string
	Saw   string
}

// A knock waits this long for an answer, and the next one comes after a pause. Under TCG an answer takes milliseconds.
const (
	patience = time.Second
	pause    = 200 * time.Millisecond
)

// Knocking starts a Watch.
func Knocking(from *netlab.Host, addresses []netip.Addr, doors ...Door) *Watch {
	ctx, cancel := context.WithCancel(context.Background())
	w := &Watch{from: from, cancel: cancel}
	for _, a := range addresses {
		for _, d := range doors {
			w.all.Go(func() {
				for ctx.Err() == nil {
					k := knock(ctx, from, a, d)
					if ctx.Err() == nil {
						w.mu.Lock()
						w.knocks = append(w.knocks, k)
						w.mu.Unlock()
					}
					select {
					case <-ctx.Done():
					case <-time.After(pause):
					}
				}
			})
		}
	}
	return w
}

// Answered says whether a knock at a door has been answered so far.
func (w *Watch) Answered(to netip.Addr, d Door) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.ContainsFunc(w.knocks, func(k Knock) bool { return k.To == to && k.Door == d && k.Answered })
}

// Stop returns every knock, in the order in which they began.
func (w *Watch) Stop() Knocks {
	w.cancel()
	w.all.Wait()
	slices.SortFunc(w.knocks, func(a, b Knock) int { return a.Began.Compare(b.Began) })
	return w.knocks
}

// Knocks are some of a Watch.
type Knocks []Knock

// Before are those that ended before a moment.
func (k Knocks) Before(t time.Time) Knocks {
	return slices.DeleteFunc(slices.Clone(k), func(k Knock) bool { return !k.Ended.Before(t) })
}

// Answered are those that got an answer of whatever kind.
func (k Knocks) Answered() Knocks {
	return slices.DeleteFunc(slices.Clone(k), func(k Knock) bool { return !k.Answered })
}

// Timeouts are those that were sent, and met silence. Where the network has nobody of that address, nothing is sent.
func (k Knocks) Timeouts() Knocks {
	return slices.DeleteFunc(slices.Clone(k), func(k Knock) bool { return k.Saw != silence })
}

// String counts by what was seen.
func (k Knocks) String() string {
	seen := map[string]int{}
	for _, one := range k {
		seen[one.Saw]++
	}
	var counts []string
	for _, saw := range slices.Sorted(maps.Keys(seen)) {
		counts = append(counts, fmt.Sprintf("%d %s", seen[saw], saw))
	}
	return fmt.Sprintf("%d knocks: %s", len(k), strings.Join(counts, ", "))
}

const silence = "silence"

func knock(ctx context.Context, from *netlab.Host, to netip.Addr, d Door) (k Knock) {
	k = Knock{Began: time.Now(), To: to, Door: d}
	defer func() { k.Ended = time.Now() }()
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	conn, err := from.Dial(ctx, d.Transport, netip.AddrPortFrom(to, d.Port).String())
	if err == nil {
		defer conn.Close()
		deadline, _ := ctx.Deadline()
		conn.SetDeadline(deadline)
		if d.Transport == "tcp" {
			k.Answered, k.Saw = true, "connected"
		} else {
			_, err = conn.Write([]byte("anybody there?"))
		}
	}
	if err == nil {
		b := make([]byte, 64)
		var n int
		if n, err = conn.Read(b); n > 0 {
			k.Answered, k.Bytes, k.Saw, err = true, string(b[:n]), "bytes", nil
		}
	}
	var timeout net.Error
	switch {
	case k.Saw != "":
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ECONNRESET):
		k.Answered, k.Saw = true, "refused"
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		k.Saw = "nobody of that address"
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		k.Saw = silence
	default:
		k.Saw = fmt.Sprint(err)
	}
	return k
}
