"""Configuration files: YAML 1.2, restricted to the types of JSON."""

from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.composer import Composer, ComposerError
from ruamel.yaml.constructor import SafeConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import AliasEvent
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode
from ruamel.yaml.resolver import VersionedResolver

from satm.errors import LONGEST, UsageError, short

LONGEST_FILE, MOST_VALUES, LONGEST_NUMBER = 2**18, 20_000, 400
"""Limits: bytes, values with aliases expanded, digits of a number; campaigns here need a tenth of the first two."""

PLAIN = "tag:yaml.org,2002:"
NUMBERS = {f"{PLAIN}int", f"{PLAIN}float"}
TYPES = NUMBERS | {f"{PLAIN}{name}" for name in ("null", "bool", "str", "seq", "map", "merge")}


class _Resolver(VersionedResolver):
    """Reads dates as text."""

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        tag = super().resolve(kind, value, implicit)
        return tag if str(tag) in TYPES else self.DEFAULT_SCALAR_TAG


class _Composer(Composer):
    """Rejects types that JSON lacks, duplicate names and anchors, recursive aliases, and too many values."""

    def __init__(self, loader: Any = None) -> None:
        super().__init__(loader)
        self._count = 0
        self._sizes: dict[Node, int] = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        event, before = self.parser.peek_event(), self._count
        if event.anchor in self.anchors and not isinstance(event, AliasEvent):
            raise _refusal(event, f"duplicate anchor {short(event.anchor)}")
        self._count += 1
        node = super().compose_node(parent, index)
        self._sizes.setdefault(node, self._count - before)
        if self._count > MOST_VALUES:
            raise _refusal(node, f"the file has more than {MOST_VALUES} values, with aliases expanded")
        if node.tag not in TYPES:
            raise _refusal(node, f"unknown tag {short(node.tag.replace(PLAIN, '!!'))}; leave it out")
        if node.tag in NUMBERS and len(node.value) > LONGEST_NUMBER:
            raise _refusal(node, f"a number has {len(node.value)} digits, expected at most {LONGEST_NUMBER}")
        names = set()  # ruamel.yaml checks them too, except in a mapping with a merge key
        for name, _ in node.value if isinstance(node, MappingNode) else ():
            if not isinstance(name, ScalarNode):
                raise _refusal(name, "expected a name, got a list or a mapping")
            if (name.tag, name.value) in names:
                raise _refusal(name, f"duplicate name {short(name.value)}")
            names.add((name.tag, name.value))
        return node

    def return_alias(self, node: Any) -> Any:
        if node not in self._sizes:
            raise _refusal(node, "an alias refers to a value that contains it")
        self._count += self._sizes[node] - 1
        return node


class _Constructor(SafeConstructor):
    """Adds the line to errors about values that do not fit their tag, such as `!!int x`."""

    def construct_non_recursive_object(self, node: Any, tag: str | None = None) -> Any:
        try:
            return super().construct_non_recursive_object(node, tag)
        except (ValueError, LookupError) as error:
            raise _refusal(node, f"expected {node.tag.replace(PLAIN, '!!')}, got {short(node.value)}") from error


def _refusal(place: Any, problem: str) -> ComposerError:
    return ComposerError(None, None, problem, place.start_mark)


def load_yaml(path: Path, empty: bool = False) -> dict[str, Any]:
    """Return the mapping in a YAML file; `empty`: accept a file without content as an empty mapping.

    Raises:
        UsageError: the file is missing, too long, not a mapping, or not YAML with the types of JSON.
    """
    yaml = YAML(typ="safe", pure=True)
    yaml.Resolver, yaml.Composer, yaml.Constructor = _Resolver, _Composer, _Constructor
    try:
        with path.open("rb") as file:
            raw = file.read(LONGEST_FILE + 1)
        if len(raw) > LONGEST_FILE:
            raise YAMLError(f"the file has more than {LONGEST_FILE} bytes")
        content = yaml.load(raw.decode())
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise UsageError(f"{path} is not UTF-8 text, in line {line}; save it as UTF-8") from error
    except OSError as error:
        raise UsageError(f"cannot read the configuration {path}: {error.strerror}; check the path") from error
    except (RecursionError, YAMLError, ValueError, AssertionError) as error:  # last: an unknown version of YAML
        problem = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        if isinstance(error, MarkedYAMLError):
            text = ", ".join(str(part)[:LONGEST] for part in (error.context, error.problem) if part)
            problem = f"line {error.problem_mark.line + 1}: {text}"
        raise UsageError(f"{path} is not usable YAML: {problem}; correct it") from error
    if content is None and empty:
        return {}
    if not isinstance(content, dict):
        found = "is empty" if content is None else f"holds a {type(content).__name__}"
        raise UsageError(f"{path} {found}, expected a mapping of names to values; correct it")
    return content
