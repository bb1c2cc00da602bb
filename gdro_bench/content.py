"""Finds `tasks/` and `baselines/`, and reads their TOML strictly into frozen dataclasses.

The reader is our own. pydantic was weighed: each of its kinds of error would have to be turned into the sentences
below, which takes as many lines as the reader, and it knows no "did you mean".
"""

from __future__ import annotations

import dataclasses
import filecmp
import hashlib
import json
import math
import re
import tomllib
import types
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

from gdro_bench.errors import BenchError, unknown

T = TypeVar("T")
UNIONS = (types.UnionType, typing.Union)  # `int | None`, and `Literal[...] | None`
FOLDERS = {"task": "tasks", "profile": "baselines"}
NAME = re.compile(r"[a-z_]+(\.[a-z_0-9]+)+")  # of a setting, with its group
SPACE_SUFFIX = ".search.toml"  # of the files that say where a method's settings are searched


@dataclasses.dataclass(frozen=True, slots=True)
class Range:
    """What a number may be, its ends included (`above`: the low end is not); never NaN, never infinite."""

    low: float
    high: float = math.inf
    above: bool = False

    def __contains__(self, value: float) -> bool:
        return math.isfinite(value) and self.low <= value <= self.high and not (self.above and value == self.low)

    def __str__(self) -> str:
        low = f"above {self.low:g}" if self.above else f"at least {self.low:g}"
        return f"{low} and finite" if math.isinf(self.high) else f"{low} and at most {self.high:g}"


NUMBERS_SEEN = 64  # of each weight, in a fingerprint
LARGEST_SEED = 2**63 - 1  # that a generator takes
Count = Annotated[int, Range(1)]
Natural = Annotated[int, Range(0)]
Positive = Annotated[float, Range(0, above=True)]
NonNegative = Annotated[float, Range(0)]
Share = Annotated[float, Range(0, 1)]


def root() -> Path:
    """The checkout, when the package lies in one; else the copy inside the wheel."""
    package = Path(__file__).resolve().parent
    checkout = package.parent
    return checkout if (checkout / "pyproject.toml").exists() and (checkout / "tasks").exists() else package / "content"


def roots() -> tuple[Path, Path]:
    """Where `tasks/` and `baselines/` may lie: the package's place, then the current folder, for what it lacks."""
    return root(), Path.cwd()


def names(kind: str) -> list[str]:
    """The tasks or profiles that exist: folders with a `task.toml` or `profile.toml`."""
    return sorted({path.parent.name for place in roots() for path in (place / FOLDERS[kind]).glob(f"*/{kind}.toml")})


def find(kind: str, name: str) -> Path:
    """The folder of a task or profile; a name with anything but letters, digits, `.`, `_`, `-` is never a path.

    Raises:
        BenchError: there is none, or the current folder has another one of a name of the package's.
    """
    if name not in names(kind):
        error = unknown(kind, name, names(kind))
        raise BenchError(error.problem, f"{error.remedy} Your own: {FOLDERS[kind]}/{name}/{kind}.toml here.", 2)
    folders = [place / FOLDERS[kind] / name for place in roots()]
    found = next(folder for folder in folders if (folder / f"{kind}.toml").exists())
    for own in _hidden(kind, Path.cwd() / FOLDERS[kind] / name):
        if _differs(own, found / own.name):
            raise BenchError(
                f"{own} is not read: the package has a {kind} {name!r}, and yours is another.",
                "Give your folder, and the name in its file if it has one, another name.",
                2,
            )
    return found


def _differs(own: Path, packaged: Path) -> bool:
    """Whether a file of one's own is not the package's; in the package's own folder it is, and nothing is read."""
    if not packaged.exists():
        return True
    return not own.samefile(packaged) and not filecmp.cmp(own, packaged, shallow=False)


def _hidden(kind: str, own: Path) -> list[Path]:
    """The files of a folder of one's own that do not count where the package has it: of a profile not the methods'."""
    file = own / f"{kind}.toml"
    if not file.exists():
        return []
    return sorted(path for path in own.iterdir() if path.is_file()) if kind == "task" else [file]


