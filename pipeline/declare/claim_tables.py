"""Compact forms of claims: tables, chains of orderings and default kinds, expanded to one map of keys per claim.

An item of `claims` is one claim, or a table. A table has exactly one of these blocks; its other keys are the same
for all its claims, and a row, a column or a cell may give its own:

    variants: {resnet-20: 8.75, ...}       the rows of a result table: variants or derived runs
    layers: {conv1: [64x112x112, 7x7], ...}  the rows of an architecture table: layers of the network `of`
    model: {depth: 56, count/Linear: 1}    measures of the network `of`
    settings: {train.batch_size: 128, ...}   settings of the recipe of `of`
    orderings: {id: a < b < c, ...}        comparisons; a chain is one claim per pair of neighbours
    claims: {id: {metric: ..., ...}, ...}  single claims that share some keys

`columns` names the columns of `variants` and `layers`. A cell is the printed value, or a map of keys with the
value as `claimed`; an empty cell is ~. `64x112x112` is a list of sizes. `unit` multiplies printed values and
margins: with `unit: 1e6`, 0.27 is 270,000. Texts may contain <row>, <column>, <value>, and <name>, the short
name of a setting. In ids and sentences, a row PAPER/FILE/VARIANT is VARIANT. The column `top1` or `top5` is a test
error, by the protocol `test` if the row or the table has one.
"""

import re
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any

from lightning_modules.names import nearest
from pipeline.declare.references import short_name
from pipeline.declare.sentences import sentence

Raw = dict[str, Any]

BLOCKS = ("variants", "layers", "model", "settings", "orderings", "claims")

LAYER_COLUMNS = {"kernel": "kernel_size", "filters": "out_channels", "inputs": "in_channels", "dropout": "p"}
SQUARE_SIZES = ("kernel_size", "stride", "padding")  # two numbers; one number stands for both

SETTING_IDS = {  # setting -> the end of the claim's id; the last words of the setting if it is not here
    "train.batch_size": "batch",
    "train.lr": "rate",
    "train.lr_drops.at": "drops",
    "drop_epochs": "drops",
    "train.lr_drops.factor": "factor",
    "train.plateau.factor": "factor",
    "data.augment": "augmentation",
    "data.normalise": "normalise",
}

UNITS = {1e3: "thousand", 1e6: "million", 1e9: "billion", 1024: "x 1024"}  # factor -> word
SIGNS = ("<", ">", "<=", "~")
PLACEHOLDER = re.compile(r"<(\w+)>")
SHAPE = re.compile(r"\d+(x\d+)+")
TEXTS = ("id", "says", "of", "metric", "over", "over_metric", "rhs_metric", "source", "rule", "protocol")


def expand_claims(items: Any) -> list[Raw]:
    """Return one map of keys per claim, each with its kind and its sentence.

    Raises ValueError, "claims.place: reason", for a table that is not as described above. Keys of claims are not
    checked.
    """
    if not isinstance(items, list):
        raise ValueError("claims: should be a list of claims and tables")
    found: list[Raw] = []
    for number, item in enumerate(items):
        if not isinstance(item, dict):
            raise ValueError(f"claims.{number}: should be a map of keys, not {item!r}")
        blocks = [key for key in BLOCKS if key in item]
        place = f"claims.{item.get('id', item.get('source', number))}"
        if len(blocks) > 1:
            raise ValueError(f"{place}: a table has one block of rows, not {' and '.join(blocks)}")
        if blocks:
            found += expand_table(item, blocks[0], f"{place}.{blocks[0]}")
        else:
            found += finish(item, place)
    return found


def expand_table(table: Raw, block: str, place: str) -> Iterator[Raw]:
    """Yield the claims of a table at this place in the file."""
    rows, shared = table[block], {key: value for key, value in table.items() if key not in (block, "columns")}
    if not isinstance(rows, dict) or not rows:
        raise ValueError(f"{place}: should be a map of rows, not {rows!r}")
    columns = table_columns(table.get("columns"), block, place)
    for name, cells in rows.items():
        row, at = str(name), f"{place}.{name}"
        own, by_column = split_row(at, cells, columns)
        for column, cell in by_column.items():
            if cell is None:
                continue
            fields = shared | columns[column] | own | (cell if isinstance(cell, dict) else {"claimed": cell})
            words = {"row": row, "column": str(column), "name": setting_name(row)}
            words |= {"short": short_name(row)} if block == "variants" else {}
            yield from finish(fill(preset(table, block, row, column, fields) | fields, words, at), at)


