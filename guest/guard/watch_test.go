package guard_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"portcullis.dev/portcullis/guest/guard"
	"portcullis.dev/portcullis/tests/netlab"
)

// watching runs Watch in h for the test and returns what it reports.
func watching(t *testing.T, h *netlab.Host, watch func(context.Context, func(guard.Change)) error) <-chan guard.Change {
	t.Helper()
	changes := make(chan guard.Change)
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- h.Do(func() error {
			return watch(ctx, func(c guard.Change) {
				select {
				case changes <- c:
				case <-ctx.Done():
				}
			})
		})
	}()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Errorf("Watch returned %v", err)
		}
	})
	if first := next(t, changes); !first.Missed || first.Err != nil {
		t.Errorf("the first report is %+v, want what was missed before it", first)
	}
	return changes
}

func next(t *testing.T, changes <-chan guard.Change) guard.Change {
	t.Helper()
	select {
	case c := <-changes:
		return c
	case <-time.After(patience):
		t.Fatal("no change was reported")
		return guard.Change{}
	}
}

func TestWatchReportsOthersChangesAndTheirMaker(t *testing.T) {
	t.Parallel()
	h := netlab.NewHost(t, "guest")
	do(t, h, guard.Arm)
	changes := watching(t, h, guard.Watch)
	for _, step := range []struct {
		change string
		want   guard.State
	}{
		{"add table inet elsewhere", guard.Closed},
		{"insert rule inet podvm_guard input accept", guard.Foreign},
		{"delete table inet podvm_guard", guard.Opened},
	} {
		nft(t, h, step.change)
		got := next(t, changes)
		if got.Process != "nft" || got.PID == 0 || got.Missed || got.Err != nil || got.Status.State != step.want {
			t.Errorf("nft %s: reported as %+v, want process nft and state %s", step.change, got, step.want)
		}
	}
}

// What this process does itself is no news, even between changes of others.
func TestWatchIsSilentAboutOwnChanges(t *testing.T) {
	t.Parallel()
	h := netlab.NewHost(t, "guest")
	do(t, h, guard.Arm)
	changes := watching(t, h, guard.Watch)
	for i := range 20 {
		do(t, h, inTurn(raise(examplePorts), guard.Close, guard.Lock{}.Close, guard.Arm))
		nft(t, h, fmt.Sprintf("add table inet other%d", i))
		do(t, h, inTurn(guard.Lock{}.Arm, guard.Open, guard.Arm))
		if got := next(t, changes); got.Process != "nft" {
			t.Fatalf("round %d: reported %+v, want nft's change and no other", i, got)
		}
	}
	nft(t, h, "add table inet last")
	if got := next(t, changes); got.Process != "nft" {
		t.Errorf("reported %+v, want nft's change and no other", got)
	}
}

// Lost messages are as good as a change: the table is looked at again.
func TestWatchLooksAgainWhenItMissedChanges(t *testing.T) {
	t.Parallel()
	h := netlab.NewHost(t, "guest")
	do(t, h, guard.Arm)
	changes := watching(t, h, func(ctx context.Context, f func(guard.Change)) error {
		return guard.WatchWithBuffer(ctx, 4096, f)
	})
	// f is not called again before this reads from changes, so Watch does not read from the kernel.
	nft(t, h, "add table inet other")
	for range 50 {
		nft(t, h, "add chain inet other more; delete chain inet other more")
	}
	nft(t, h, "delete table inet podvm_guard")
	for {
		if got := next(t, changes); got.Missed {
			if got.Status.State != guard.Opened || got.Err != nil {
				t.Errorf("reported %+v, want that the table is gone", got)
			}
			return
		}
	}
}
