#!/bin/sh
# Writes src/quorate/abci/pb: Python classes for ABCI 2.0, from the .proto files of the CometBFT that go.mod pins.
#   PYTHON=python with grpcio-tools; run it after a change of the pin, commit what it writes.
# What is changed on the way, and why the wire stays the same:
# - gogoproto imports, options and [field options] are removed: they steer Go's generator only;
# - files and packages move under quorate.abci.pb, so that another library's copy of tendermint/*.proto in the same
#   process (cosmpy carries one) cannot clash with ours in protobuf's one global pool. Names are not on the wire.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
module=$(cd "$here" && GOFLAGS=-mod=readonly go list -m -f '{{.Dir}}' github.com/cometbft/cometbft)
[ -n "$module" ] || { echo "CometBFT's module is not downloaded; run: cd third_party/cometbft && go mod download" >&2; exit 1; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
target=quorate/abci/pb/tendermint
for f in abci/types types/params types/validator crypto/proof crypto/keys; do
  mkdir -p "$work/$target/$(dirname "$f")"
  perl -0pe 's/import "gogoproto\/gogo.proto";\n//; s/^\s*option \(gogoproto\.[^;]*;\n//mg; s/\s*\[[^\]]*\](?=\s*;)//g;
    s/^package tendermint\./package quorate.abci.pb.tendermint./m; s/import "tendermint\//import "quorate\/abci\/pb\/tendermint\//g' \
    "$module/proto/tendermint/$f.proto" >"$work/$target/$f.proto"
done
rm -rf "$root/src/$target"
(cd "$work" && "${PYTHON:-python3}" -m grpc_tools.protoc -I . --python_out="$root/src" --pyi_out="$root/src" \
  $(find quorate -name '*.proto' | sort))
