#!/bin/bash
# scanning.sh: what rewriting after a scan gains readers, and what it costs the requests of others.
#
# A volume of 2 GiB, written in sequence and half overwritten at random; a minute later it is scanned, which has it rewritten. A
# second volume is read and written at depth DEPTH (4), before, while the first is being rewritten, and after.
. "$(dirname "$0")/common.sh"
ram_disk 6144
"$F" pool create --force "$DISK" > /dev/null
serve "$DISK"
"$F" volume create v --size 2G $API > /dev/null
"$F" volume create w --size 512M $API > /dev/null
quiet() { "$F" bench nbd "$@" > /dev/null 2>&1; }
scan() { "$F" bench nbd "$(uri v)" --rw read --structured --block-size 256K --depth 8 --ops 8192 --json 2> /dev/null | jq -r '"scan: \(.total.mib_per_s | round) MiB/s"'; }
others() {
  local before kind
  before=$(pool rewritten_bytes)
  for kind in randread randwrite; do
    echo "$1 $kind, load $(load): $("$F" bench nbd "$(uri w)" --rw $kind --depth "${DEPTH:-4}" --duration 4s --json 2> /dev/null |
      jq -r '.total | "\(.iops | round) IOPS, p50 \(.latency.p50_us | round), p99 \(.latency.p99_us | round), p99.9 \(.latency.p99_9_us | round), longest \(.latency.max_us | round) us"')"
  done
  echo "  meanwhile rewritten: $(( ($(pool rewritten_bytes) - before) / 1048576 )) MiB"
}
quiet "$(uri w)" --rw write --block-size 256K --depth 4 --ops 2048
quiet "$(uri v)" --rw write --block-size 256K --depth 4 --ops 8192
scan
quiet "$(uri v)" --rw randwrite --depth 32 --ops 262144
# Regions that were written to within a minute are left alone.
sleep 62
others before; others before
scan
for _ in 1 2 3; do others during; done
until a=$(pool rewritten_bytes); sleep 3; [ "$(pool rewritten_bytes)" = "$a" ]; do :; done
others after; others after
scan
