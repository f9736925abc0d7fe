#!/usr/bin/env bash
# Blocks per second of one CometBFT node with commit timeouts at zero: under its built-in kvstore and under Keelstone, in turn.
#
#   KEELSTONE=target/release/keelstone COMETBFT=cometbft SECONDS_EACH=10 ROUNDS=5 examples/cometbft/blocks_per_second.sh
#
# Each round runs both, in the other order than the round before, so that a machine that is getting busier or idler counts
# for both alike; what is compared is the ratio within a round, and the median of those. Needs curl and jq, and the
# ports PORT (46657) and the one below it. Everything it starts it stops, and its directory goes with it.
# Exit code 1: a node did not come up or made no blocks.
set -euo pipefail
keelstone=${KEELSTONE:-target/release/keelstone}
cometbft=${COMETBFT:-cometbft}
seconds=${SECONDS_EACH:-10}
rounds=${ROUNDS:-5}
port=${PORT:-46657}
for tool in curl jq "$keelstone" "$cometbft"; do
  command -v "$tool" >/dev/null || { echo "there is no $tool" >&2; exit 1; }
done
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
  sed -i -e "s#^laddr = \"tcp://127.0.0.1:26657\"#laddr = \"tcp://127.0.0.1:$port\"#" \
    -e "s#^laddr = \"tcp://0.0.0.0:26656\"#laddr = \"tcp://127.0.0.1:$((port - 1))\"#" \
    -e 's#^timeout_commit = .*#timeout_commit = "0s"#' -e 's#^indexer = .*#indexer = "null"#' \
    "$place/comet/config/config.toml"
}

height() {
  { curl -sm 2 "http://127.0.0.1:$port/status" || true; } | jq -r '.result.sync_info.latest_block_height // 0' 2>/dev/null || true
}

# Waits for something at most half a minute, or as long as what was started runs.
await() {
  local tries
  for tries in $(seq 300); do
    if "$@"; then return; fi
    for child in "${children[@]}"; do kill -0 "$child" 2>/dev/null || break 2; done
    sleep 0.1
  done
  echo "no blocks: $*" >&2
  cat "$place"/*.log >&2
  exit 1
}

warm() { [ "$(height || echo 0)" -ge 20 ] 2>/dev/null; }
listens() { [ -S "$place/keel/data/abci.sock" ]; }

# Sets `rate` to tenths of blocks per second.
measure() {
  await warm
  local first begin last end
  first=$(height) begin=$(date +%s%N)
  sleep "$seconds"
  last=$(height) end=$(date +%s%N)
  rate=$(((last - first) * 10000000000 / (end - begin)))
  stop
  [ "$rate" -gt 0 ] || { echo "no blocks in $seconds s" >&2; exit 1; }
}

kvstore() {
  fresh
  "$cometbft" start --home "$place/comet" --proxy_app kvstore --log_level error >"$place/comet.log" 2>&1 &
  children+=($!)
  measure
  of_kvstore=$rate
}

ours() {
  local key hash
  fresh
  key=$(jq -r .pub_key.value "$place/comet/config/priv_validator_key.json")
  hash=$("$keelstone" --home "$place/keel" init --chain-id blocks --validator "$key=10" --json | jq -r .genesis_hash)
  jq --arg hash "$hash" --arg now "$(date -u +%Y-%m-%dT%H:%M:%S.%NZ)" \
    '.chain_id = "blocks" | .app_state = $hash | .genesis_time = $now' \
    "$place/comet/config/genesis.json" >"$place/genesis.json"
  mv "$place/genesis.json" "$place/comet/config/genesis.json"
  "$keelstone" --home "$place/keel" node --engine cometbft --set http.listen=127.0.0.1:0 \
    --set "engine.rpc=http://127.0.0.1:$port" --set log.level=error >"$place/keel.log" 2>&1 &
  children+=($!)
  await listens
  "$cometbft" start --home "$place/comet" --proxy_app "unix://$place/keel/data/abci.sock" --log_level error \
    >"$place/comet.log" 2>&1 &
  children+=($!)
  measure
  of_ours=$rate
}

tenths() { awk -v n="$1" 'BEGIN { printf "%.1f", n / 10 }'; }
ratios=()
for round in $(seq "$rounds"); do
  if [ $((round % 2)) = 1 ]; then kvstore; ours; else ours; kvstore; fi
  ratio=$(awk -v a="$of_ours" -v b="$of_kvstore" 'BEGIN { printf "%.3f", a / b }')
  ratios+=("$ratio")
  echo "round $round: kvstore $(tenths "$of_kvstore"), keelstone $(tenths "$of_ours") blocks/s, ratio $ratio"
done
printf '%s\n' "${ratios[@]}" | sort -n | awk '{ all[NR] = $1 }
  END { printf "median ratio %.3f, lowest %.3f, highest %.3f\n", (all[int((NR + 1) / 2)] + all[int(NR / 2) + 1]) / 2, all[1], all[NR] }'
