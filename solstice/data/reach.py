"""Finds what a function or an object can reach: closures, attributes, globals of its module.

It finds data that secretly depends on the run, without calling anything.
"""

import collections
import functools
import types
from collections.abc import Iterable, Mapping

# A dataset's references to a run are never deep; a library's objects may be.
_MOST = 1000
_OPAQUE = (types.ModuleType, types.BuiltinFunctionType, str, bytes, int, float, complex, type(None))
_CONTAINERS = (dict, list, tuple, set)
_READING = ("__iter__", "__next__", "__getitem__", "__call__")


def leads_to(start: object, targets: Iterable[object]) -> bool:
    """Return whether a function or an object can reach one of the targets.

    >>> seen = {"policy": None}
    >>> leads_to(lambda epoch: iter([seen["policy"]]), [seen])
    True
    >>> leads_to(lambda epoch: iter([epoch]), [seen])
    False
    """
    wanted = {id(target) for target in targets}
    found: set[int] = set()
    ahead = collections.deque([start] if wanted else [])
    while ahead and len(found) < _MOST:
        value = ahead.popleft()
        if id(value) in wanted:
            return True
        if id(value) not in found:
            found.add(id(value))
            try:
                ahead.extend(_held(value))
            except Exception:  # noqa: BLE001 - an object that answers nothing leads nowhere
                continue
    return False


def _held(value: object) -> list[object]:
    if isinstance(value, _OPAQUE):
        return []
    if isinstance(value, types.FunctionType):
        cells = [_contents(cell) for cell in value.__closure__ or ()]
        defaults = [*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
        return [*cells, *defaults, *_named(value.__code__, value.__globals__)]
    if isinstance(value, types.GeneratorType):
        frame = value.gi_frame
        used = [] if frame is None else _named(value.gi_code, frame.f_globals)
        return used if frame is None else [*frame.f_locals.values(), *used]
    if isinstance(value, types.MethodType):
        return [value.__func__, value.__self__]
    if isinstance(value, functools.partial):
        return [value.func, *value.args, *value.keywords.values()]
    # Exactly these types: another mapping may read a file for each value.
    if isinstance(value, dict | list | tuple | set) and type(value) in _CONTAINERS:
        parts = value.values() if isinstance(value, dict) else value
        return list(parts) if len(value) <= _MOST else []
    if isinstance(value, type):
        return []
    methods = [getattr(type(value), name, None) for name in _READING]
    written = [method for method in methods if isinstance(method, types.FunctionType)]
    slots = [slot for cls in type(value).__mro__ for slot in vars(cls).values()]
    slots = [slot for slot in slots if isinstance(slot, types.MemberDescriptorType)]
    in_slots = [slot.__get__(value) for slot in slots if _is_set(slot, value)]
    return [*getattr(value, "__dict__", {}).values(), *in_slots, *written]


def _is_set(slot: types.MemberDescriptorType, value: object) -> bool:
    try:
        slot.__get__(value)
    except AttributeError:
        return False
    return True


def _named(code: types.CodeType, known: Mapping[str, object]) -> list[object]:
    """Return the globals that the code, and functions inside it, use."""
    inner = [part for part in code.co_consts if isinstance(part, types.CodeType)]
    found = [known[name] for name in code.co_names if name in known]
    return [*found, *(one for part in inner for one in _named(part, known))]


def _contents(cell: types.CellType) -> object:
    try:
        return cell.cell_contents
    except ValueError:  # not assigned yet
        return None
