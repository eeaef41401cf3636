#!/bin/bash
# amplification.sh [LIVE:OVERWRITES...]: write amplification of a full pool, and whether it holds what was written.
#
# For each case, as 80:zipf or 90:80/20: a pool on a RAM disk, a volume of so many percent of its capacity, written once
# in order, then four times its size and two times more overwritten, with the engine's counters between; then every block
# is read and compared with what was written last. POOL_MIB is the pool's size (4096).
. "$(dirname "$0")/common.sh"
ram_disk "${POOL_MIB:-4096}"
counters() { "$F" pool status --json $API | jq -c '.pools[0] | [.written_bytes, .moved_bytes]'; }
between() { jq -n --argjson a "$1" --argjson b "$2" '1 + ($b[1] - $a[1]) / ($b[0] - $a[0]) | . * 100 | round / 100'; }
for case in "${@:-80:zipf}"; do
  "$F" pool create --force "$DISK" > "$DIR/create.out"
  serve "$DISK"
  SIZE=$(( $(pool capacity_bytes) * ${case%%:*} / 100 / 1048576 * 1048576 ))
  BLOCKS=$(( SIZE / 4096 ))
  "$F" volume create v --size $SIZE $API > /dev/null
  rm -f "$DIR/ledger"
  bench() { "$F" bench nbd "$(uri v)" --verify --ledger "$DIR/ledger" --depth 32 --json "$@" 2> /dev/null; }
  bench --rw write --ops $BLOCKS > /dev/null
  a=$(counters)
  bench --rw randwrite $(spread "${case#*:}") --ops $((BLOCKS * 4)) > "$DIR/run.json"
  b=$(counters)
  bench --rw randwrite $(spread "${case#*:}") --ops $((BLOCKS * 2)) --seed 2 > /dev/null
  c=$(counters)
  verified=$(bench --rw read --ops $BLOCKS | jq -r '"\(.verification.reads_checked) blocks read, \(.verification.faults) wrong, \(.errors) errors"')
  echo "$case: write amplification $(between "$a" "$b") while 4 times overwritten, $(between "$b" "$c") the 5th and 6th time;" \
    "$verified; $(jq '.total.iops | round' "$DIR/run.json") IOPS at load $(load)"
  stop
done
