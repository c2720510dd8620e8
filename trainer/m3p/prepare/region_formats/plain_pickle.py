"""Reads a pickle that holds dicts, lists, tuples, texts, numbers and numpy arrays of numbers, and executes nothing.

`numpy.save` of a dict writes a pickle, and MMF's `_info.npy` are such files. A pickle is a program: it may call whatever it can
name. Here it can name five constructors of numpy and that of an OrderedDict, and gets stand-ins of this file for them. Any other
name, and any operation that plain data does not need, is an error. The operations run in Python's own slow reader, whose memory
is bounded by the size of the pickle.
"""

import io
import math
import pickle
import pickletools
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

# fmt: off
_OPERATIONS = frozenset((
    "PROTO", "FRAME", "STOP", "MARK", "MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT", "GET", "BINGET", "LONG_BINGET",
    "NONE", "NEWTRUE", "NEWFALSE", "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT",
    "BINFLOAT", "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
    "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_LIST",
    "LIST", "APPEND", "APPENDS", "EMPTY_DICT", "DICT", "SETITEM", "SETITEMS", "GLOBAL", "STACK_GLOBAL", "REDUCE",
    "BUILD",
))
# fmt: on
"""What plain data needs, by the names of pickletools."""
MAX_OPERATIONS = 1_000_000
LONGEST_NUMBER = 64
"""Bytes of a whole number: Python makes numbers of any size."""


class NotPlain(ValueError):
    """A pickle that holds more than plain data, or is broken."""


class _Type:
    """Stands for a numpy dtype: its short name, such as "f4", and its byte order."""

    def __init__(self, name: object = "", *_: object) -> None:
        self.name, self.order = name if isinstance(name, str) else "", "="

    def __setstate__(self, state: object) -> None:
        if isinstance(state, tuple) and len(state) > 1 and state[1] in ("<", ">", "|", "="):
            self.order = state[1]

    @property
    def real(self) -> np.dtype[Any]:
        """The dtype. Raises NotPlain for one that is neither numbers nor truth values."""
        if len(self.name) > 3 or self.name[:1] not in ("f", "i", "u", "b") or not self.name[1:].isdigit():
            raise NotPlain(f"an array of type {self.name[:20]!r}; the rule is numbers")
        try:
            return np.dtype(self.order.replace("|", "=") + self.name)
        except TypeError as error:
            raise NotPlain(str(error)) from None


class _Array:
    """Stands for a numpy array, until its state is read."""

    value: Any = None

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, tuple) or len(state) != 5 or not isinstance(state[2], _Type):
            raise NotPlain("an array without its state")
        _, shape, kind, fortran, content = state
        if kind.name in ("O8", "O"):
            if shape != () or not isinstance(content, list) or len(content) != 1:
                raise NotPlain("an array of several objects; the rule is one")
            self.value = content[0]
        else:
            self.value = _array(shape, kind, bool(fortran), content)


def _array(shape: object, kind: _Type, fortran: bool, content: object) -> NDArray[Any]:
    if isinstance(content, str):  # bytes as Python 2 wrote them
        content = content.encode("latin1")
    if not isinstance(shape, tuple) or not all(type(size) is int and size >= 0 for size in shape) or len(shape) > 8:
        raise NotPlain("an array of no shape")
    if not isinstance(content, bytes) or math.prod(shape) * kind.real.itemsize != len(content):
        raise NotPlain("an array of another size than its content")
    return np.frombuffer(content, kind.real).reshape(shape, order="F" if fortran else "C")


def _reconstruct(*_: object) -> _Array:
    return _Array()


def _scalar(kind: object, content: object = b"") -> object:
    if not isinstance(kind, _Type) or not isinstance(content, bytes | str):
        raise NotPlain("a number of no type")
    return _array((), kind, False, content)[()]


def _encode(text: object, encoding: object = "latin1") -> bytes:
    """Return bytes that protocols below 3 write as text."""
    if not isinstance(text, str) or encoding != "latin1":
        raise NotPlain("bytes in an unknown encoding")
    return text.encode("latin1")


