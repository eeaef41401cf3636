# Run by nbdsh, which has the connection as `h`, on an empty volume of 64 MiB: what libnbd can be
# made to send, and what must come back.
import errno, os
M = 1 << 20
size = h.get_size()
assert size == 64 * M
assert h.get_structured_replies_negotiated()
assert h.can_meta_context(nbd.CONTEXT_BASE_ALLOCATION)

def fails(number, call, *args, **kwargs):
    try:
        call(*args, **kwargs)
    except nbd.Error as error:
        assert error.errnum == number, (error.errnum, number, call, args)
        return
    raise AssertionError((call, args, kwargs))

def extents(offset, length, flags=0):
    got = []
    def note(context, start, entries, error):
        assert context == "base:allocation" and error.value == 0
        got.extend(zip(entries[::2], entries[1::2]))
    h.block_status(length, offset, note, flags)
    return got

# Unwritten space reads as zeroes and is a hole.
assert h.pread(M, 0) == bytearray(M)
assert extents(0, M) == [(M, nbd.STATE_HOLE | nbd.STATE_ZERO)]

# Written space reads as written, whatever its alignment.
for offset, length in [(0, 4096), (8192, 65536), (513, 3), (4095, 2), (100001, 9001), (size - 1, 1)]:
    data = os.urandom(length)
    h.pwrite(data, offset)
    assert h.pread(length, offset) == data, (offset, length)
edge = os.urandom(12288)
h.pwrite(edge, M)
h.pwrite(b"x" * 5000, M + 1000)
assert h.pread(12288, M) == edge[:1000] + b"x" * 5000 + edge[6000:]

# Structured reads: holes as holes, everything exactly once, with DF in one chunk.
h.pwrite(b"d" * 8192, 4 * M)
for flags in (0, nbd.CMD_FLAG_DF):
    seen = []
    def chunk(part, offset, status, error):
        seen.append((offset, len(part), status))
    buffer = h.pread_structured(64 * 1024, 4 * M, chunk, flags)
    assert buffer == b"d" * 8192 + bytes(64 * 1024 - 8192)
    assert sum(length for _, length, _ in seen) == 64 * 1024
    if flags:
        assert len(seen) == 1, seen
    else:
        assert any(status == nbd.READ_HOLE for _, _, status in seen), seen

# Block status: data and holes, merged; one extent if only one is asked for.
status = extents(4 * M, 64 * 1024)
assert status[0] == (8192, 0), status
assert status[1][1] == nbd.STATE_HOLE | nbd.STATE_ZERO, status
assert len(extents(4 * M, 64 * 1024, nbd.CMD_FLAG_REQ_ONE)) == 1

# Zeroes: with holes allowed, and kept allocated.
h.pwrite(b"z" * 32768, 8 * M)
h.zero(8192, 8 * M)
h.zero(8192, 8 * M + 16384, nbd.CMD_FLAG_NO_HOLE)
assert h.pread(32768, 8 * M) == bytes(8192) + b"z" * 8192 + bytes(8192) + b"z" * 8192
kinds = [kind for _, kind in extents(8 * M, 32768)]
assert kinds == [nbd.STATE_HOLE | nbd.STATE_ZERO, 0, nbd.STATE_ZERO, 0], kinds
h.zero(3000, 8 * M + 9000)
assert h.pread(3000, 8 * M + 9000) == bytes(3000)
assert h.pread(808, 8 * M + 8192) == b"z" * 808
if h.can_fast_zero():
    h.zero(4096, 8 * M + 28672, nbd.CMD_FLAG_FAST_ZERO)
    assert h.pread(4096, 8 * M + 28672) == bytes(4096)

# Trim: whole blocks become holes; the rest of the range may keep its data, and its neighbours must.
h.pwrite(b"t" * 16384, 12 * M)
h.trim(8192, 12 * M + 4096)
assert h.pread(4096, 12 * M) == b"t" * 4096
assert h.pread(8192, 12 * M + 4096) == bytes(8192)
assert h.pread(4096, 12 * M + 12288) == b"t" * 4096
h.trim(5000, 12 * M + 100)
assert h.pread(100, 12 * M) == b"t" * 100

# Durability on every kind of change.
h.pwrite(b"f" * 4096, 16 * M, nbd.CMD_FLAG_FUA)
h.zero(4096, 16 * M, nbd.CMD_FLAG_FUA)
h.trim(4096, 16 * M, nbd.CMD_FLAG_FUA)
h.flush()
h.cache(M, 0)

# libnbd's own checks are switched off, so that the server's are tested:
# what is wrong is refused, by the error that the protocol names, and the connection lives on.
h.set_strict_mode(0)
fails(errno.EINVAL, h.pread, 4096, size)
fails(errno.EINVAL, h.pread, 4096, size - 1)
fails(errno.ENOSPC, h.pwrite, b"w" * 4096, size)
fails(errno.ENOSPC, h.pwrite, b"w" * 4096, size - 4095)
fails(errno.EINVAL, h.trim, 4096, size)
fails(errno.ENOSPC, h.zero, 4096, size)
fails(errno.EINVAL, h.flush, 0x100)
fails(errno.EINVAL, h.pread, 4096, 0, nbd.CMD_FLAG_NO_HOLE)
assert h.pread(4096, 4 * M) == b"d" * 4096

# Many requests at a time, answered in any order.
h.set_strict_mode(nbd.STRICT_COMMANDS)
buffers = []
for i in range(64):
    h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray([i] * 4096)), 20 * M + i * 4096)
while h.aio_in_flight() > 0:
    h.poll(-1)
for i in range(64):
    buffer = nbd.Buffer(4096)
    h.aio_pread(buffer, 20 * M + i * 4096)
    buffers.append(buffer)
while h.aio_in_flight() > 0:
    h.poll(-1)
for i, buffer in enumerate(buffers):
    assert buffer.to_bytearray() == bytearray([i] * 4096), i
print("all good")