def table_columns(columns: Any, block: str, place: str) -> dict[str, Raw]:
    """Return the columns with their keys; one without a name if the table declares none."""
    if columns is None:
        return {"": {}}
    if block not in ("variants", "layers"):
        raise ValueError(f"{place}: only 'variants' and 'layers' have columns, not {block!r}")
    if isinstance(columns, list) and columns and all(isinstance(name, str | int) for name in columns):
        return {str(name): {} for name in columns}
    if isinstance(columns, dict) and columns and all(isinstance(value, dict) for value in columns.values()):
        return {str(name): keys for name, keys in columns.items()}
    raise ValueError(f"{place}: 'columns' should be a list of names, or a map of names to keys, not {columns!r}")


def split_row(place: str, cells: Any, columns: Mapping[str, Raw]) -> tuple[Raw, Raw]:
    """Return the keys of a whole row, and its cells by column."""
    if "" in columns:
        cell = {"ordering": cells} if isinstance(cells, str) and is_chain(cells) else cells
        return {}, {"": cell}
    if isinstance(cells, dict):
        own = {key: value for key, value in cells.items() if key not in columns}
        if len(own) == len(cells):
            raise ValueError(f"{place}: a map of keys should have a cell for one of: {', '.join(columns)}")
        return own, {key: value for key, value in cells.items() if key in columns}
    listed = cells if isinstance(cells, list) and len(columns) > 1 else [cells]
    if len(listed) != len(columns):
        raise ValueError(
            f"{place}: {len(listed)} cells for {len(columns)} columns ({', '.join(columns)}); an empty cell is ~"
        )
    return {}, dict(zip(columns, listed, strict=True))


def preset(table: Raw, block: str, row: str, column: str, fields: Raw) -> Raw:
    """Return the keys that a block gives its claims unless they give their own."""
    lecture = "lecture-" if fields.get("by") == "lecture" else ""
    if block == "layers":
        what = LAYER_COLUMNS.get(column, column or "output")
        own_id = "<row>" if what == "output" else "<row>-<column>"
        return {"id": lecture + own_id, "metric": f"model/layer/<row>/{what}"}
    if block == "model":
        return {"id": lecture + row.replace("/", "-"), "metric": "model/<row>"}
    if block == "settings":
        return {"id": f"{lecture or 'recipe-'}<name>", "metric": "recipe/<row>"}
    if block == "variants":
        shared_of = table.get("of", "")
        variant = short_name(shared_of) if "<row>" in str(shared_of) else "<row>"
        if column in ("top1", "top5"):
            protocol = f"{fields['test']}/" if "test" in fields else ""
            metric = f"test/{protocol}<column>_error_pct"
            return {"of": "<row>", "id": f"{lecture}{variant}-<column>", "metric": metric}
        return {"of": "<row>", "id": f"{lecture}{'<column>-' if column else ''}<row>", "metric": "model/<column>"}
    return {"id": "<row>"}


def setting_name(setting: str) -> str:
    """Return the short name of a setting, for ids: "batch" of train.batch_size."""
    return SETTING_IDS.get(setting, setting.rpartition(".")[2].replace("_", "-").replace("/", "-"))


def fill(claim: Raw, words: dict[str, str], place: str) -> Raw:
    """Return a claim of a table with the words in angle brackets replaced, and without the key `test`.

    <row> is a variant's short name in ids and sentences. <value> is replaced later.
    """
    known = [name for name in words if name != "short"]
    short = words | {"row": words.get("short", words["row"])}

    def filled(key: str, text: str) -> str:
        def word(found: re.Match[str]) -> str:
            if found[1] not in known and found[1] != "value":
                raise ValueError(f"{place}: unknown placeholder {found[0]}{nearest(found[1], [*known, 'value'])}")
            return (short if key in ("id", "says") else words).get(found[1], found[0])

        return PLACEHOLDER.sub(word, text)

    return {
        key: filled(key, value) if key in TEXTS and isinstance(value, str) else value
        for key, value in claim.items()
        if key != "test"
    }


def finish(claim: Raw, place: str) -> Iterator[Raw]:
    """Yield the claims that one item gives, with sizes, units, kind and sentence worked out."""
    for part in split_ordering(claim, place):
        part = with_values(part)
        unit, printed = part.pop("unit", None), part.get("claimed")
        if unit is not None:
            if not is_number(unit) or unit <= 0:
                raise ValueError(f"{place}: 'unit' should be a number above 0, not {unit!r}")
            part |= {key: scale(part[key], unit) for key in ("claimed", "margin") if is_number(part.get(key))}
        part.setdefault("kind", default_kind(part))
        says = part.get("says") or sentence(part, show_printed(printed, unit))
        if says:
            part["says"] = says.replace("<value>", show_printed(printed)) if isinstance(says, str) else says
        yield part


