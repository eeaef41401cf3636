#!/bin/bash
# overwriting.sh [ROUNDS [LIVE:OVERWRITES...]]: how fast a full pool is overwritten, beside the same device without anything.
#
# One RAM disk for the raw device and one for each case's pool, all written once. Each pool is overwritten twice its volume's size
# first; then, ROUNDS times (5): raw and every case in turn, SECONDS_EACH (5) each, 4 KiB at random with 32 in flight. Prints each
# measurement with its ratio to the raw one of its round, and medians. POOL_MIB is each pool's size (2048).
# With FILES_IN the device is a file of that directory instead, so that a real disk can be measured.
. "$(dirname "$0")/common.sh"
rounds=${1:-5}
shift || true
cases=("${@:-50:uniform}")
[ $# -gt 0 ] || cases=(50:uniform 80:zipf 80:uniform)
time=${SECONDS_EACH:-5}
fill() { "$F" bench raw "$1" --rw write --block-size 1M --depth 4 --ops $(( ${POOL_MIB:-2048} )) --force-destructive > /dev/null 2>&1; }
device() {
  [ -n "${FILES_IN:-}" ] || { ram_disk "${POOL_MIB:-2048}"; return; }
  DISK=$(mktemp "$FILES_IN/flagstone-measure.XXXXXX")
  fallocate -l "${POOL_MIB:-2048}M" "$DISK"
}
device; RAW=$DISK; fill "$RAW"
device; fill "$DISK"
[ -z "${FILES_IN:-}" ] || trap 'clean_up; rm -f "$RAW" "$DISK"' EXIT
raw() { "$F" bench raw "$RAW" --rw randwrite --depth 32 --duration "${time}s" --force-destructive --json --seed "$1" 2> /dev/null | jq '.total.iops | round'; }
# The slowest second and the slowest 100 ms, from the lines of the intervals.
slowest() { awk '{ for (i = 2; i <= NF; i++) if ($i ~ /^IOPS/) { v = $(i - 1); gsub(",", "", v); if (!n || v < low) low = v; s[n % 10] = v; n++; sum = 0; if (n >= 10) { for (k in s) sum += s[k]; sum /= 10; if (!m || sum < second) { second = sum; m = 1 } } } } END { printf "%d %d", second, low }'; }
for case in "${cases[@]}"; do
  "$F" pool create --force "$DISK" > /dev/null
  serve "$DISK"
  SIZE=$(( $(pool capacity_bytes) * ${case%%:*} / 100 / 1048576 * 1048576 ))
  "$F" volume create v --size $SIZE $API > /dev/null
  "$F" bench nbd "$(uri v)" --rw write --block-size 256K --depth 4 --ops $((SIZE / 262144)) > /dev/null 2>&1
  "$F" bench nbd "$(uri v)" --rw randwrite --depth 32 $(spread "${case#*:}") --ops $((SIZE / 4096 * 2)) > /dev/null 2>&1
  for round in $(seq "$rounds"); do
    base=$(raw "$round")
    "$F" bench nbd "$(uri v)" --rw randwrite --depth 32 $(spread "${case#*:}") --duration "${time}s" --seed $((round + 1)) --interval 100ms --json > "$DIR/run.json" 2> "$DIR/intervals"
    read -r second low <<< "$(slowest < "$DIR/intervals")"
    jq -r --arg case "$case" --argjson base "$base" --arg low "$low" --arg second "$second" --arg load "$(load)" \
      '[$case, (.total.iops | round), $base, (.total.iops / $base * 100 | round / 100), (.total.latency.p99_us | round), (.total.latency.p99_9_us | round), (.total.latency.max_us | round), $second, $low, $load] | @tsv' "$DIR/run.json" | tee -a "$DIR/all"
  done
  stop
done | { printf 'case\tIOPS\traw\tratio\tp99 us\tp99.9 us\tlongest us\tslowest s\tslowest 100 ms\tload\n'; cat; }
echo "medians:"
for case in "${cases[@]}"; do
  median() { awk -v case="$case" -v field="$1" '$1 == case { print $field }' "$DIR/all" | sort -n | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'; }
  echo "$case: $(median 2) IOPS, $(median 4) of raw, p99 $(median 5) us, p99.9 $(median 6) us, slowest second $(awk -v case="$case" '$1 == case { print $8 }' "$DIR/all" | sort -n | head -1)"
done
