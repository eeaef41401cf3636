#!/bin/bash
# tebibyte.sh [MIB]: a volume of 1 TiB with 64 MiB for its map.
#
# MIB (320) of 4 KiB blocks at random all over it, read and verified, before and after a `kill -9`; what memory the daemon took, how long
# it took to open. Needs fio.
. "$(dirname "$0")/common.sh"
mib=${1:-320}
ram_disk 65536
"$F" pool create --force "$DISK" > /dev/null
limits="--map-memory 64M --memory 128M"
serve "$DISK" $limits
"$F" volume create v --size 1T $API > /dev/null
job() { fio --name=w --ioengine=nbd --uri="$(uri v)" --rw=randwrite --bs=4k --iodepth=32 --size=1t --io_size="${mib}m" --randseed=7 --verify=crc32c --verify_fatal=1 --output-format=json --output="$DIR/fio.json" "$@"; }
figures() { sed -n '/^{/,$p' "$DIR/fio.json" | jq -r '.jobs[0] | "error \(.error), \(.write.iops | round) writes, \(.read.iops | round) reads per second, \(.read.total_ios) blocks read"'; }
job --do_verify=0
echo "written: $(figures); $(rss); map $(pool map_bytes) bytes; load $(load)"
job --verify_only
echo "verified: $(figures); $(rss)"
for _ in 1 2 3; do
  stop KILL
  start=$(date +%s%N)
  serve "$DISK" $limits
  echo "opened after kill -9 in $(( ($(date +%s%N) - start) / 1000000 )) ms at load $(load); $(rss)"
done
job --verify_only
echo "verified: $(figures); $(rss)"
job --randseed=8
echo "written again and verified: $(figures); $(rss)"