def split_ordering(claim: Raw, place: str) -> Iterator[Raw]:
    """Yield a claim, or one claim per pair of a chain such as `ordering: a < b < c`; `gain: a < b` is one pair."""
    kind = next((key for key in ("ordering", "gain") if key in claim), None)
    if kind is None:
        yield dict(claim)
        return
    others = {name: value for name, value in claim.items() if name != kind}
    pairs = parse_chain(claim[kind])
    if not pairs:
        wanted = "should compare names with <, >, <= or ~, as in: a < b < c"
        raise ValueError(f"{place}: {wanted}; not {claim[kind]!r}")
    if kind == "gain" and (len(pairs) > 1 or pairs[0][1] != "<"):
        raise ValueError(f"{place}: 'gain' should be one comparison, a < b, not {claim[kind]!r}")
    for lhs, sign, rhs in pairs:
        own = {"id": f"{others['id']}-{short_name(lhs)}"} if len(pairs) > 1 and "id" in others else {}
        yield {"kind": kind, "lhs": lhs, "rhs": rhs} | ({"op": sign} if kind == "ordering" else {}) | others | own


def is_chain(text: str) -> bool:
    """Return whether a text is a comparison of names, such as a < b < c."""
    return any(word in SIGNS for word in text.split()[1::2])


def parse_chain(text: Any) -> list[tuple[str, str, str]]:
    """Return the neighbours of a chain such as "a < b < c", (left, sign, right); empty for any other text."""
    words = text.split() if isinstance(text, str) else []
    names, signs = words[::2], words[1::2]
    if len(names) != len(signs) + 1 or any(sign not in SIGNS for sign in signs):
        return []
    return list(zip(names, signs, names[1:], strict=False))


def with_values(claim: Raw) -> Raw:
    """Return a claim with sizes such as 64x112x112 as lists; one number is both sizes of a kernel or stride."""
    what = str(claim.get("metric", "")).rpartition("/")
    for key in ("claimed", "corrected"):
        value = claim.get(key)
        if isinstance(value, str) and SHAPE.fullmatch(value):
            claim[key] = [int(size) for size in value.split("x")]
        elif is_number(value) and what[0].startswith("model/layer/") and not claim.get("over_metric"):
            if what[2] == "output":
                claim[key] = [value]
            elif what[2] in SQUARE_SIZES:
                claim[key] = [value, value]
    return claim


def scale(value: float, unit: float) -> float:
    """Return value times unit as decimal numbers: 0.27 million is 270000, not 270000.00000000006."""
    product = Decimal(str(value)) * Decimal(str(unit))
    return int(product) if product == product.to_integral_value() else float(product)


def default_kind(claim: Raw) -> str:
    """Return the kind of a claim that does not name one."""
    metric = str(claim.get("metric", ""))
    if "reason" in claim:
        return "open"
    if metric.partition("/")[0] in ("model", "recipe", "printed"):
        return "exact"
    if "lhs" in claim:
        return "ratio" if "claimed" in claim else "ordering"
    return "bound" if claim.get("op", "=") != "=" else "metric"


def is_number(value: Any) -> bool:
    """Return whether a value is a number; True and False are not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def show_printed(value: Any, unit: float | None = None) -> str:
    """Return a printed value for a sentence: 1,202; 0.27 million; 3 x 3."""
    if unit:
        return f"{show_printed(value)} {UNITS.get(unit, f'x {unit:,}')}"
    if isinstance(value, list):
        return " x ".join(map(str, value)) if all(map(is_number, value)) else ", ".join(map(str, value))
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return re.sub(r"e-0(\d)", r"e-\1", str(value))


def expand_printed(groups: Any) -> Any:
    """Return `printed` as name -> {value, where, confidence}.

    It is written by source: {Table 2: {alexnet_mb: 240, ...}}, with `confidence` for all values of the source.
    Raises ValueError for a group that is not a map, and for a name that two sources use.
    """
    if not isinstance(groups, dict):
        return groups  # an error, which the type names
    found: Raw = {}
    for where, values in groups.items():
        if not isinstance(values, dict):
            raise ValueError(f"printed.{where}: should be a map of names to values, not {values!r}")
        if {"value", "where"} & values.keys():
            raise ValueError(
                f"printed.{where}: printed values are given by source, as in Table 2: {{{where}: 1.5}}"
            )
        shared = {"where": where} | {key: values[key] for key in ("confidence",) if key in values}
        for name, value in values.items():
            if name == "confidence":
                continue
            if name in found:
                raise ValueError(f"printed.{where}.{name}: the name is used twice")
            found[name] = shared | (value if isinstance(value, dict) else {"value": value})
    return found
