#!/usr/bin/env bash
# A node that joins a chain under CometBFT without a chunk over CometBFT: the state comes from a mirror, trust from a light
# client, and CometBFT's own store from tools/bootstrap-state. Ends with 0 only if it follows the chain and its app hashes are
# those of a validator at each height from the one it joined at.
#
#   KEELSTONE=target/release/keelstone COMETBFT=cometbft examples/cometbft/join_by_light_client.sh
#   VERSION=v0.38.26 COMETBFT=…/cometbft-0.38.26 …          # another CometBFT: bootstrap-state is built for it as well
#
# Needs Go and curl; takes about a minute. Everything it starts it stops, and its directory goes with it.
set -euo pipefail
keelstone=$(realpath "${KEELSTONE:-target/release/keelstone}")
cometbft=$(command -v "${COMETBFT:-cometbft}")
tool=$(realpath "$(dirname "$0")/../../tools/bootstrap-state")
place=$(mktemp -d)
began=
stop() {
  [ -z "$began" ] || kill $began 2>/dev/null || true
  wait 2>/dev/null || true
  rm -rf "$place"
}
trap stop EXIT
fail() {
  echo "$1" >&2
  tail -n 5 "$place"/*.log >&2 || true
  exit 1
}
# field FILE NAME: the first value of that name in a file of JSON.
field() { grep -o "\"$2\": *\"\?[^\",}]*" "$1" | head -1 | sed 's/.*: *"\?//'; }
# height RPC: what a CometBFT stands at, 0 if it does not answer.
height() {
  curl -s "$1/status" >"$place/status" || true
  local at
  at=$(field "$place/status" latest_block_height) || true
  echo "${at:-0}"
}
# until_at RPC HEIGHT SECONDS
until_at() {
  local end=$((SECONDS + $3))
  until [ "$(height "$1")" -ge "$2" ]; do
    [ $SECONDS -lt $end ] || fail "$1 does not come to height $2"
    sleep 0.5
  done
}

cp -r "$tool" "$place/tool"
chmod -R u+w "$place/tool"
(
  cd "$place/tool"
  # Another version has requirements of its own.
  if [ -n "${VERSION:-}" ]; then { go get "github.com/cometbft/cometbft@$VERSION" && go mod tidy; } >"$place/go.log" 2>&1; fi
  CGO_ENABLED=0 go build -o "$place/bootstrap-state" .
) || fail 'bootstrap-state cannot be built'

"$keelstone" testnet up --dir "$place/net" --validators 4 --cometbft "$cometbft" --json \
  --engine-set consensus.timeout_commit=500ms --set snapshots.interval=10 >"$place/up" 2>"$place/up.log" &
began=$!
until [ -s "$place/up" ]; do
  kill -0 $began 2>/dev/null || fail 'the network does not come up'
  sleep 0.5
done
mapfile -t rpc < <(grep -o '"rpc":"[^"]*"' "$place/up" | cut -d'"' -f4)
"$keelstone" testnet load --dir "$place/net" --rate 20 --seconds 8 >/dev/null
until_at "${rpc[0]}" 14 60

# The header that is trusted: in practice from somebody one knows.
curl -s "${rpc[0]}/commit?height=3" >"$place/trusted"
trusted=$(grep -o '"block_id":{"hash":"[0-9A-F]*' "$place/trusted" | head -1 | grep -o '[0-9A-F]*$')
"$keelstone" mirror export "$place/mirror" --home "$place/net/node0/keelstone" >/dev/null
"$keelstone" sync --home "$place/app" --genesis "$place/net/node0/keelstone/genesis.json" --from "$place/mirror" --json \
  --light --light-height 3 --light-hash "$trusted" --light-rpc "${rpc[0]}" --light-rpc "${rpc[1]}" >"$place/synced" 2>"$place/sync.log" ||
  fail 'sync --light'
at=$(field "$place/synced" height)
root=$(field "$place/synced" root)
echo "state of height $at with root $root"

# A CometBFT that has never run, configured as the others are, with ports of its own.
"$cometbft" init --home "$place/engine" >/dev/null 2>&1
cp "$place/net/node0/cometbft/config/genesis.json" "$place/engine/config/genesis.json"
p2p=$((20000 + RANDOM % 4000)) port=$((24000 + RANDOM % 4000)) http=$((28000 + RANDOM % 4000))
peers=$(for node in 0 1; do
  home="$place/net/node$node/cometbft"
  echo "$("$cometbft" show-node-id --home "$home")@$(sed -n '/^\[p2p\]/,$s/^laddr = "tcp:\/\/\(.*\)"/\1/p' "$home/config/config.toml" | head -1)"
done | paste -sd,)
sed -i -e "s|^proxy_app = .*|proxy_app = \"unix://$place/app.sock\"|" -e "s|^persistent_peers = .*|persistent_peers = \"$peers\"|" \
  -e "/^\[rpc\]/,/^\[p2p\]/s|^laddr = .*|laddr = \"tcp://127.0.0.1:$port\"|" -e "/^\[p2p\]/,/^\[mempool\]/s|^laddr = .*|laddr = \"tcp://127.0.0.1:$p2p\"|" \
  -e 's/^addr_book_strict = .*/addr_book_strict = false/' -e 's/^allow_duplicate_ip = .*/allow_duplicate_ip = true/' "$place/engine/config/config.toml"
"$keelstone" statesync configure --cometbft-home "$place/engine" --rpc "${rpc[0]}" --rpc "${rpc[1]}" --trust-height 3 >/dev/null
until_at "${rpc[0]}" $((at + 2)) 60
"$place/bootstrap-state" --home "$place/engine" --height "$at" --app-hash "$root" >"$place/bootstrap.log" 2>&1 || fail 'bootstrap-state'
# A second time it is refused, and so is a root that is not the chain's.
! "$place/bootstrap-state" --home "$place/engine" --height "$at" --app-hash "$root" 2>/dev/null || fail 'a store that has a state was taken'

"$keelstone" node --home "$place/app" --engine cometbft --set engine.abci="unix://$place/app.sock" --set engine.rpc="http://127.0.0.1:$port" \
  --set http.listen="127.0.0.1:$http" >"$place/app.log" 2>&1 &
began="$began $!"
"$cometbft" start --home "$place/engine" >"$place/engine.log" 2>&1 &
began="$began $!"
tip=$(($(height "${rpc[0]}") + 5))
until_at "http://127.0.0.1:$port" $tip 60

lowest=$(curl -s "http://127.0.0.1:$port/status" | grep -o '"earliest_block_height":"[0-9]*' | grep -o '[0-9]*$')
[ "$lowest" -gt "$at" ] || fail "it has block $lowest, which it was not to fetch"
for ((h = lowest; h <= tip; h++)); do
  for from in "${rpc[1]}" "http://127.0.0.1:$port"; do
    curl -s "$from/commit?height=$h" | grep -o '"app_hash":"[0-9A-F]*' >>"$place/hashes.${from##*:}"
  done
done
cmp "$place/hashes.${rpc[1]##*:}" "$place/hashes.$port" || fail 'app hashes differ'
[ "$(wc -l <"$place/hashes.$port")" -eq $((tip - lowest + 1)) ] || fail 'a header is missing'
echo "blocks $lowest to $tip followed, app hashes equal"
