"""Whether results are those that a campaign asks for now. Nothing here imports torch.

A result states its identity: options, revision of the code, hashes of its inputs. Every part that the campaign or a
file of today determines is compared; parts that a result of an earlier version does not state are not.
"""

import json
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeGuard

from pyarrow import ArrowException, parquet
from safetensors import SafetensorError, safe_open

from satm.config import REVISIONS, Cell, Resolver, data_path, expand
from satm.config.base import numbers
from satm.config.datasets import built_in
from satm.config.source_files import source_state
from satm.results.exhibits import FORMS, stated_by_exhibit
from satm.results.rows import METADATA_KEY
from satm.storage.identity import Identity, described, differences, differing_fields, hash_json, hash_path
from satm.workflow.asked import Asked, Chosen, cell_of, of_images, of_whitening, params, wildcards
from satm.workflow.commands import TOGETHER, command_of
from satm.workflow.graph import Graph, Single
from satm.workflow.rules import RULES


def differing_options(asked: Asked, stated: Identity, path: str = "") -> list[str]:
    """Return every field in which an identity differs from what is asked, with both values.

    Fields that the identity lacks are not compared, options that it lacks had their defaults.
    """
    found = []
    for name in asked.keys() & stated.keys():
        value, other, place = asked[name], stated[name], f"{path}.{name}" if path else name
        if isinstance(value, Chosen) and isinstance(other, Mapping):
            options = {**value.defaults, **other}
            found += differences(value.values, {each: options.get(each) for each in value.values}, place)
        elif isinstance(value, Mapping) and isinstance(other, Mapping):
            found += differing_options(value, other, place)
        else:
            found += differences(json.loads(json.dumps(params(value))), other, place)
    return sorted(found)


KINDS = {"images": "images", "zca": "whitening", "difficulty": "difficulty", "distill": "distilled"}
"""Kind that a file of tensors states, by rule."""

SOURCES = ("images", "labels_from", "step_size_from")
"""Options of an imported set that name files or folders."""


