"""Between the dataclasses that users see and the library's structures."""

from __future__ import annotations

import ctypes
from dataclasses import fields
from typing import Any, Dict, Optional, Type, TypeVar

from . import _native as native
from .figures import CHOICES, NAMES, Given

_Figures = TypeVar("_Figures")


def structure(kind: type, given: Optional[Given], expected: type, name: str) -> Any:
    """The structure for what a user gives; NULL for None, which is the defaults."""
    if given is None:
        return None
    if not isinstance(given, expected):
        raise TypeError("%s is a %s, not %s" % (name, expected.__name__, type(given).__name__))
    choices = CHOICES.get(expected.__name__, {})
    values: Dict[str, Any] = {}
    widths = {field[0]: field[1] for field in kind._fields_}  # type: ignore[attr-defined]
    for field in fields(expected):
        value = getattr(given, field.name)
        if field.name in choices:
            value = native.choice(choices[field.name], value, field.name)
        elif isinstance(value, str) or value is None:
            value = None if value is None else native.text(value, field.name)
        else:
            wide = widths[field.name]
            if wide is ctypes.c_int32:
                # Out of range for the library, and not cut.
                if not -(1 << 31) <= value < 1 << 31:
                    raise ValueError("%s is a number of 32 bits, not %d" % (field.name, value))
            else:
                value = native.number(value, field.name, 8 * ctypes.sizeof(wide))
        values[field.name] = value
    return native.sized(kind, **values)


def figures(kind: Type[_Figures], filled: Any) -> _Figures:
    """The dataclass for what the library filled: names for constants, None for unknown."""
    unknown = native.constant("UNKNOWN")
    names = NAMES.get(kind.__name__, {})
    values: Dict[str, Any] = {}
    for field in fields(kind):  # type: ignore[arg-type]
        value = getattr(filled, field.name.rstrip("_"))
        if field.name in names:
            value = names[field.name].get(value, str(value))
        elif field.type == "bool":
            value = bool(value)
        elif str(field.type).startswith("Tuple"):
            value = tuple(value)
        elif value == unknown and field.type == "Optional[int]":
            value = None
        values[field.name] = value
    return kind(**values)
