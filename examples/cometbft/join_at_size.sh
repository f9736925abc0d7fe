#!/usr/bin/env bash
# What joining takes over real CometBFT: two validators whose state holds many entries, and a node that joins by state sync,
# at CometBFT's own rates and at those that `keelstone statesync configure` writes.
#
#   KEELSTONE=target/release/keelstone COMETBFT=cometbft ENTRIES=1000000 examples/cometbft/join_at_size.sh
#
# Needs curl. At 1,000,000 entries it takes some 4 GB of memory and 2 GB of disk for as long as it runs: each of three
# nodes reads them from the genesis. Everything it starts it stops, and its directory goes with it.
set -euo pipefail
keelstone=${KEELSTONE:-target/release/keelstone}
cometbft=${COMETBFT:-cometbft}
entries=${ENTRIES:-1000000}
place=$(mktemp -d)
owner=
stop() {
  if [ -n "$owner" ]; then "$keelstone" testnet down --dir "$place/net" >/dev/null 2>&1 || kill "$owner" 2>/dev/null || true; fi
  if [ -n "$owner" ]; then wait "$owner" 2>/dev/null || true; fi
  owner=
}
trap 'stop; rm -rf "$place"' EXIT

join() {
  local name=$1 api
  shift
  "$keelstone" testnet up --dir "$place/net" --validators 2 --ballast "$entries" --cometbft "$cometbft" --json \
    --engine-set consensus.timeout_commit=500ms --set snapshots.interval=40 "$@" >"$place/up" 2>"$place/log" &
  owner=$!
  until [ -s "$place/up" ]; do
    kill -0 "$owner" 2>/dev/null || { cat "$place/log"; exit 1; }
    sleep 0.5
  done
  api=$(grep -o '"api":"[^"]*"' "$place/up" | head -1 | cut -d'"' -f4)
  until curl -s "$api/v1/snapshots" | grep -q '"snapshots":\[{'; do sleep 0.5; done
  sleep 3 # Two blocks more, and it is offered.
  echo "$name"
  "$keelstone" testnet join --wait --dir "$place/net"
  stop
  rm -rf "$place/net" "$place/up"
}

join "CometBFT's own rates"
join "raised rates" --engine-set p2p.send_rate=51200000 --engine-set p2p.recv_rate=51200000