def method_files(profile: str) -> dict[str, Path]:
    """The TOML files of a profile by their names: the package's, then those of the current folder for methods that it
    lacks.

    Raises:
        BenchError: there is no such profile.
    """
    folders = (_own_folder(profile), find("profile", profile))
    paths = [path for folder in folders for path in sorted(folder.glob("*.toml"))]
    return {path.stem: path for path in paths if not path.name.endswith(SPACE_SUFFIX)}


def method_file(profile: str, method: str) -> Path | None:
    """The file of a method's settings; None if the profile has none.

    Raises:
        BenchError: there is no such profile, or the current folder has another file in its place, which would not
            count: everybody's GDRO is the package's.
    """
    path, own = method_files(profile).get(method), _own_folder(profile) / f"{method}.toml"
    if path is not None and own.exists() and _differs(own, path):
        raise BenchError(
            f"{own} is not read: the package has settings for {method}, and yours are others.",
            "Give those that differ with --set, which the record tells, or move the file away.",
            2,
        )
    return path


def _own_folder(profile: str) -> Path:
    return Path.cwd() / FOLDERS["profile"] / profile


def space_files(profile: str) -> dict[str, Path]:
    """The search spaces of a profile by their methods' names: the package's, then one's own of the current folder in
    their place, because a search is its user's affair.

    Raises:
        BenchError: there is no such profile.
    """
    folders = (find("profile", profile), _own_folder(profile))
    paths = [path for folder in folders for path in sorted(folder.glob(f"*{SPACE_SUFFIX}"))]
    return {path.name.removesuffix(SPACE_SUFFIX): path for path in paths}


def read(path: Path) -> dict[str, Any]:
    """A TOML file.

    Raises:
        BenchError: it cannot be read.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # of TOML, or of UTF-8
        raise BenchError(f"{path} cannot be read: {error}.", "Mend the file or restore it from the package.") from error


def tables_in(value: Any, where: str) -> dict[str, dict[str, Any]]:
    """A table of tables, as TOML gave it.

    Raises:
        BenchError: it is something else.
    """
    if not isinstance(value, dict) or not all(isinstance(table, dict) for table in value.values()):
        raise BenchError(f"{where} is {value!r}.", "It must hold a table of settings for each name.", 2)
    return value


def load(path: Path, cls: type[T]) -> T:
    return build(cls, read(path), path.name)


def build(cls: type[T], table: Mapping[str, Any], where: str) -> T:
    """A dataclass from a table: every field given, save those that may be None, none unknown, every value of its type.

    Raises:
        BenchError: naming the key, what was found and what is expected.
    """
    hints = typing.get_type_hints(cls, include_extras=True)
    fields = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
    for key in table:
        if key not in fields:
            raise unknown(f"setting in {where} called", key, fields)
    for key in fields:
        if key not in table and not _may_be_none(hints[key]):
            raise BenchError(f"{where} lacks the setting {key!r}.", f"Add it: {_type_name(hints[key])}.", 2)
    return cls(**{key: _convert(hints[key], table.get(key), f"{where}: {key}") for key in fields})


def _may_be_none(hint: Any) -> bool:
    return typing.get_origin(hint) in UNIONS and types.NoneType in typing.get_args(hint)


def _type_name(hint: Any) -> str:
    """For people."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated or origin in UNIONS:
        return _type_name(arguments[0])
    if origin is typing.Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if origin is tuple:
        return f"a list, each {_type_name(arguments[0])}"
    if origin is dict or dataclasses.is_dataclass(hint):
        return "a table of settings"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a text in quotes"}
    return names.get(hint, str(getattr(hint, "__name__", hint)))


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        converted = _convert(arguments[0], value, where)
        for allowed in arguments[1:]:
            if isinstance(allowed, Range) and converted not in allowed:
                raise BenchError(f"{where} is {value!r}.", f"It must be {allowed}.", 2)
        return converted
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if isinstance(value, dict):
            return build(hint, value, where)
        names = ", ".join(field.name for field in dataclasses.fields(hint))
        raise BenchError(f"{where} is {value!r}.", f"It must be a table of settings; give one of them: {names}.", 2)
    if origin is dict and isinstance(value, dict):
        return {key: _convert(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(_convert(arguments[0], item, where) for item in value)
    if origin is typing.Literal:
        if value in arguments:
            return value
        raise unknown(f"choice for {where} called", str(value), [str(a) for a in arguments])
    if origin in UNIONS:
        return None if value is None else _convert(arguments[0], value, where)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    raise BenchError(f"{where} is {value!r}.", f"It must be {_type_name(hint)}.", 2)


def digest(*parts: Any) -> str:
    """A short name for values (dataclasses, tables, numbers, strings) by their content."""
    plain = [dataclasses.asdict(p) if dataclasses.is_dataclass(p) and not isinstance(p, type) else p for p in parts]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]


def safe_name(text: str) -> str:
    """A part of a path from anybody's text: letters, digits and `._=-`, no dot first."""
    plain = "".join(c if c.isalnum() or c in "._=-" else "_" for c in text)
    return f"_{plain}" if plain.startswith(".") else plain


def fingerprint(model: Any) -> str:
    """What tells a model's weights from another's, which a folder's name does not: a digest of the first numbers of
    each, in bfloat16, so that it is the same whether they were loaded in that or in float32."""
    found = hashlib.sha256()
    for name, weight in model.named_parameters():
        first = weight.detach().flatten()[:NUMBERS_SEEN].bfloat16().float().cpu().numpy()
        found.update(f"{name} {tuple(weight.shape)}".encode() + first.tobytes())
    return found.hexdigest()[:8]


def seed(*key: str | int) -> int:
    """A 63-bit seed that is a function of the key alone, on any machine and in any process."""
    return int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:8], "big") >> 1


