"""The reference page of commands and settings: ``python -m retailray.config.reference > docs/reference.md``.

A test fails when the page is not what this module prints.
"""

from typing import Any

from pydantic.fields import FieldInfo

from retailray.config import COMMANDS
from retailray.config.keys import description_of, is_section, known_keys, type_name

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
    sections: dict[str, str] = {}
    # (section, key, type, default, description) → the commands that read it: commands may differ in the latter three
    rows: dict[tuple[str, ...], list[str]] = {}
    for command in COMMANDS.values():
        page += f"| `{command.name}` | {command.summary} |\n"
        read = set(known_keys(command.config))
        for name, field in command.config.model_fields.items():
            kind: Any = field.annotation
            section = name if is_section(kind) else ""
            sections.setdefault(section, " ".join((kind.__doc__ or "").split()) if section else "")
            fields = {f"{name}.{inner}": one for inner, one in kind.model_fields.items()} if section else {name: field}
            for key, one in fields.items():
                if key in read:
                    rows.setdefault((section, *_cells(key, one)), []).append(command.name)
    for section, doc in sections.items():
        page += f"\n## {f'`{section}`' if section else 'Without a section'}\n\n{doc}{chr(10) * 2 if doc else ''}"
        page += "| key | type | default | description | read by |\n|---|---|---|---|---|\n"
        for (owner, *cells), readers in rows.items():
            if owner == section:
                page += "| " + " | ".join([*cells, ", ".join(readers)]) + " |\n"
    return page


def _cells(key: str, field: FieldInfo) -> tuple[str, str, str, str]:
    default = "required" if field.is_required() else "" if field.default in (None, "", [], {}) else f"`{field.default}`"
    cells = f"`{key}`", type_name(field.annotation), default, description_of(field)
    first, second, third, fourth = (cell.replace("|", "\\|") for cell in cells)
    return first, second, third, fourth


if __name__ == "__main__":
    print(reference(), end="")
