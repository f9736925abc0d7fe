#!/usr/bin/env bash
# Blocks per second of one CometBFT node with commit timeouts at zero: under its built-in kvstore and under Keelstone, in turn.
#
#   KEELSTONE=target/release/keelstone COMETBFT=cometbft SECONDS_EACH=10 ROUNDS=5 examples/cometbft/blocks_per_second.sh
#
# Each round runs both, in the other order than the round before, so that a machine that is getting busier or idler counts
# for both alike; what is compared is the ratio within a round, and the median of those. With ABCI_CLI, the `abci-cli` of
# the same release, each round also runs that very kvstore on the other end of a socket, where every application that is
# not written in Go is: what is left of the ratio then is the application's own. Needs curl and jq, and the ports PORT
# (46657) and the one below it. Everything it starts it stops, and its directory goes with it.
# Exit code 1: a node did not come up or made no blocks.
set -euo pipefail
keelstone=${KEELSTONE:-target/release/keelstone}
cometbft=${COMETBFT:-cometbft}
seconds=${SECONDS_EACH:-10}
rounds=${ROUNDS:-5}
port=${PORT:-46657}
abci_cli=${ABCI_CLI:-}
for tool in curl jq "$keelstone" "$cometbft" ${abci_cli:+"$abci_cli"}; do
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
listens() { [ -S "$1" ]; }

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

# Starts the engine over an application, and sets `rate`.
engine() {
  "$cometbft" start --home "$place/comet" --proxy_app "$1" --log_level error >"$place/comet.log" 2>&1 &
  children+=($!)
  measure
}

kvstore() {
  fresh
  engine kvstore
  of_kvstore=$rate
}

over_socket() {
  fresh
  rm -f "$place/kvstore.sock"
  "$abci_cli" kvstore --address "unix://$place/kvstore.sock" --log_level error >"$place/kvstore.log" 2>&1 &
  children+=($!)
  await listens "$place/kvstore.sock"
  engine "unix://$place/kvstore.sock"
  of_socket=$rate
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
  await listens "$place/keel/data/abci.sock"
  engine "unix://$place/keel/data/abci.sock"
  of_ours=$rate
}

tenths() { awk -v n="$1" 'BEGIN { printf "%.1f", n / 10 }'; }
ratio() { awk -v a="$1" -v b="$2" 'BEGIN { printf "%.3f", a / b }'; }
summary() {
  printf '%s\n' "$@" | sort -n | awk '{ all[NR] = $1 }
    END { printf "median ratio %.3f, lowest %.3f, highest %.3f\n", (all[int((NR + 1) / 2)] + all[int(NR / 2) + 1]) / 2, all[1], all[NR] }'
}
contenders=(kvstore ${abci_cli:+over_socket} ours)
ratios=() of_socket_ratios=()
for round in $(seq "$rounds"); do
  if [ $((round % 2)) = 1 ]; then order=$(seq 0 $((${#contenders[@]} - 1))); else order=$(seq $((${#contenders[@]} - 1)) -1 0); fi
  for contender in $order; do "${contenders[contender]}"; done
  ratios+=("$(ratio "$of_ours" "$of_kvstore")")
  line="round $round: kvstore $(tenths "$of_kvstore"), keelstone $(tenths "$of_ours") blocks/s, ratio ${ratios[-1]}"
  if [ -n "$abci_cli" ]; then
    of_socket_ratios+=("$(ratio "$of_ours" "$of_socket")")
    line+="; kvstore over a socket $(tenths "$of_socket"), ratio ${of_socket_ratios[-1]}"
  fi
  echo "$line"
done
summary "${ratios[@]}"
if [ -n "$abci_cli" ]; then echo "beside the kvstore over a socket: $(summary "${of_socket_ratios[@]}")"; fi