Kinds = Mapping[str, Callable[[], type]]  # what each group of settings is read into, looked up when it matters


def apply_settings(
    tables: Mapping[str, dict[str, Any]], settings: Sequence[str], kinds: Kinds | None = None
) -> tuple[str, ...]:
    """Applies `--set group.key=value` to the tables in place; values are TOML, or plain text. With `kinds`, settings
    that a file may leave out can be given, too, whole tables of them one by one.

    Returns what really changed, as settings in one spelling: `method.tau=5e-2` is `method.tau=0.05`, or nothing if
    that is what the file says.

    Raises:
        BenchError: a setting is not of that form, or names nothing that exists.
    """
    before = flatten(tables)
    for setting in settings:
        name, value = parsed(setting)
        set_value(tables, name, value, kinds)
    return tuple(f"{name}={_said(value)}" for name, value in flatten(tables).items() if before.get(name) != value)


def varied(over: Sequence[str]) -> list[list[str]]:
    """The settings `group.key=a` and `group.key=b` of each `--over group.key=a,b`.

    Raises:
        BenchError: one is not of that form, or two are of one setting.
    """
    found: dict[str, list[str]] = {}
    for one in over:
        key, _, values = one.partition("=")
        if not NAME.fullmatch(key) or not values:
            raise BenchError(f"--over {one!r} is not of the form group.key=a,b.", "Try method.tau=0.5,0.05.", 2)
        if key in found:
            raise BenchError(f"--over is given twice for {key}.", f"Write all values together: {key}=A,B,C.", 2)
        found[key] = [f"{key}={value.strip()}" for value in values.split(",")]
    return list(found.values())


def parsed(setting: str) -> tuple[str, Any]:
    """Name and value of a setting `group.key=value`.

    Raises:
        BenchError: it is not of that form.
    """
    name, _, value = setting.partition("=")
    if not NAME.fullmatch(name) or not value:
        small = f"Names are of small letters: {name.lower()}." if NAME.fullmatch(name.lower()) and value else ""
        remedy = small or "Try method.tau=0.025."
        raise BenchError(f"--set {setting!r} is not of the form group.key=value.", remedy, 2)
    return name, _toml_value(value)


