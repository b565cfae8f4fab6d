#!/bin/sh
# Installs the NSQ clients of other languages that the interop tests run against the test broker: go-nsq, pynsq, nsqjs.
#
#   tests/interop/install-clients.sh [DIR]
#
# DIR is taken relative to the repository root and defaults to target/clients, where the tests look. A second call only
# builds what has changed. A language whose tools are missing is left out and named, and the script fails at the end.
set -eu

CDPATH='' cd -- "$(dirname -- "$0")/../.."
directory=${1:-target/clients}
case $directory in
/*) ;;
*) directory=$PWD/$directory ;;
esac
sources=$PWD/tests/interop
mkdir -p "$directory"

left_out=
leave_out() {
    echo "install-clients.sh: $1 is left out: $2" >&2
    left_out="$left_out $1"
}

# Whether $2, what a language's part was installed from, is what its directory $1 was installed from, too.
installed() {
    cmp -s "$2" "$directory/$1/installed"
}

install_go() {
    command -v go >/dev/null 2>&1 || { leave_out go-nsq "needs Go 1.17 or newer"; return; }
    # Go itself knows whether anything has changed.
    (cd "$sources/go" && GOWORK=off CGO_ENABLED=0 go build -mod=readonly -trimpath -o "$directory/go/client" ./client) ||
        leave_out go-nsq "does not build"
}

# A Python that the pinned versions can run on, whether or not it is the system's own.
find_python() {
    for candidate in python3.11 python3.10 python3.9 python3; do
        if "$candidate" -c 'import sys, venv; sys.exit(not (3, 7) <= sys.version_info < (3, 12))' >/dev/null 2>&1; then
            echo "$candidate"
            return
        fi
    done
}

install_python() {
    requirements=$sources/python/requirements.txt
    ! installed python "$requirements" || return 0
    python=$(find_python)
    [ -n "$python" ] || { leave_out pynsq "needs Python 3.7 to 3.11 with its venv module"; return; }
    rm -rf "$directory/python"
    "$python" -m venv "$directory/python" &&
        "$directory/python/bin/python" -m pip install --quiet --disable-pip-version-check --requirement "$requirements" &&
        "$directory/python/bin/python" -c 'import nsq, snappy' &&
        cp "$requirements" "$directory/python/installed" || leave_out pynsq "pip could not install it"
}

install_node() {
    package=$sources/node/package.json
    ! installed node "$package" || return 0
    if ! command -v npm >/dev/null 2>&1 || ! node -e 'process.exit(parseInt(process.versions.node) < 18 ? 1 : 0)'; then
        leave_out nsqjs "needs Node 18 or newer with npm"
        return
    fi
    rm -rf "$directory/node"
    mkdir -p "$directory/node"
    cp "$package" "$sources/node/package-lock.json" "$directory/node/" &&
        npm ci --prefix "$directory/node" --no-audit --no-fund --silent &&
        NODE_PATH="$directory/node/node_modules" node -e 'require("nsqjs"), require("snappystream")' &&
        cp "$package" "$directory/node/installed" || leave_out nsqjs "npm could not install it"
}

install_go
install_python
install_node
[ -z "$left_out" ]
