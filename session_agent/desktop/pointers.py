"""A JSON document as a map of JSON pointers (RFC 6901) to values, and back. Pure.

Objects are taken apart; a list is one value, since nobody can tell whose an element in the middle of
it is. But some lists of strings mean no more than which strings are in them. The pointers of those
are given as `sets`: each string becomes a key of its own below the list's pointer, with True for a value.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping

from session_agent.desktop.merge import Json


def flatten(document: Json, sets: Collection[str] = ()) -> dict[str, Json]:
    """The values of `document` by pointer, in its order. None, no document, has none."""
    found: dict[str, Json] = {}
    waiting: list[tuple[str, Json]] = [] if document is None else [("", document)]
    while waiting:
        pointer, value = waiting.pop()
        if pointer in sets:
            elements = _strings(value)
            if elements is None:
                found[pointer] = value
            else:
                found |= {f"{pointer}/{escape(element)}": True for element in elements}
        elif isinstance(value, dict) and (value or not pointer):
            below = [(f"{pointer}/{escape(key)}", inner) for key, inner in value.items()]
            waiting += below[::-1]
        else:
            found[pointer] = value
    return found


def patch(document: Json, after: Mapping[str, Json], sets: Collection[str] = ()) -> Json:
    """`document` with the values `after`, which is `flatten(document)` with some changed.

    What stays keeps its place; what is new comes last in its object.
    """
    before = flatten(document, sets)
    result: Json = copy.deepcopy(document)
    if result is None:
        result = [] if "" in sets else {}
    for pointer in before:
        if pointer not in after:
            result = _without(result, pointer, sets)
    for pointer, value in after.items():
        if pointer not in before or before[pointer] is not value:
            result = _with(result, pointer, value, sets)
    return result


def stands_in_the_way(pointer: str, values: Mapping[str, Json], sets: Collection[str] = ()) -> bool:
    """Whether `pointer` cannot get a value beside `values`: one of them lies above or below it."""
    above = pointer
    while above:
        above = above.rpartition("/")[0]
        # In an empty object there is room.
        if above in values and (values[above] != {} or above in sets):
            return True
    return any(other.startswith(pointer + "/") for other in values)


def escape(key: str) -> str:
    """`key` as a component of a pointer."""
    return key.replace("~", "~0").replace("/", "~1")


def _unescape(component: str) -> str:
    return component.replace("~1", "/").replace("~0", "~")


def _strings(value: Json) -> list[str] | None:
    """`value` if it is a list of nothing but strings."""
    if not isinstance(value, list):
        return None
    strings = [element for element in value if isinstance(element, str)]
    return strings if len(strings) == len(value) else None


def _with(result: Json, pointer: str, value: Json, sets: Collection[str]) -> Json:
    if not pointer:
        return value
    above, _, last = pointer.rpartition("/")
    key = _unescape(last)
    if above in sets and value is True:
        elements = _at(result, above)
        if elements is None:
            return _with(result, above, [key], ())
        if isinstance(elements, list):
            if key not in elements:
                elements.append(key)
            return result
    folder = _at(result, above)
    if not isinstance(folder, dict):
        return _with(result, above, {key: value}, ())
    folder[key] = value
    return result


def _without(result: Json, pointer: str, sets: Collection[str]) -> Json:
    if not pointer:
        return None
    above, _, last = pointer.rpartition("/")
    container = _at(result, above)
    key = _unescape(last)
    if isinstance(container, dict):
        container.pop(key, None)
    elif isinstance(container, list) and above in sets:
        container[:] = [element for element in container if element != key]
    return result


def _at(result: Json, pointer: str) -> Json:
    """The value at `pointer`, None if there is none."""
    for component in pointer.split("/")[1:]:
        if not isinstance(result, dict):
            return None
        result = result.get(_unescape(component))
    return result
