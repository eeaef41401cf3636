#!/bin/bash
# opening.sh [TIMES [GIB...]]: time from the start of `serve` after a `kill -9` to the first block read over NBD.
#
# A volume of each size (4, 16 and 64 GiB) on a RAM disk, written once in sequence and then 512 MiB of it at random, which is the log
# since the checkpoint in each of them; killed, and opened and killed TIMES times (7), in turn. With RANDOM_FILL=1 the volume is written at
# random the first time too, which takes minutes. Needs fio, nbdinfo, qemu-io, and memory for what zeroes cost in zram.
. "$(dirname "$0")/common.sh"
times=${1:-7}
shift || true
sizes=(4 16 64)
[ $# -eq 0 ] || sizes=("$@")
declare -A disk
load_with() { fio --name=f --ioengine=nbd --uri="$(uri v)" --zero_buffers --minimal "$@" > /dev/null; }
for gib in "${sizes[@]}"; do
  ram_disk $((gib * 1280 + 2048)); disk[$gib]=$DISK
  "$F" pool create --force "$DISK" > /dev/null
  serve "$DISK"
  "$F" volume create v --size "${gib}G" $API > /dev/null
  if [ "${RANDOM_FILL:-0}" = 1 ]; then
    load_with --rw=randwrite --bs=4k --iodepth=64 --size="${gib}g"
  else
    load_with --rw=write --bs=1m --iodepth=8 --size="${gib}g"
  fi
  # Up to a checkpoint, so that what is logged since is the same for all.
  checkpoints=$(pool checkpoints)
  until [ "$(pool checkpoints)" -gt "$checkpoints" ]; do
    load_with --rw=write --bs=1m --iodepth=8 --size="${gib}g" --io_size=256m
  done
  load_with --rw=randwrite --bs=4k --iodepth=32 --size="${gib}g" --io_size=512m
  stop KILL
done
for _ in $(seq "$times"); do
  for gib in "${sizes[@]}"; do
    rm -f "$DIR/nbd.sock"
    start=$(date +%s%N)
    "$F" serve --pool "${disk[$gib]}" --nbd-socket "$DIR/nbd.sock" $API > "$DIR/serve.out" 2> "$DIR/serve.err" &
    DAEMON=$!
    until [ -S "$DIR/nbd.sock" ] && qemu-io -f raw -c "read 0 4k" "$(uri v)" > /dev/null 2>&1; do sleep 0.002; kill -0 $DAEMON; done
    took=$(( ($(date +%s%N) - start) / 1000000 ))
    printf '%d\t%d ms\tload %s\t%s\t%s\n' "$gib" $took "$(load)" "$(grep -o 'summaries: [0-9]*, leaf_pages: [0-9]*' "$DIR/serve.err" | head -1)" "$(rss)" | tee -a "$DIR/all"
    stop KILL
  done
done
for gib in "${sizes[@]}"; do
  awk -v gib="$gib" '$1 == gib { print $2 }' "$DIR/all" | sort -n | awk -v gib="$gib" '{ v[NR] = $1 } END { printf "%d GiB: median %d ms, %d to %d\n", gib, v[int((NR + 1) / 2)], v[1], v[NR] }'
done
