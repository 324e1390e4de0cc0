"""MkDocs hook and Griffe extension: API pages generated from the source tree.

The hook adds one page per module of PACKAGES, an index of them, and CHANGELOG.md, so that no page lists modules by
hand. The extension renders docstrings, which are plain text, as Markdown: indented tables keep their columns.
Griffe reads the source without importing it.
"""

import ast
import re
import textwrap
from itertools import groupby
from pathlib import Path

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("pipeline", "lightning_modules")
SECTION = "API reference"  # the navigation entry that is filled here
BULLET = re.compile(r" *[*-] ")
CODE_SPAN = re.compile(r"(`[^`]*`)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages to `files` and to the navigation."""
    files.append(File.generated(config, "changelog.md", abs_src_path=str(ROOT / "CHANGELOG.md")))
    index = "# API reference\n\nGenerated from the docstrings of the source tree.\n"
    navigation: list = ["reference/index.md"]
    for package in PACKAGES:
        modules = modules_of(package)
        index += f"\n## `{package}`\n\n| module | content |\n|---|---|\n"
        for name, summary in modules.items():
            index += f"| [`{name}`]({name}.md) | {as_markdown(summary).replace('|', '&#124;')} |\n"
            page = f"---\ntitle: {name}\n---\n# `{name}`\n\n::: {name}\n"
            files.append(File.generated(config, f"reference/{name}.md", content=page))
        navigation.append({package: tree(package, modules)})
    files.append(File.generated(config, "reference/index.md", content=index))
    config.nav = [{SECTION: navigation} if entry == SECTION else entry for entry in config.nav or []]
    return files


def modules_of(package: str) -> dict[str, str]:
    """Dotted name -> first line of the docstring, for all modules that have one, without `__main__`."""
    found = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
        if docstring and path.name != "__main__.py":
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            found[name] = " ".join(docstring.partition("\n\n")[0].split()).partition(". ")[0].rstrip(".:")
    return found


def tree(package: str, modules: dict[str, str]) -> list:
    """Navigation entries of a package: its modules, then its subpackages, nested."""
    own: list = []
    below: dict[str, dict[str, str]] = {}
    for name, summary in modules.items():
        rest = name.removeprefix(package).removeprefix(".")
        head, _, tail = rest.partition(".")
        if tail or (head and (ROOT / package.replace(".", "/") / head).is_dir()):
            below.setdefault(head, {})[name] = summary
        else:
            own.append({head or "overview": f"reference/{name}.md"})
    return own + [{head: tree(f"{package}.{head}", inner)} for head, inner in below.items()]


def as_markdown(text: str) -> str:
    """Convert a plain-text docstring to Markdown.

    Indented lines that begin with a bullet become a list, other indented lines (tables, diagrams) a code block.
    HTML and emphasis marks are escaped in the rest.
    """
    blocks = []
    for paragraph in re.split(r"\n\s*\n", text):
        for indented, lines in groupby(paragraph.splitlines(), key=lambda line: line.startswith(" ")):
            block = textwrap.dedent("\n".join(lines))
            if not indented:
                blocks.append(escaped(block))
            elif BULLET.match(block):
                blocks.append(escaped(re.sub(r"^ +(?![*-] | )", "    ", block, flags=re.MULTILINE)))
            else:
                blocks.append(f"```text\n{block}\n```")
    return "\n\n".join(blocks)


def escaped(text: str) -> str:
    """Escape HTML, links and emphasis outside code spans; a bullet, which a space follows, stays."""
    parts = CODE_SPAN.split(text)
    for index in range(0, len(parts), 2):
        plain = parts[index].replace("<", "&lt;").replace("[", r"\[")
        parts[index] = re.sub(r"\*(?=\S)|(?<=\S)\*|(?<!\w)_|_(?!\w)", r"\\\g<0>", plain)
    return "".join(parts)


def comment_of(attribute: griffe.Attribute) -> str:
    """Return the comment at the end of an attribute's first line, or ""."""
    first = attribute.lines[0] if attribute.lines else ""
    return first.rpartition("  # ")[2] if "  # " in first else ""


class PlainTextDocstrings(griffe.Extension):
    """Convert docstrings before mkdocstrings renders them, and document attributes by their comments."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: object) -> None:
        """Convert the docstring of one module, class, function or attribute."""
        if obj.docstring:
            obj.docstring.value = as_markdown(obj.docstring.value)

    def on_attribute_instance(self, *, attr: griffe.Attribute, **kwargs: object) -> None:
        """Use the comment of an attribute as its docstring; hide instance attributes that have neither."""
        if comment := comment_of(attr):
            attr.docstring = griffe.Docstring(as_markdown(comment), parent=attr)
        elif not attr.docstring and "instance-attribute" in attr.labels and "class-attribute" not in attr.labels:
            attr.public = isinstance(attr.annotation, griffe.Expr) and attr.value is None