def set_value(tables: Mapping[str, dict[str, Any]], dotted: str, value: Any, kinds: Kinds | None = None) -> None:
    """Gives a value that is there or, with `kinds`, could be, `group.key`, another.

    Raises:
        BenchError: it is not there.
    """
    *path, key = dotted.split(".")
    _make_room(tables, path, key, kinds or {})
    table: Any = tables
    for i, name in enumerate(path):
        if name in table and not isinstance(table[name], dict):
            whole = ".".join(path[: i + 1])
            raise BenchError(f"{whole} is a single value.", f"Set it itself: --set {whole}=VALUE.", 2)
        if name not in table:
            groups = [key for key, value in table.items() if isinstance(value, dict)]
            raise unknown("group of settings called", name, groups)
        table = table[name]
    if key not in table:
        raise _unknown(dotted, table, tables)
    table[key] = _like(table[key], value)


def _unknown(dotted: str, table: Mapping[str, Any], tables: Mapping[str, Any]) -> BenchError:
    """Of a setting that its table does not have: one of that very name in another table is what is meant."""
    path, key = dotted.rsplit(".", 1)
    group = path.split(".")[0]
    elsewhere = [there for there in flatten(tables) if there.startswith(f"{group}.") and there.endswith(f".{key}")]
    if not elsewhere:
        return unknown(f"setting in {path} called", key, table)
    return BenchError(f"There is no setting in {path} called {key!r}.", f"Did you mean {' or '.join(elsewhere)}?", 2)


def _make_room(tables: Mapping[str, dict[str, Any]], path: Sequence[str], key: str, kinds: Kinds) -> None:
    """Adds the optional tables on the way to a setting, and the setting if it is optional or new with its table."""
    group, *rest = path
    table: Any = tables.get(group)
    known = table is not None and _there(table, [*rest, key])
    if table is None or known or group not in kinds:
        return
    hint: Any = kinds[group]()
    for name in [*rest, key]:
        hints = typing.get_type_hints(hint, include_extras=True) if dataclasses.is_dataclass(hint) else {}
        if not isinstance(table, dict) or name not in hints:
            return
        hint = _unwrapped(hints[name])
        table = table.setdefault(name, _room(hint))


def _room(hint: Any) -> Any:
    """What stands for a value of this type until it is given."""
    plain = typing.get_args(hint)[0] if typing.get_origin(hint) is Annotated else hint
    return {} if dataclasses.is_dataclass(plain) else 0.0 if plain is float else None


def _there(table: Any, path: Sequence[str]) -> bool:
    for name in path:
        if not isinstance(table, dict) or name not in table:
            return False
        table = table[name]
    return True


def _unwrapped(hint: Any) -> Any:
    """What a hint such as `Config | None` says, if something is given."""
    return typing.get_args(hint)[0] if _may_be_none(hint) else hint


def flatten(table: Mapping[str, Any], group: str = "") -> dict[str, Any]:
    """Every value of nested tables by its dotted name."""
    values: dict[str, Any] = {}
    for key, value in table.items():
        values |= flatten(value, f"{group}{key}.") if isinstance(value, dict) else {f"{group}{key}": value}
    return values


def without(table: Mapping[str, Any], names: Collection[str], group: str = "") -> dict[str, Any]:
    """Nested tables less the values of these dotted names."""
    kept = {key: value for key, value in table.items() if f"{group}{key}" not in names}
    return {k: without(v, names, f"{group}{k}.") if isinstance(v, dict) else v for k, v in kept.items()}


def _like(old: Any, new: Any) -> Any:
    """The new value spelled as the old one: 1 is 1.0 where a number was, in lists, too; 1.0 is 1 where 1 was."""
    if type(old) in (int, float) and type(new) in (int, float) and old == new:
        return old
    if isinstance(old, list) and isinstance(new, list) and old:
        return [_like(old[0], item) for item in new]
    return float(new) if isinstance(old, float) and isinstance(new, int) and not isinstance(new, bool) else new


def _said(value: Any) -> str:
    """As `_toml_value` reads it back: words as they are, unless they would be something else then."""
    plain = isinstance(value, str) and value != "" and _toml_value(value) == value
    return value if plain else json.dumps(value, ensure_ascii=False)


def _toml_value(written: str) -> Any:
    plain = written.lower() if written in ("True", "False") else written  # as Python spells them
    try:
        value = tomllib.loads(f"value = {plain}")["value"]
    except tomllib.TOMLDecodeError:
        return written
    return value if isinstance(value, bool | int | float | str | list | dict) else written  # no dates
