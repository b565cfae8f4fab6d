#!/bin/sh
# Builds the nsqd and nsqlookupd that the interop tests run against.
#
#   tests/interop/install-brokers.sh [DIR]
#
# DIR is taken relative to the repository root and defaults to target/brokers, where the tests look. A second call
# returns at once: remove DIR to build again.
set -eu

CDPATH='' cd -- "$(dirname -- "$0")/../.."
directory=${1:-target/brokers}
case $directory in
/*) ;;
*) directory=$PWD/$directory ;;
esac

if [ -x "$directory/nsqd" ] && [ -x "$directory/nsqlookupd" ]; then
    exit 0
fi

if ! command -v go >/dev/null 2>&1; then
    echo "install-brokers.sh: go not found: install Go 1.17 or newer (https://go.dev/dl) to build nsqd and nsqlookupd" >&2
    exit 1
fi

mkdir -p "$directory"
# Built beside the final names and moved: an interrupted build leaves nothing that the check above would take for done.
scratch=$(mktemp -d "$directory/build.XXXXXX")
trap 'rm -rf "$scratch"' EXIT
trap 'exit 1' HUP INT TERM

# The replace directive of nsq's own go.mod makes Go refuse `go install ...@v1.3.0`, so a module of ours repeats it.
(cd tests/interop/go && GOWORK=off CGO_ENABLED=0 go build -mod=readonly -trimpath -o "$scratch/" \
    github.com/nsqio/nsq/apps/nsqd github.com/nsqio/nsq/apps/nsqlookupd)

mv "$scratch/nsqd" "$scratch/nsqlookupd" "$directory/"
echo "built nsqd and nsqlookupd in $directory"
