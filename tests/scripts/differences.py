# Run by nbdsh on an export, $EXPORT, whose volume has snapshots a and b: several contexts at once, one
# extent at a time, and ranges that are no whole blocks.
import os

contexts = ["base:allocation", "qemu:dirty-bitmap:a", "x-flagstone:diff:b"]
h = nbd.NBD()
for context in contexts:
    h.add_meta_context(context)
h.connect_uri(os.environ["EXPORT"])
assert all(h.can_meta_context(context) for context in contexts)
size = h.get_size()


def ask(count, offset, flags=0):
    found = {}

    def extents(name, at, entries, error):
        assert at == offset, (at, offset)
        found[name] = list(zip(entries[0::2], entries[1::2]))

    h.block_status(count, offset, extents, flags)
    assert sorted(found) == sorted(contexts), found
    return found


def whole(context, flags):
    """All extents of the export, merged."""
    told, at = [], 0
    while at < size:
        entries = ask(min(1 << 30, size - at), at, flags)[context]
        assert len(entries) == 1 or flags == 0
        for length, state in entries:
            if told and told[-1][1] == state:
                told[-1][0] += length
            else:
                told.append([length, state])
            at += length
    return told


for context in contexts:
    told = whole(context, 0)
    assert len(told) > 10, (context, told)
    assert told == whole(context, nbd.CMD_FLAG_REQ_ONE), context
    assert ask(1, 5000)[context][0][0] == 1
    assert sum(length for length, _ in ask(10000, 5000)[context]) == 10000
print("fine")
