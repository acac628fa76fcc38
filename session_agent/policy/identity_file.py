"""An identity as keys in YAML or JSON: in a file of root's, in the environment, in a table of tests."""

from __future__ import annotations

from session_agent.policy.document import Items, Keys, Position, Problems, parse, refuse
from session_agent.policy.fields import Fields, text_of
from session_agent.policy.identity import Identity


def parse_identity(data: bytes, source: str) -> Identity | None:
    """The identity that `data` holds, None if it names no user. Raises PolicyError, which names `source`."""
    problems = Problems()
    root = parse(data, source, problems)
    if not isinstance(root, Keys):
        problems.error(Position(1, 1), "", "expected keys: user, user_id, groups, attributes")
        raise refuse(source, problems.errors)
    known = ("user", "user_id", "groups", "attributes")
    identity = identity_from(Fields(root, "", problems, known))
    if problems.errors:
        raise refuse(source, problems.errors)
    return identity


def identity_from(fields: Fields) -> Identity | None:
    """The identity in these keys; None without a user."""
    if not fields.has("user"):
        for name in ("user_id", "groups", "attributes"):
            if fields.has(name):
                fields.error(name, "needs `user`: without one it is somebody unknown")
        return None
    attributes: dict[str, frozenset[str]] = {}
    node = fields.get("attributes")
    if isinstance(node, Keys):
        for name, value in node.values.items():
            key = f"{fields.dotted('attributes')}.{name}"
            values = value.values if isinstance(value, Items) else (value,)
            attributes[name] = frozenset(text_of(v, key, fields.problems) for v in values)
    elif node is not None:
        fields.error("attributes", "expected names with values, such as {department: legal}")
    return Identity(fields.text("user"), fields.text("user_id"), fields.names("groups"), attributes)
