#!/bin/bash
# snapshots.sh [GIB...]: what snapshots and clones cost, on a RAM disk.
#
# For a volume of each size (1, 16 and 64 GiB), written once: COUNT (100) snapshots under 4 KiB random writes, 8 in flight, one every EVERY (1)
# seconds: how long the call takes, and the p99 of the writes in as many seconds without snapshots and in those with them, ten in turn; then how
# long it takes to delete all of them, call by call. With the first size: plain overwrites and the first ones after a snapshot, in turn, ROUNDS times
# (5), beside qcow2 with an internal snapshot behind qemu-nbd; and random reads of the volume and of the last of DEPTH (250) clones of clones,
# in turn. All that is written is zeroes, which cost zram no memory. Needs fio, curl, jq, qemu-nbd and qemu-img.
. "$(dirname "$0")/common.sh"
sizes=(1 16 64)
[ $# -eq 0 ] || sizes=("$@")
load_with() { fio --name=f --ioengine=nbd --uri="$(uri v)" --zero_buffers --minimal "$@" > /dev/null; }
call() { curl -sS -o "$DIR/answer" -w '%{time_total} %{http_code}\n' --unix-socket "$DIR/api.sock" "$@"; }
shot() { call -H 'content-type: application/json' -d "{\"snapshots\":[{\"volume\":\"v\",\"name\":\"$1\"}]}" http://x/v1/snapshots; }
# Milliseconds: median, p99, longest.
spread_of() { sort -n | awk '{ v[NR] = $1 * 1000 } END { printf "median %.2f ms, p99 %.2f ms, longest %.2f ms, %d calls", v[int((NR + 1) / 2)], v[int(NR * 0.99)], v[NR], NR }'; }
bench() { "$F" bench nbd "$(uri "$1")" --zero-buffers --rw "$2" --depth "$3" "${@:4}" --json 2> /dev/null; }
# A full qcow2 image of GIB on a RAM disk of its own.
qcow2_disk() {
  local disk=$DISK
  ram_disk $(($1 * 2048 + 1024))
  QCOW2=$DISK DISK=$disk
  qemu-img create -q -f qcow2 -o preallocation=metadata "$QCOW2" "${1}G"
  qcow2_serve
  qcow2_bench --rw write --block-size 1M --depth 4 --ops $(($1 * 1024)) > /dev/null
  qcow2_stop
}
qcow2_serve() {
  rm -f "$DIR/qcow2.sock"
  qemu-nbd --format qcow2 --cache none --aio io_uring --persistent --socket "$DIR/qcow2.sock" "$QCOW2" & QCOW2_SERVER=$!
  until [ -S "$DIR/qcow2.sock" ]; do sleep 0.01; done
}
qcow2_stop() { kill "$QCOW2_SERVER"; wait "$QCOW2_SERVER" || true; }
qcow2_bench() { "$F" bench nbd "nbd+unix:///?socket=$DIR/qcow2.sock" --zero-buffers "$@" --json 2> /dev/null; }
qcow2_writes() { qcow2_bench --rw randwrite --depth 32 --duration 2s --seed "$1" | jq '.total.iops | round'; }
count=${COUNT:-100} every=${EVERY:-1}
for gib in "${sizes[@]}"; do
  # Snapshots keep what is overwritten: room for as many seconds of writes, and as many before, so that there is nothing to be cleaned.
  ram_disk $((gib * 4096 + count * 1000))
  # The speeds of the first one are compared: memory that zram takes for the first time costs it many times what a write costs later.
  [ "$gib" != "${sizes[0]}" ] || [ "$gib" -gt 2 ] || "$F" bench raw "$DISK" --rw write --block-size 1M --depth 4 --ops $((gib * 1280 + 3072)) --force-destructive > /dev/null 2>&1
  "$F" pool create --force "$DISK" > /dev/null
  serve "$DISK" --map-memory 2G
  "$F" volume create v --size "${gib}G" $API > /dev/null
  load_with --rw=write --bs=1m --iodepth=8 --size="${gib}g"
  # In turn, ten snapshots at a time: what else the machine does meets both alike.
  seconds=$(awk "BEGIN { printf \"%d\", 10 * $every + 1 }")
  : > "$DIR/calls"
  : > "$DIR/p99"
  for ten in $(seq 0 10 $((count - 1))); do
    before=$(bench v randwrite 8 --duration "${seconds}s" --seed $((ten + 1)) | jq '.total.latency.p99_us | round')
    bench v randwrite 8 --duration "${seconds}s" --seed $((ten + 2)) > "$DIR/with.json" & writer=$!
    sleep 0.5
    for i in $(seq $((ten + 1)) $((ten + 10 < count ? ten + 10 : count))); do shot "s$i"; sleep "$every"; done >> "$DIR/calls"
    wait $writer
    printf '%d %d\n' "$before" "$(jq '.total.latency.p99_us | round' "$DIR/with.json")" >> "$DIR/p99"
  done
  grep -vc ' 201$' "$DIR/calls" | sed 's/^0$//; s/^\([0-9].*\)$/\1 calls were refused/' | grep . || true
  median() { sort -g | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'; }
  printf '%d GiB: snapshot %s; writes p99 %d us without, %d us with (medians), ratio %s; load %s; %s\n' "$gib" "$(spread_of < "$DIR/calls")" \
    "$(cut -d' ' -f1 "$DIR/p99" | median)" "$(cut -d' ' -f2 "$DIR/p99" | median)" "$(awk '{ printf "%.2f\n", $2 / $1 }' "$DIR/p99" | median)" "$(load)" "$(rss)"
  for i in $(seq "$count"); do call -X DELETE "http://x/v1/snapshots/v@s$i"; done > "$DIR/calls"
  printf '%d GiB: deletion of a snapshot %s\n' "$gib" "$(spread_of < "$DIR/calls")"
  if [ "$gib" = "${sizes[0]}" ]; then
    qcow2_disk "$gib"
    for round in $(seq "${ROUNDS:-5}"); do
      plain=$(bench v randwrite 32 --duration 2s --seed "$((10 + round))" | jq '.total.iops | round')
      shot "r$round" > /dev/null
      first=$(bench v randwrite 32 --ops $((gib * 65536)) --seed "$((20 + round))" | jq '.total.iops | round')
      "$F" snapshot delete "v@r$round" $API > /dev/null
      qcow2_serve
      qcow2_plain=$(qcow2_writes "$((10 + round))")
      qcow2_stop
      qemu-img snapshot -c "r$round" "$QCOW2"
      qcow2_serve
      qcow2_first=$(qcow2_writes "$((20 + round))")
      qcow2_stop
      qemu-img snapshot -d "r$round" "$QCOW2"
      printf '%d\t%d\t%s\t%d\t%d\t%s\n' "$plain" "$first" "$(awk "BEGIN { printf \"%.2f\", $first / $plain }")" \
        "$qcow2_plain" "$qcow2_first" "$(load)"
    done | { printf 'plain IOPS\tfirst overwrites\tratio\tplain qcow2\tfirst qcow2\tload\n'; cat; }
    last=v
    for i in $(seq "${DEPTH:-250}"); do
      "$F" snapshot create "$last" s $API > /dev/null
      "$F" clone "$last@s" "c$i" $API > /dev/null
      last=c$i
      "$F" bench nbd "$(uri "$last")" --rw randwrite --depth 8 --ops 20 --seed "$i" > /dev/null 2>&1
    done
    for round in $(seq "${ROUNDS:-5}"); do
      flat=$(bench v randread 32 --duration 2s --seed "$round" | jq '.total.iops | round')
      deep=$(bench "$last" randread 32 --duration 2s --seed "$round" | jq '.total.iops | round')
      printf '%d\t%d\t%s\t%s\n' "$flat" "$deep" "$(awk "BEGIN { printf \"%.2f\", $deep / $flat }")" "$(load)"
    done | { printf 'reads IOPS\tat depth %d\tratio\tload\n' "${DEPTH:-250}"; cat; }
  fi
  call -X DELETE "http://x/v1/volumes/v?snapshots=true" > "$DIR/calls"
  printf '%d GiB: deletion of the volume and what is left of its snapshots %s\n' "$gib" "$(spread_of < "$DIR/calls")"
  stop
done
