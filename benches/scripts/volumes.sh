#!/bin/bash
# volumes.sh [ROUNDS]: many volumes beside one, on a RAM disk, and how fairly they are served.
#
# VOLUMES (32) volumes of SIZE_MIB (64) over one connection each, and one volume of the same size in all over as many connections, with the same number of
# requests in flight (DEPTH, 128), in turn: 4 KiB at random, 70 % reads. Then: I/O per second of both, and of the slowest volume beside the mean.
. "$(dirname "$0")/common.sh"
rounds=${1:-5} volumes=${VOLUMES:-32} mib=${SIZE_MIB:-64}
ram_disk $((volumes * mib * 4 + 1024))
"$F" pool create --force "$DISK" > "$DIR/create.out"
serve "$DISK"
"$F" volume create one --size "$((volumes * mib))M" $API > /dev/null
"$F" bench nbd "$(uri one)" --rw write --block-size 1M --depth 4 --ops $((volumes * mib)) > /dev/null 2>&1
uris=()
for i in $(seq "$volumes"); do
  "$F" volume create "v$i" --size "${mib}M" $API > /dev/null
  uris+=("$(uri "v$i")")
done
"$F" bench nbd "${uris[@]}" --rw write --block-size 1M --depth "$volumes" --ops $((volumes * mib)) > /dev/null 2>&1
run() { "$F" bench nbd "$@" --mix 70 --depth "${DEPTH:-128}" --rampup 300ms --duration 2s --seed "$round" --json 2> /dev/null; }
for round in $(seq "$rounds"); do
  one=$(run "$(uri one)" --connections "$volumes" | jq '.total.iops | round')
  run "${uris[@]}" > "$DIR/many.json"
  many=$(jq '.total.iops | round' "$DIR/many.json")
  slowest=$(jq '([.exports[].iops] | min) / ([.exports[].iops] | add / length) * 100 | round / 100' "$DIR/many.json")
  printf '%d\t%d\t%s\t%s\t%s\n' "$one" "$many" "$(awk "BEGIN { printf \"%.2f\", $many / $one }")" "$slowest" "$(load)"
done | { printf 'one volume IOPS\t%d volumes\tratio\tslowest to mean\tload\n' "$volumes"; cat; }
