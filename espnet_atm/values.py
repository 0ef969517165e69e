"""Values that a user writes into a config: of the right kind, and possible."""

import math
import numbers
import sys
from typing import Any, Dict, Mapping, Optional, Sequence, Tuple

from espnet_atm.errors import UserError

# Sizes beyond these are slips of the pen that would exhaust the memory.
MOST_FRAMES = 10_000
MOST_CODES = 1 << 17
MOST_DIMENSIONS = 1 << 14


def number(
    name: str,
    value: Any,
    *,
    positive: bool = False,
    within: Optional[Tuple[float, float]] = None,
) -> float:
    """A finite number; True is none, and neither is ``"1"``.

    Args:
        name: what to call it, e.g. ``ssl_conf.crop_seconds``.
        value: as YAML gives it.
        positive: whether it must be above 0.
        within: the least and the most that it may be.

    Raises:
        UserError: naming ``name``, the value and the bound.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise UserError(f"{name}: {value!r} is not a number{_meant(value)}")
    try:
        found = float(value)
    except OverflowError:
        found = math.inf
    if not math.isfinite(found):
        raise UserError(f"{name}: {found} is not a finite number")
    if positive and not found > 0:
        raise UserError(f"{name}: {value} is not positive")
    if within is not None and not within[0] <= found <= within[1]:
        raise UserError(f"{name}: {found} is not in {list(within)}")
    return found


def is_positive(value: Any) -> bool:
    """Whether it is a number, positive and finite; True and ``"1"`` are none."""
    kind = isinstance(value, (int, float)) and not isinstance(value, bool)
    return kind and 0 < value <= sys.float_info.max


def whole(
    name: str, value: Any, *, least: int = 1, most: int, what: str = "whole number"
) -> int:
    """A whole number, written without a point.

    Args:
        name, value: see :func:`number`.
        least, most: the bounds, both possible.
        what: what it counts, for the message.

    Raises:
        UserError: naming ``name``, the value and the bound.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise UserError(f"{name}: {value!r} is not a {what}{_meant(value)}")
    if value < least:
        if least == 1:
            bound = "positive" if what == "whole number" else f"a positive {what}"
        else:
            bound = f"{least} or more"
        raise UserError(f"{name}: {value} is not {bound}")
    if value > most:
        raise UserError(f"{name}: {value} is too large: {most} at most")
    return int(value)


def flag(name: str, value: Any) -> bool:
    """True or False; the word ``"false"`` is neither.

    Raises:
        UserError: naming ``name`` and the value.
    """
    if not isinstance(value, bool):
        raise UserError(
            f"{name}: {value!r} is not true or false; write one of them, without quotes"
        )
    return value


def one_of(name: str, value: Any, choices: Sequence[str]) -> str:
    """One of the words in ``choices``.

    Raises:
        UserError: naming ``name``, the value and the choices.
    """
    if not isinstance(value, str) or value not in choices:
        raise UserError(f"{name}: {value!r} is not known; write one of {choices}")
    return value


def text(name: str, value: Any) -> str:
    """A word that is not empty, e.g. a path.

    Raises:
        UserError: naming ``name`` and the value.
    """
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        raise UserError(f"{name}: {value!r} is not a name")
    return value


def mapping(name: str, value: Any) -> Dict[str, Any]:
    """A copy of a mapping of options to values; nothing at all is an empty one.

    Raises:
        UserError: naming ``name`` and what it is instead.
    """
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise UserError(f"{name}: {value!r} is not a mapping of options to values")
    strange = [x for x in value if not isinstance(x, str)]
    if strange:
        raise UserError(f"{name}: {strange[0]!r} is not the name of an option")
    return dict(value)


def sequence(name: str, value: Any) -> list:
    """A copy of a list.

    Raises:
        UserError: naming ``name`` and what it is instead.
    """
    if not isinstance(value, (list, tuple)):
        raise UserError(f"{name}: {value!r} is not a list")
    return list(value)


def known(name: str, options: Mapping[str, Any], names: Sequence[str]) -> None:
    """Refuse options that nobody reads.

    Raises:
        UserError: naming them, and those that are known.
    """
    unknown = [x for x in options if x not in names]
    if unknown:
        raise UserError(
            f"{name}: unknown {', '.join(map(repr, unknown))}; known are "
            f"{', '.join(names)}"
        )


def _meant(value: Any) -> str:
    """What to write for a number in quotes, 10.0, or 1e-3, which YAML takes for a word."""
    if isinstance(value, bool) or not isinstance(value, (str, float)):
        return ""
    try:
        found = float(value)
    except ValueError:
        return ""
    if not math.isfinite(found):
        return ""
    return f"; write {int(found) if found % 1 == 0 else found}"