class Provenance:
    """Compares the results below a campaign's root with the campaign and with their inputs, as far as these exist."""

    def __init__(self, resolver: Resolver) -> None:
        self._resolver = resolver
        # Many results share their inputs.
        self._stated: Callable[[Path], Identity | None] = cache(stated_identity)
        self._hash: Callable[[Path], str] = cache(hash_path)
        self._known: dict[tuple[object, ...], str | None] = {}
        self._changed: dict[str, str | None] = {}

    def difference(self, rule: str, **names: object) -> str | None:
        """Return in what the results of a job differ from what is asked for now; None: in nothing, or there are none.

        Args:
            rule: key of the table of jobs (`satm.workflow.rules.RULES`).
            names: the job's wildcards; further ones are ignored.
        """
        key = (rule, *sorted(names.items()))
        if key not in self._known:
            self._known[key] = self._compare(rule, names)
        return self._known[key]

    def of_exhibit(self, rule: str, name: str, partial: bool) -> Identity:
        """Return the identity of a table or figure that is made now: its entry, and the files that it shows.

        Args:
            rule: `table` or `figure`.
            name: name of the table or figure.
            partial: whether missing files are left out.
        """
        return self._identity_of(rule, name, partial, self._shown(rule, name))

    def differing_exhibit(self, rule: str, name: str, partial: bool) -> str | None:
        """Return in what a table or figure differs from one made now (arguments: `of_exhibit`).

        None: in nothing, or one of its files does not exist.
        """
        root = self._resolver.layout.root
        outputs = {
            kind: Path(pattern.format(**{rule: name}, root=root)) for kind, pattern in RULES[rule].outputs.items()
        }
        if not all(output.is_file() for output in outputs.values()):
            return None
        shown = self._shown(rule, name)
        if not partial and (missing := [path for path, sha256 in shown.items() if sha256 is None]):
            return f"{root}{missing[0]} is missing"
        path = outputs["html" if rule == "table" else "png"]
        if (stated := stated_by_exhibit(path)) is None:
            return f"{path} does not state what it shows"
        asked, stated = json.loads(json.dumps(self._identity_of(rule, name, partial, shown))), {**stated}
        for ending, sha256 in stated.pop(FORMS, {}).items():
            file = path.with_name(f"{name}{ending}")
            if not file.is_file() or self._hash(file) != sha256:
                return f"{file} is not the file that was made with it"
        others = stated.pop("files", None) != asked.pop("files")
        return differing_fields(asked, stated) or ("the results that it shows are others now" if others else None)

    def _identity_of(self, rule: str, name: str, partial: bool, shown: Mapping[str, str | None]) -> Identity:
        entry = RULES[rule]
        asked = entry.options(self._resolver, wildcards({rule: name})) if entry.options else {}
        return {"revision": REVISIONS[entry.stage], "partial": partial, "entry": asked, "files": hash_json(shown)}

    def _shown(self, rule: str, name: str) -> dict[str, str | None]:
        """Return the hashes of the files that a table or figure shows, by path below the root; None: it is missing."""
        hashes = {}
        for path in RULES[rule].inputs["measured"](self._resolver, wildcards({rule: name})):
            file = self._resolver.file(path)
            hashes[path.removeprefix(self._resolver.layout.root)] = self._hash(file) if file.is_file() else None
        return hashes

    def changed_files(self, dataset: str) -> str | None:
        """Return how a dataset's files have changed since its stored images were made.

        None: not at all, or the files or the images are not there, or the images are to be made with other options.
        """
        if dataset not in self._changed:
            self._changed[dataset] = self._compare_files(dataset)
        return self._changed[dataset]

    def refused_files(self, dataset: str) -> str | None:
        """Return `changed_files` and how to accept them; None also if the dataset's option `allow` does."""
        if (changed := self.changed_files(dataset)) is None or "changed-files" in self._resolver.dataset(dataset).allow:
            return None
        entry = "`allow: [changed-files]` to the dataset's options"
        if dataset not in self._resolver.campaign.datasets:
            entry = f"`datasets: {{{dataset}: {built_in(dataset)[:-1]}, allow: [changed-files]}}}}` to the campaign"
        return f"{changed}; to keep the images as they are, add {entry}"

    def _compare_files(self, dataset: str) -> str | None:
        options = self._resolver.dataset(dataset)
        images = self._stated(self._resolver.file(self._resolver.layout.images(dataset))) or {}
        then = images.get("source")
        if not isinstance(then, Mapping) or not {"files", "bytes"} <= then.keys():
            return None  # of an earlier version, or of no files that may change
        if differing_options(of_images(self._resolver, wildcards({"dataset": dataset})), images):
            return None
        if (now := source_state(options)) in (None, then):
            return None
        same = all(then[name] == now[name] for name in ("files", "bytes"))
        counts = "as many, but of other names or sizes" if same else f"then {_counted(then)}, now {_counted(now)}"
        return f"the files in {data_path(options)} have changed since the images were made ({counts})"

    def remedy(self, rule: str, **names: object) -> str:
        """Return what to do about results that are missing or differ, for a message: the command that makes them.

        If the job (arguments: `difference`) needs results that are missing or differ as well, the commands that make
        these come before it, in their order.
        """
        jobs = self._behind(rule, names)
        commands = list(dict.fromkeys(self._command(*job) for job in jobs))
        if len(commands) == 1:
            return f"make it with: {commands[0]}"
        reason, told = self.difference(jobs[0][0], **jobs[0][1]), self.difference(rule, **names) or ""
        because = f" ({reason})" if reason and reason not in told else ""
        between = "".join(f"; then: {command}" for command in commands[1:-1])
        return f"begin with: {commands[0]}{because}{between}; then make it with: {commands[-1]}"

    def _command(self, rule: str, names: Mapping[str, object]) -> str:
        root = self._resolver.layout.root
        paths = [pattern.format(**{**names, "root": root}) for pattern in RULES[rule].outputs.values()]
        exists = any(self._resolver.file(path).is_file() for path in paths)
        # Of images whose files have changed, the command itself says whether anything else has to be made again.
        changed = rule == "images" and self.changed_files(str(names["dataset"])) is not None
        return command_of(self._resolver, rule, names, overwrite=exists and not changed)

    def _behind(self, rule: str, names: Mapping[str, object]) -> list[tuple[str, Mapping[str, object]]]:
        """Return the jobs that make a result, in order: those before it whose results are missing or differ, and it."""
        graph, jobs = Graph(Single(self._resolver)), list[tuple[str, Mapping[str, object]]]()
        for files in RULES[rule].inputs.values():
            for path in files(self._resolver, wildcards(names)):
                job = graph.maker(path)
                own = {name: value for name, value in job.names if name != "root"}
                if not self._resolver.file(path).is_file() or self.difference(job.rule, **own):
                    jobs += self._behind(job.rule, own)
        if any(before == "images" and self.refused_files(str(of["dataset"])) for before, of in jobs):
            jobs = jobs[:1]  # whether the others differ depends on what becomes of the images
        together = jobs and (jobs[-1][0], rule) == TOGETHER  # the command for the parts also joins them
        return jobs if together else [*jobs, (rule, names)]

    def distillation(self, cell: Cell) -> dict[str, Any]:
        """Return options and experts of a stored synthetic set, for the identity of results at it."""
        path = self._resolver.file(self._resolver.layout.distilled(cell))
        stated = {**(self._stated(path) or {}), **(self._stated(path.with_name("metrics.parquet")) or {})}
        return {name: stated.get(name) for name in ("options", "experts", "experts_count")}

    def _compare(self, rule: str, names: Mapping[str, object]) -> str | None:
        entry, asked = RULES[rule], None
        for pattern in entry.outputs.values():
            path = self._resolver.file(pattern.format(**{**names, "root": self._resolver.layout.root}))
            if entry.gathers or entry.options is None or not path.is_file():
                continue
            stated = self._stated(path)
            if stated is None or (path.suffix == ".safetensors" and stated.get("kind") != KINDS[rule]):
                return f"{path} is damaged, or a file of another kind"
            for axis in sorted({*Cell._fields} & names.keys() & stated.keys()):
                if str(stated[axis]) != str(names[axis]):
                    return f"{axis}: expected {names[axis]}, found {stated[axis]}"
            asked = entry.options(self._resolver, wildcards(names)) if asked is None else asked
            revision = {"revision": REVISIONS[entry.stage]} if path.suffix != ".safetensors" else {}
            if found := differing_options({**revision, **asked}, {"revision": 1, **stated}):
                return described(found)
            if difference := self._differing_input(rule, stated.get("identity", stated), names):
                return difference
            if path.suffix == ".json" and (difference := self._differing_shards(path, names)):
                return difference
        return None

    def _differing_input(self, rule: str, stated: Identity, names: Mapping[str, object]) -> str | None:
        """Return in what the stated inputs differ from the files of today."""
        layout, dataset = self._resolver.layout, str(names["dataset"])
        whole = self._resolver.whole(dataset)
        path = self._resolver.file(layout.images(whole))
        images = self._stated(path) or {}
        if found := differing_options(of_images(self._resolver, wildcards({"dataset": whole})), images):
            return f"the images {path} were made with other options: {described(found)}"
        if difference := self.refused_files(whole):
            return difference if rule == "images" else f"the images {path} are out of date: {difference}"
        # A step of a dataset has images of its own, in the space of the whole dataset.
        made_with = {stated.get("whole"), stated.get("data") if whole == dataset else None} - {None}
        if "hash" in images and made_with - {images["hash"]}:
            return f"it was made with other images than those in {path} today"
        whitening: Identity = {}  # stays empty for what does not depend on it: images, and the whitening itself
        if self._resolver.dataset(whole).zca and rule not in ("images", "zca"):
            path = self._resolver.file(layout.zca(whole))
            whitening = self._stated(path) or {}
            if found := differing_options(of_whitening(self._resolver, wildcards({"dataset": whole})), whitening):
                return f"the whitening {path} was fitted with other options: {described(found)}"
        space = {name: images[name] for name in ("mean", "std") if name in images}
        space |= {"whitening_hash": whitening["hash"]} if "hash" in whitening else {}
        if found := differing_options({"preprocessing": space}, stated):
            return described(found)
        sets = {dataset: stated["distilled"]} if "distilled" in stated else stated.get("sets", {})
        for source, sha256 in sets.items():
            cell = cell_of(wildcards({**names, "dataset": source}))
            path = self._resolver.file(layout.distilled(cell))
            if path.is_file() and sha256 != self._hash(path):
                return f"it is of another synthetic set than {path}"
            if difference := self.difference("distill", **cell.axes):
                return f"its synthetic set {path} differs: {difference}"
        if difference := self._differing_source(stated):
            return difference
        for own in filter(_is_rated, (stated, stated.get("experts"))):
            if difference := self._differing_difficulty(dataset, own):
                return difference
        if isinstance(experts := stated.get("experts"), Mapping) and "experts" in experts:
            path = self._resolver.file(layout.manifest(dataset, str(experts["experts"])))
            manifest = self._stated(path)
            if manifest and (difference := differing_fields(manifest, experts)):
                return f"it is of other experts than {path}: {difference}"
        return None

    def _differing_shards(self, path: Path, names: Mapping[str, object]) -> str | None:
        """Return in what a manifest, or a part of it, differs from the experts asked for and from their shards."""
        count = self._resolver.experts(str(names["experts"]), str(names["dataset"])).count
        asked = numbers(str(names["part"])) if "part" in names else range(count)
        content = json.loads(path.read_text(encoding="utf-8"))
        try:
            if (listed := [shard["index"] for shard in content["shards"]]) != [*asked]:
                return f"it lists {len(listed)} experts, expected {len(asked)}"
            for shard in content["shards"]:
                file = path.parent / shard["file"]
                if not file.is_file():
                    return f"{file} is missing"
                stated = self._stated(file) or {}
                expected = {"index": shard["index"], "identity": content["identity"]}
                if file.stat().st_size != shard["bytes"] or expected != {name: stated.get(name) for name in expected}:
                    return f"{file} is another one than it lists"
        except (LookupError, TypeError, OSError, ValueError):
            return f"{path} is damaged, or a file of another kind"
        return None

    def _differing_difficulty(self, dataset: str, experts: Identity) -> str | None:
        """Return in what the difficulty by which experts were trained differs from the one of today."""
        rater = self._resolver.experts(str(experts["experts"]), dataset).difficulty
        path = self._resolver.file(self._resolver.layout.difficulty(dataset, rater))
        if (today := self._stated(path) or {}).get("hash", experts["difficulty"]) != experts["difficulty"]:
            return f"its experts were trained by another difficulty than {path}"
        if today and (difference := self.difference("difficulty", dataset=dataset, experts=rater)):
            return f"its experts were trained by the difficulty {path}, which differs: {difference}"
        return None

    def _differing_source(self, stated: Identity) -> str | None:
        """Return whether a file or folder that an imported set was read from is another one today."""
        options = stated.get("options")
        notes = options.get("notes", {}) if isinstance(options, Mapping) else {}
        if not isinstance(options, Mapping) or "images" not in options or "sha256" not in notes:
            return None
        given = [expand(str(options[name])) for name in SOURCES if options.get(name)]
        for noted in str(notes["sha256"]).split(", "):
            name, _, sha256 = noted.rpartition(" ")
            # A file that no option names lay beside the images.
            named = [path for path in given if path.name == name] or [given[0].parent / name]
            paths = [path for path in named if name and path.exists()]
            if paths and sha256 not in map(self._hash, paths):
                return f"it was read from another {'file' if paths[0].is_file() else 'folder'} than {paths[0]} is today"
        return None


def _counted(source: Mapping[str, Any]) -> str:
    size = source["bytes"]
    return f"{source['files']:,} files" + ("" if size is None else f", {size:,} bytes in total")


def _is_rated(identity: object) -> TypeGuard[Identity]:
    """Return whether an identity is that of experts that were trained in an order of difficulty."""
    return (
        isinstance(identity, Mapping) and isinstance(identity.get("experts"), str) and bool(identity.get("difficulty"))
    )


def stated_identity(path: Path) -> Identity | None:
    """Return the identity that a result states, empty if it is of an early version.

    None: the result does not exist, is damaged, or is a file of another kind.
    """
    if not path.is_file():
        return None
    try:
        if path.suffix == ".parquet":
            metadata = parquet.read_schema(path).metadata or {}
            content: Any = json.loads(metadata[METADATA_KEY]).get("options", {})
        elif path.suffix == ".json":
            content = json.loads(path.read_text(encoding="utf-8"))["identity"]
        else:
            with safe_open(path, framework="numpy") as file:
                content = json.loads(file.metadata()["satm"])
    except (
        ArrowException,
        SafetensorError,
        OSError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        RecursionError,
    ):
        return None
    return content if isinstance(content, dict) else None
