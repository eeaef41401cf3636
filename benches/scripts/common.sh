# What the measuring scripts share: a RAM disk, a daemon on it, and both gone at the end. Sourced, not run.
# They need root, zram, losetup, jq and, where they say so, fio and qemu-io.
set -euo pipefail
F=${FLAGSTONE_BIN:-$(dirname "$0")/../../target/release/flagstone}
F=$(realpath "$F")
DIR=$(mktemp -d /tmp/flagstone-measure.XXXXXX)
# fio leaves files where it runs.
cd "$DIR"
API="--api-socket $DIR/api.sock"
DAEMON=
DISKS=

# What is drawn on the machine's attention by others: figures of time mean little above 1.
load() { cut -d' ' -f1 /proc/loadavg; }

# uri VOLUME
uri() { echo "nbd+unix:///$1?socket=$DIR/nbd.sock"; }

# ram_disk MIB: a zram device under a loop device with direct I/O; its path is in DISK.
ram_disk() {
  local n
  [ -e /sys/class/zram-control ] || modprobe zram
  n=$(cat /sys/class/zram-control/hot_add)
  echo lzo > "/sys/block/zram$n/comp_algorithm" 2>/dev/null || true
  echo "$1M" > "/sys/block/zram$n/disksize"
  DISK=$(losetup --direct-io=on --sector-size=4096 --find --show "/dev/zram$n")
  DISKS="$DISKS $n:$DISK"
}

# serve DEVICE [OPTIONS]: returns when it is ready.
serve() {
  rm -f "$DIR/serve.out"
  "$F" serve --pool "$1" --nbd-socket "$DIR/nbd.sock" $API "${@:2}" > "$DIR/serve.out" 2> "$DIR/serve.err" &
  DAEMON=$!
  until grep -q ready "$DIR/serve.out" 2> /dev/null; do
    kill -0 $DAEMON || { tail -3 "$DIR/serve.err" >&2; exit 1; }
    sleep 0.005
  done
}

# stop [SIGNAL]
stop() {
  [ -n "$DAEMON" ] || return 0
  kill "-${1:-TERM}" $DAEMON 2>/dev/null || true
  wait $DAEMON 2>/dev/null || true
  DAEMON=
}

# pool FIELD: of the status of the pool that is served.
pool() { "$F" pool status --json $API | jq ".pools[0].$1"; }

# rss: resident memory of the daemon now, and at most, in MiB.
rss() { awk '/VmRSS/ {now = $2} /VmHWM/ {most = $2} END {printf "%d MiB resident, %d at most", now / 1024, most / 1024}' /proc/$DAEMON/status; }

# spread OVERWRITES: options of `bench` for uniform, zipf or A/B.
spread() {
  case $1 in
    */*) echo "--hot $1" ;;
    zipf) echo "--distribution zipf:0.99" ;;
    *) echo "--distribution $1" ;;
  esac
}

clean_up() {
  stop
  cd /
  local disk
  for disk in $DISKS; do
    losetup --detach "${disk#*:}" || true
    # The kernel lets go of a device a little after its last user has.
    for _ in $(seq 50); do
      { echo 1 > "/sys/block/zram${disk%%:*}/reset" && echo "${disk%%:*}" > /sys/class/zram-control/hot_remove; } 2> /dev/null && break
      sleep 0.1
    done
  done
  rm -rf "$DIR"
}
trap clean_up EXIT
trap 'exit 130' INT TERM
