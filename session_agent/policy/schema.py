"""From a policy file to a typed policy. Every mistake is told with its line, column and key."""

from __future__ import annotations

from zoneinfo import ZoneInfo

from session_agent.policy import check
from session_agent.policy.document import Items, Keys, Position, Problems, parse, read, refuse
from session_agent.policy.fields import Fields, text_of
from session_agent.policy.membership import Group, Membership
from session_agent.policy.model import Folder, Implication, Policy, Rule, Storage, Subfolder
from session_agent.policy.rules import rule, zone_of

FOLDER_KEYS = (
    "name", "path", "target", "access", "deny", "implies", "subfolders", "storage", "because",
)  # fmt: skip
STORAGE_TYPES = ("bind", "rclone", "s3", "nextcloud", "gdrive", "dropbox", "onedrive", "custom")


def load(path: str) -> Policy:
    """Read and parse a policy file. Raises PolicyError."""
    return parse_policy(read(path), path)


def parse_policy(data: bytes, file: str) -> Policy:
    """The policy that `data` holds. Raises PolicyError, whose message has a line for each mistake."""
    policy, problems = examine(data, file, warn=False)
    if policy is None:
        raise refuse(file, problems.errors)
    return policy


def examine(data: bytes, file: str, *, warn: bool = True) -> tuple[Policy | None, Problems]:
    """The policy, None if it has errors, and all that was found. PolicyError for what is no YAML.

    To look for what is probably not meant takes longer than all the rest.
    """
    problems = Problems()
    root = parse(data, file, problems)
    if not isinstance(root, Keys):
        at = Position(1, 1) if root is None else root.at
        problems.error(at, "", "expected keys; a policy begins with `folders:`")
        return None, problems
    fields = Fields(root, "", problems, known=("folders", "groups", "time_zone"))
    zone = zone_of(fields, None)
    groups = {group.name: group for group in _groups(fields)}
    folders: list[Folder] = []
    for node, key in fields.items("folders", required=True):
        part = Fields.of(node, key, problems, known=FOLDER_KEYS)
        if part is not None:
            folders.append(_folder(part, zone))
    check.groups(groups, problems)
    check.folders(folders, groups, problems)
    order = check.implications(folders, problems)
    if problems.errors:
        return None, problems
    membership = Membership(groups)
    if warn:
        check.rules(folders, membership, problems)
    policy = Policy(
        file=file,
        folders=tuple(folders),
        groups=groups,
        membership=membership,
        order=tuple(order),
        lines=sum(
            1 for line in data.splitlines() if line.strip() and not line.lstrip().startswith(b"#")
        ),
    )
    return policy, problems


def _groups(fields: Fields) -> list[Group]:
    node = fields.get("groups")
    if node is None:
        return []
    if not isinstance(node, Keys):
        fields.problems.error(node.at, "groups", "expected names of groups as keys")
        return []
    found = []
    for name, definition in node.values.items():
        key, at = f"groups.{name}", node.places[name]
        if not name:
            fields.problems.error(at, "groups", "a group needs a name")
        if isinstance(definition, Items):
            members = _names(definition, key, fields.problems)
            found.append(Group(name, members, frozenset(), None, at))
            continue
        part = Fields.of(definition, key, fields.problems, known=("members", "groups", "provided"))
        if part is not None:
            provided = part.names("provided") if part.has("provided") else None
            found.append(Group(name, part.names("members"), part.names("groups"), provided, at))
    return found


def _names(node: Items, key: str, problems: Problems) -> frozenset[str]:
    texts = [text_of(value, f"{key}[{n}]", problems) for n, value in enumerate(node.values)]
    return frozenset(text for text in texts if text)


def _folder(fields: Fields, zone: ZoneInfo | None) -> Folder:
    name = fields.text("name", required=True)
    path = fields.path("path", required=True)
    target = fields.path("target") or (f"/vault/{name}" if name else "")
    if name and not fields.has("target"):
        check.name_as_target(name, fields.place("name"), fields.dotted("name"), fields.problems)
    access = _rules(fields, "access", zone)
    return Folder(
        name=name,
        path=path,
        target=target,
        access=access,
        deny=_rules(fields, "deny", zone),
        implies=tuple(_implications(fields)),
        subfolders=tuple(_subfolders(fields, zone)),
        storage=_storage(fields),
        because=fields.text("because"),
        at=fields.at,
    )


def _rules(fields: Fields, name: str, zone: ZoneInfo | None) -> tuple[Rule, ...]:
    found = []
    for node, key in fields.items(name):
        one = rule(node, key, fields.problems, zone, denies=name == "deny")
        if one is not None:
            found.append(one)
    return tuple(found)


def _implications(fields: Fields) -> list[Implication]:
    found = []
    for node, key in fields.items("implies"):
        if isinstance(node, Keys):
            part = Fields(node, key, fields.problems, known=("folder", "mode"))
            mode = part.mode("mode") if part.has("mode") else None
            found.append(Implication(part.text("folder", required=True), mode, part.at))
        else:
            found.append(Implication(text_of(node, key, fields.problems), None, node.at))
    return found


def _subfolders(fields: Fields, zone: ZoneInfo | None) -> list[Subfolder]:
    found = []
    for node, key in fields.items("subfolders"):
        part = Fields.of(
            node, key, fields.problems, known=("path", "access", "mode", "deny", "because")
        )
        if part is None:
            continue
        if part.has("access") and part.has("mode"):
            part.error("mode", "either `mode` or `access`, not both")
        if not (part.has("access") or part.has("mode") or part.has("deny")):
            fields.problems.error(part.at, key, "expected `mode`, `access` or `deny`")
        found.append(
            Subfolder(
                path=part.relative_path("path"),
                access=_rules(part, "access", zone) if part.has("access") else None,
                mode=part.mode("mode") if part.has("mode") else None,
                deny=_rules(part, "deny", zone),
                because=part.text("because"),
                at=part.at,
            )
        )
    return sorted(found, key=lambda subfolder: subfolder.path.count("/"))


def _storage(fields: Fields) -> Storage:
    node = fields.get("storage")
    if node is None:
        return Storage()
    part = Fields.of(node, fields.dotted("storage"), fields.problems, known=("type", "options"))
    if part is None:
        return Storage()
    kind = part.choice("type", STORAGE_TYPES) or "bind"
    return Storage(kind, part.texts("options"))
