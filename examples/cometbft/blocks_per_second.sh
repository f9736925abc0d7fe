#!/usr/bin/env bash
# Blocks per second of one CometBFT node with commit timeouts at zero: under its built-in kvstore and under Keelstone, in turn.
#
#   KEELSTONE=target/release/keelstone COMETBFT=cometbft SECONDS_EACH=10 ROUNDS=3 examples/cometbft/blocks_per_second.sh
#
# Needs curl and jq. Everything it starts it stops, and its directory goes with it.
set -euo pipefail
keelstone=${KEELSTONE:-target/release/keelstone}
cometbft=${COMETBFT:-cometbft}
seconds=${SECONDS_EACH:-10}
place=$(mktemp -d)
children=()
stop() {
  for child in "${children[@]}"; do kill -9 "$child" 2>/dev/null || true; done
  for child in "${children[@]}"; do wait "$child" 2>/dev/null || true; done
  children=()
}
trap 'stop; rm -rf "$place"' EXIT

fresh() {
  rm -rf "${place:?}/comet" "${place:?}/keel"
  "$cometbft" init --home "$place/comet" >/dev/null 2>&1
  sed -i -e 's#^laddr = "tcp://127.0.0.1:26657"#laddr = "tcp://127.0.0.1:46657"#' \
    -e 's#^laddr = "tcp://0.0.0.0:26656"#laddr = "tcp://127.0.0.1:46656"#' \
    -e 's#^timeout_commit = .*#timeout_commit = "0s"#' -e 's#^indexer = .*#indexer = "null"#' \
    "$place/comet/config/config.toml"
}

height() {
  curl -s http://127.0.0.1:46657/status | jq -r '.result.sync_info.latest_block_height // 0' 2>/dev/null || echo 0
}

measure() {
  until [ "$(height)" -gt 3 ] 2>/dev/null; do sleep 0.1; done
  local first begin last end
  first=$(height) begin=$(date +%s%N)
  sleep "$seconds"
  last=$(height) end=$(date +%s%N)
  echo "$1 $(((last - first) * 10000000000 / (end - begin)))" | awk '{ printf "%s %.1f blocks/s\n", $1, $2 / 10 }'
}

for _ in $(seq "${ROUNDS:-3}"); do
  fresh
  "$cometbft" start --home "$place/comet" --proxy_app kvstore --log_level error >/dev/null 2>&1 &
  children+=($!)
  measure kvstore
  stop

  fresh
  key=$(jq -r .pub_key.value "$place/comet/config/priv_validator_key.json")
  hash=$("$keelstone" --home "$place/keel" init --chain-id blocks --validator "$key=10" --json | jq -r .genesis_hash)
  jq --arg hash "$hash" --arg now "$(date -u +%Y-%m-%dT%H:%M:%S.%NZ)" \
    '.chain_id = "blocks" | .app_state = $hash | .genesis_time = $now' \
    "$place/comet/config/genesis.json" >"$place/genesis.json"
  mv "$place/genesis.json" "$place/comet/config/genesis.json"
  "$keelstone" --home "$place/keel" node --set http.listen=127.0.0.1:0 --set engine.rpc=http://127.0.0.1:46657 \
    --set log.level=error >/dev/null 2>&1 &
  children+=($!)
  until [ -S "$place/keel/data/abci.sock" ]; do sleep 0.1; done
  "$cometbft" start --home "$place/comet" --proxy_app "unix://$place/keel/data/abci.sock" --log_level error >/dev/null 2>&1 &
  children+=($!)
  measure keelstone
  stop
done
