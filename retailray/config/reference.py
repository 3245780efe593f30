"""The reference page of commands and settings: ``python -m retailray.config.reference > docs/reference.md``.

A test fails when the page is not what this module prints.
"""

from typing import Any

from retailray.config import COMMANDS, CommandConfig
from retailray.config.arguments import is_section, known_keys, type_name

HEAD = """\
# Reference

Generated from the settings' own definitions (`python -m retailray.config.reference > docs/reference.md`).

Settings are given as `--section.key VALUE` on the command line or in YAML files (`--config FILE`, several are merged,
the command line takes precedence). One file may serve several commands.

## Commands

| command | does |
|---|---|
"""


def reference() -> str:
    """Return the page as Markdown: one table of commands, then one table of settings per section."""
    page = HEAD
    sections: dict[str, tuple[str, dict[str, Any]]] = {"": ("", {"out": CommandConfig.model_fields["out"]})}
    readers: dict[str, list[str]] = {}
    for command in COMMANDS.values():
        page += f"| `{command.name}` | {command.summary} |\n"
        for key in known_keys(command.config):
            readers.setdefault(key, []).append(command.name)
        for name, field in command.config.model_fields.items():
            kind: Any = field.annotation
            if is_section(kind):
                doc, fields = sections.setdefault(name, (" ".join((kind.__doc__ or "").split()), {}))
                for inner, inner_field in kind.model_fields.items():
                    fields.setdefault(f"{name}.{inner}", inner_field)
            else:
                sections[""][1].setdefault(name, field)
    for name, (doc, fields) in sections.items():
        page += f"\n## {f'`{name}`' if name else 'Without a section'}\n\n{doc}{chr(10) * 2 if doc else ''}"
        page += "| key | type | default | description | read by |\n|---|---|---|---|---|\n"
        for key, field in fields.items():
            if key in readers:
                page += _row(key, field, readers[key])
    return page


def _row(key: str, field: Any, readers: list[str]) -> str:
    default = "required" if field.is_required() else "" if field.default in (None, [], {}) else f"`{field.default}`"
    cells = [f"`{key}`", type_name(field.annotation), default, field.description or "", ", ".join(readers)]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


if __name__ == "__main__":
    print(reference(), end="")
