#!/bin/sh
# Runs the tests that need a real API server, and no other, with binaries that must be there. A test that is skipped fails the run.
# Packages whose inputs are those of an earlier run that passed are not run again: go says "(cached)".
# Usage: test-cluster.sh CACHE, with vendor/ made
set -eu
PORTCULLIS_CLUSTER=$("$(dirname "$0")/cluster.sh" "$1")
export PORTCULLIS_CLUSTER
log=$(mktemp)
trap 'rm -f "$log"' EXIT
status=0
start=$(date +%s)
# Each package has an API server of its own, of some 300 MB, and mostly waits for it.
CGO_ENABLED=1 GOFLAGS=-mod=vendor go test -race -p 2 -timeout 15m -v \
	./coordinator/store/kubernetes ./tests/cluster ./deploy >"$log" 2>&1 || status=$?
CGO_ENABLED=1 GOFLAGS=-mod=vendor go test -race -timeout 10m -v \
	-run '^(TestScriptsInACluster|TestReplicasInACluster|TestAPIServerTakesWhatItTook)$' ./cmd/coordinator ./generate >>"$log" 2>&1 || status=$?
if [ "$status" -ne 0 ]; then cat "$log" >&2; fi
awk -v seconds="$(($(date +%s) - start))" '
	/^ *--- PASS/ { passed++ }
	/^ *--- FAIL/ { failed++ }
	/^ *--- SKIP/ { skipped++; print }
	/^ok / { print }
	END { printf "%d passed, %d failed, %d skipped against a real API server, in %d s\n", passed, failed, skipped, seconds
	      exit failed + skipped > 0 || passed == 0 }' "$log" || status=1
exit "$status"
