"""YAML loading: 1e-4 is a number, and a duplicate key is an error."""

import re
from typing import Any

import yaml


def parse_yaml(text: str) -> Any:
    """What a YAML text holds: by libyaml, in a sixth of the time, where PyYAML was built with it."""
    if Fast is Loader:
        return yaml.load(text, Loader=Loader)
    try:
        return yaml.load(text, Loader=Fast)
    except yaml.YAMLError:
        return yaml.load(text, Loader=Loader)  # says it with the line itself


def unlike_twice(self: Any, anchor: dict[Any, yaml.Node]) -> yaml.MappingNode:
    """A loader's `compose_mapping_node`, refusing duplicate keys."""
    node = yaml.composer.Composer.compose_mapping_node(self, anchor)
    seen = set()
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode):
            if key.value in seen:
                raise yaml.composer.ComposerError(
                    None, None, f"the key {key.value!r} is given twice", key.start_mark
                )
            seen.add(key.value)
    return node


class Loader(yaml.SafeLoader):
    """YAML with 1e-4 read as the number it is, and a key given twice refused."""

    compose_mapping_node = unlike_twice


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)

Fast: Any = Loader

if yaml.__with_libyaml__:
    from yaml.cyaml import CParser  # type: ignore[attr-defined]
    from yaml.resolver import Resolver

    class Fast(yaml.composer.Composer, CParser, yaml.constructor.SafeConstructor, Resolver):  # type: ignore[no-redef]
        """The same, from libyaml's events."""

        def __init__(self, stream: str) -> None:
            CParser.__init__(self, stream)
            yaml.composer.Composer.__init__(self)
            yaml.constructor.SafeConstructor.__init__(self)
            Resolver.__init__(self)

        compose_mapping_node = unlike_twice
        yaml_implicit_resolvers = Loader.yaml_implicit_resolvers
