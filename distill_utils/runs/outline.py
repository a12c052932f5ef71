"""What loading a torch-saved file would make, looked at before anything is made.

torch's `weights_only` runs no code, but makes what it is asked for: a bytearray of 2 GB of 562 bytes of file,
a dict copied a thousand times. Here its pickle is gone through with stand-ins, which admit plain containers,
strings, numbers and dense tensors whose every element is in the file.
"""

import io
import pickle
import pickletools
from math import prod

LARGEST_PICKLE = 1 << 25  # bytes of a pickle: a published buffer's has a hundredth of it
_MOST_DIMENSIONS = 64
_OPCODES = set(
    "PROTO GLOBAL REDUCE BUILD BINPERSID STOP MARK BINPUT LONG_BINPUT BINGET LONG_BINGET EMPTY_LIST "
    "EMPTY_DICT EMPTY_TUPLE APPEND APPENDS SETITEM SETITEMS TUPLE TUPLE1 TUPLE2 TUPLE3 NONE NEWTRUE NEWFALSE "
    "BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE".split()
)


# Bytes of an element of torch.<key>Storage.
_ITEMSIZES = {"Double": 8, "Float": 4, "Half": 2, "BFloat16": 2, "Long": 8, "Int": 4, "Short": 2} | {
    "Char": 1,
    "Byte": 1,
    "Bool": 1,
}


class _Storage:
    def __init__(self, itemsize):
        self.itemsize = itemsize


class _Elements:
    """A storage of so many elements."""

    def __init__(self, count):
        self.count = count


class _Tensor:
    def __setstate__(self, state):
        raise ValueError("it sets a tensor's memory.")


class _Ordered(dict):
    """An OrderedDict, which begins empty, and the attributes that a state_dict has."""

    def __init__(self):
        pass

    def __setstate__(self, state):
        if not isinstance(state, dict) or set(state) - {"_metadata"}:
            raise ValueError("it gives a dict attributes.")


def _rebuild_tensor(storage, offset, size, stride, *_):
    dimensions = isinstance(size, tuple) and isinstance(stride, tuple) and len(size) == len(stride)
    if not isinstance(storage, _Elements) or not dimensions or len(size) > _MOST_DIMENSIONS:
        raise ValueError("it holds a tensor without a storage.")
    if not all(type(number) is int and number >= 0 for number in (offset, *size, *stride)):
        raise ValueError("a tensor's sizes are not whole numbers.")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride))
    if prod(size) and (last >= storage.count or prod(size) > storage.count):
        raise ValueError(f"a tensor claims {list(size)}, more than the file holds.")
    return _Tensor()


def _rebuild_parameter(data, requires_grad, hooks):
    if not isinstance(data, _Tensor):
        raise ValueError("it holds a parameter without a tensor.")
    return data


def _size(numbers):
    if not isinstance(numbers, tuple) or len(numbers) > _MOST_DIMENSIONS:
        raise ValueError("it holds a torch.Size that is none.")
    return numbers


_KNOWN = {
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("torch", "Size"): _size,
    ("collections", "OrderedDict"): _Ordered,
}


class _Outline(pickle.Unpickler):
    """stored_bytes(key): of the storage `key`, or None where the file does not say before it is read."""

    def __init__(self, file, stored_bytes):
        super().__init__(file)
        self._stored_bytes, self.claimed = stored_bytes, {}

    def find_class(self, module, name):
        kind = name.removesuffix("Storage")
        if module == "torch" and kind != name and kind in _ITEMSIZES:
            return _Storage(_ITEMSIZES[kind])
        if (module, name) not in _KNOWN:
            raise ValueError(f"it holds a {module}.{name}.")
        return _KNOWN[module, name]

    def persistent_load(self, identity):
        kind, storage, key, _, count = identity[:5]
        if kind != "storage" or not isinstance(storage, _Storage) or type(count) is not int or count < 0:
            raise ValueError("it holds a storage that is none.")
        size, stored = count * storage.itemsize, self._stored_bytes(key)
        if stored is not None and stored != size:
            raise ValueError(f"a storage claims {size:,} bytes, and the file holds {stored:,}.")
        self.claimed[key] = size
        return _Elements(count)


def require_plain(data, stored_bytes):
    """ValueError unless the pickle at the beginning of `data` makes plain values and tensors that are stored.

    stored_bytes(key) -> bytes of a storage in the file, or None. Returns where the pickle ends, and the bytes
    that all its storages claim.
    """
    if len(data) > LARGEST_PICKLE:
        raise ValueError(f"its structure takes more than {LARGEST_PICKLE:,} bytes.")
    end = 0
    for opcode, argument, position in pickletools.genops(data):
        end = position + 1
        if opcode.name not in _OPCODES:
            raise ValueError(f"it is not what torch.save writes ({opcode.name}).")
        if opcode.name in ("BINPUT", "LONG_BINPUT") and argument > len(data):
            raise ValueError("it remembers more values than it has.")
    outline = _Outline(io.BytesIO(data[:end]), stored_bytes)
    outline.load()
    return end, sum(outline.claimed.values())
