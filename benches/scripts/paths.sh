#!/bin/bash
# paths.sh [ROUNDS]: what the ways to an NVMe disk cost, and a volume as a block device beside what could be had instead.
#
# To be run in the lab (`cargo xtask lab`), with two disks; with QEMU's emulation figures compare only with each other, of one run:
#
#   cargo xtask lab --nvme 2G --nvme 2G --timeout 900 -- benches/scripts/paths.sh
#
# First the disk itself, driven by `flagstone bench raw` through the block layer and by NVMe commands, with completions by interrupt
# and polled. Then block devices: the disk, a loop device on it, a ublk device that does nothing (`ublk-null`), and a
# volume attached with `flagstone ublk` on a pool on the other disk, by NVMe commands. 4 KiB, random; ROUNDS (3)
# rounds in turn, medians. CPU is that of the whole machine, per request. Needs flagstone and ublk-null built for release.
set -euo pipefail
here=$(dirname "$0")
F=$(realpath "${FLAGSTONE_BIN:-$here/../../target/release/flagstone}")
NULL=$(realpath "${UBLK_NULL_BIN:-$here/../../target/release/ublk-null}")
rounds=${1:-3} seconds=${SECONDS_EACH:-3}
DIR=$(mktemp -d /tmp/flagstone-paths.XXXXXX)
API="--api-socket $DIR/api.sock"
last=$(find /dev -name 'nvme*n1' | sort | tail -n 1)
first=$(find /dev -name 'nvme*n1' | sort | head -n 1)
[ "$first" != "$last" ] && grep -qs '^lab' "/sys/block/${first#/dev/}/device/serial" || { echo "not in the lab, or with one disk only" >&2; exit 1; }
generic=${last/nvme/ng}
# measure NAME RW DEPTH PATH OPTIONS: a line of name, kind, depth, IOPS, CPU per request.
measure() {
  local name=$1 rw=$2 depth=$3
  "$F" bench raw "$4" --rw "$rw" --depth "$depth" --duration "${seconds}s" --rampup 500ms --force-destructive --json "${@:5}" 2> "$DIR/err" |
    jq -r --arg n "$name" --arg k "$rw" --arg d "$depth" '[$n, $k, $d, (.total.iops | round), .cpu.machine_us_per_io] | @tsv' >> "$DIR/lines" || { cat "$DIR/err" >&2; exit 1; }
}
# Medians of the lines so far, and ratios to what is named first.
table() {
  sort -t $'\t' -k1,3 -k4,4n "$DIR/lines" | awk -F '\t' -v base="$1" '
    { key = $2 "\t" $3; id = $1 SUBSEP key; n[id]++; iops[id, n[id]] = $4; cpu[id] += $5; names[$1]; keys[key] }
    END {
      print "job\tdepth\tway\tIOPS\tto " base "\tCPU us\tto " base
      for (key in keys) for (name in names) {
        id = name SUBSEP key; b = base SUBSEP key
        i = iops[id, int((n[id] + 1) / 2)]; j = iops[b, int((n[b] + 1) / 2)]
        c = cpu[id] / n[id]; d = cpu[b] / n[b]
        printf "%s\t%s\t%d\t%.2f\t%.1f\t%.2f\n", key, name, i, i / j, c, c / d | "sort"
      }
    }'
  : > "$DIR/lines"
}
# Written once, so that nothing is a hole.
"$F" bench raw "$last" --rw write --block-size 1M --depth 2 --ops 2048 --force-destructive > /dev/null 2>&1
for _ in $(seq "$rounds"); do
  for rw in randread randwrite; do
    for depth in 1 32; do
      measure block $rw $depth "$last"
      measure interrupts $rw $depth "$generic" --nvme-polling never
      measure polled $rw $depth "$generic" --nvme-polling always
    done
  done
done
table block
"$F" pool create --force "$generic" > /dev/null
"$F" serve --pool "$generic" --nvme-polling never --nbd-socket "$DIR/nbd.sock" $API > "$DIR/out" 2> "$DIR/log" & daemon=$!
"$NULL" > "$DIR/null" & null=$!
trap 'kill $daemon $null; wait' EXIT
until grep -q ready "$DIR/out" && grep -q ublkb "$DIR/null"; do sleep 0.1; done
"$F" volume create v --size 1G $API > /dev/null
device=$("$F" ublk attach v --json $API | jq -r .device)
loop=$(losetup --direct-io=on --find --show "$first")
for d in "$device" "$first"; do "$F" bench raw "$d" --rw write --block-size 1M --depth 2 --ops 1024 --force-destructive > /dev/null 2>&1; done
for _ in $(seq "$rounds"); do
  for rw in randread randwrite; do
    for depth in 1 32; do
      measure disk $rw $depth "$first" --span 1G
      measure loop $rw $depth "$loop" --span 1G
      measure null $rw $depth "$(cat "$DIR/null")"
      measure volume $rw $depth "$device"
    done
  done
done
table loop
losetup --detach "$loop"
"$F" ublk detach v $API > /dev/null