def _ordered(*items: object) -> dict[str, Any]:
    """Return an empty dict for an OrderedDict, which rows of `csv` were before Python 3.8; its items are put in afterwards."""
    if items:
        raise NotPlain("an OrderedDict that is made of something")
    return {}


class _Marker:
    """Stands for `numpy.ndarray`, which is named and never called."""


_NAMES: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _Marker(),
    ("numpy", "dtype"): _Type,
    ("_codecs", "encode"): _encode,
    ("collections", "OrderedDict"): _ordered,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _reconstruct for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _scalar for core in ("core", "_core")},
}
_CALLED = (_Type, _reconstruct, _scalar, _encode, _ordered)


class _Reader(pickle._Unpickler):
    """Reads plain data; its operations have been looked through before. C's reader keeps a memo of any size that is asked for."""

    stack: list[Any]
    pop_mark: Callable[[], list[Any]]
    append: Callable[[object], None]

    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)

    def find_class(self, module: str, name: str) -> Any:
        """Return what stands for a name. Raises NotPlain for any but the few."""
        if (module, name) not in _NAMES:
            raise NotPlain(f"it names {module[:40]}.{name[:40]}, which is not plain data")
        return _NAMES[module, name]

    def load_reduce(self) -> None:
        arguments = self.stack.pop()
        called = self.stack[-1]
        if not any(called is one for one in _CALLED) or not isinstance(arguments, tuple):
            raise NotPlain("it calls what cannot be called")
        self.stack[-1] = called(*arguments)

    def load_build(self) -> None:
        state = self.stack.pop()
        if not isinstance(self.stack[-1], _Array | _Type):
            raise NotPlain("it gives a state to what has none")
        self.stack[-1].__setstate__(state)

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        _put(self.stack[-1], [key, value])

    def load_setitems(self) -> None:
        items = self.pop_mark()
        _put(self.stack[-1], items)

    def load_dict(self) -> None:
        items, found = self.pop_mark(), dict[str, Any]()
        _put(found, items)
        self.append(found)

    dispatch[pickle.REDUCE[0]] = load_reduce
    dispatch[pickle.BUILD[0]] = load_build
    dispatch[pickle.SETITEM[0]] = load_setitem
    dispatch[pickle.SETITEMS[0]] = load_setitems
    dispatch[pickle.DICT[0]] = load_dict


def _put(into: object, items: list[Any]) -> None:
    """Put keys and values, in turn, into a dict. Only texts are keys: the hash of tuples in tuples may take for ever."""
    if not isinstance(into, dict) or len(items) % 2 or not all(isinstance(key, str) for key in items[::2]):
        raise NotPlain("a dict with keys other than texts")
    into.update(zip(items[::2], items[1::2], strict=True))


def load_plain(content: bytes) -> Any:
    """Return what a pickle holds: an array, or a dict of arrays, numbers, texts and lists. Raises NotPlain.

    Arrays are views of `content`. What lies in a list may be anything of this file: take arrays and numbers alone.
    """
    try:
        for number, (operation, argument, _) in enumerate(pickletools.genops(content)):
            if operation.name not in _OPERATIONS or number > MAX_OPERATIONS:
                raise NotPlain(f"it has the operation {operation.name}, which plain data does not need")
            if isinstance(argument, int) and argument.bit_length() > 8 * LONGEST_NUMBER:
                raise NotPlain("a number of many digits")
        # Texts that Python 2 wrote may be bytes.
        found = _Reader(io.BytesIO(content), encoding="latin1").load()
    except NotPlain:
        raise
    except (
        Exception
    ) as error:  # on broken bytes Python's readers raise nearly anything, from IndexError to UnicodeDecodeError
        raise NotPlain(f"it cannot be read ({error!r:.100})") from None
    found = _value(found)
    if not (found is None or isinstance(found, dict | list | np.ndarray | np.generic | str | bytes | int | float)):
        raise NotPlain("it holds no data")
    return {name: _value(value) for name, value in found.items()} if isinstance(found, dict) else found


def _value(found: Any) -> Any:
    """Return the array in the place of what stood for it. Lists are not walked: in a pickle they may hold one another."""
    return found.value if isinstance(found, _Array) else found
