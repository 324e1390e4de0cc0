"""YAML loading: 1e-4 is a number, and a duplicate key is an error."""

import re
from contextlib import suppress
from typing import Any

import yaml


class StrictConstructor(yaml.constructor.SafeConstructor):
    """PyYAML's safe constructor that refuses duplicate keys."""

    def construct_document(self, node: yaml.Node) -> Any:
        """Construct the document after `refuse_duplicate_keys`."""
        refuse_duplicate_keys(node)
        return super().construct_document(node)


class StrictLoader(StrictConstructor, yaml.SafeLoader):
    """PyYAML's safe loader that refuses duplicate keys and reads 1e-4 as a float."""


LOADERS: list[Any] = [StrictLoader]

if yaml.__with_libyaml__:

    class LibyamlLoader(StrictConstructor, yaml.CSafeLoader):
        """StrictLoader with the parser of libyaml, which is several times faster."""

    LOADERS.insert(0, LibyamlLoader)

for loader in LOADERS:
    loader.add_implicit_resolver(  # as YAML 1.2; YAML 1.1 wants a dot in the mantissa and a sign in the exponent
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"),
        list("-+0123456789."),
    )


def parse_yaml(text: str) -> Any:
    """Return the content of a YAML text. Raises yaml.YAMLError, with line and column, if it is not valid.

    StrictLoader decides what is valid: libyaml refuses some texts that PyYAML accepts, such as {depth:}.
    """
    for fast_loader in LOADERS[:-1]:
        with suppress(yaml.YAMLError, ValueError):
            return yaml.load(text, Loader=fast_loader)
    try:
        return yaml.load(text, Loader=StrictLoader)
    except ValueError as error:  # a date such as 2001-13-45
        raise yaml.YAMLError(str(error)) from error


def refuse_duplicate_keys(root: yaml.Node) -> None:
    """Raise yaml.constructor.ConstructorError for a key that occurs twice in one map, anywhere below `root`."""
    pending, visited = [root], set()
    while pending:
        node = pending.pop()
        if node in visited:  # an alias
            continue
        visited.add(node)
        if isinstance(node, yaml.MappingNode):
            keys = set()
            for key, value in node.value:
                if isinstance(key, yaml.ScalarNode):
                    if key.value in keys:
                        raise yaml.constructor.ConstructorError(
                            None, None, f"the key {key.value!r} is given twice", key.start_mark
                        )
                    keys.add(key.value)
                pending += [key, value]
        elif isinstance(node, yaml.SequenceNode):
            pending += node.value
