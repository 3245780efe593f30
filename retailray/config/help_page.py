"""What ``retailray COMMAND --help`` prints."""

from pydantic.fields import FieldInfo

from retailray.config import COMMANDS, CommandConfig
from retailray.config.keys import description_of, is_section, type_name

EXIT_CODES = (
    "\nExit codes: 0 done; 1 failed; 2 the command line or a config file is wrong; 3 done, but more rows failed than\n"
    "score.max_error_rate; 4 a check failed (check.fail_on, score.max_drift, promote.*, doctor); 130 interrupted"
)


def print_help(command: str, model: type[CommandConfig]) -> None:
    """Print the command's settings by section: name, type, default, help. Wide terminals get one line a setting."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False)
    console.width = max(console.width, 110)  # narrower columns break every line; pagers and pipes have no width
    record = COMMANDS[command]
    console.print(f"[bold]retailray {command}[/] [--config FILE]... [--section.key VALUE]...\n")
    console.print(f"  {record.summary[0].upper()}{record.summary[1:]}.\n")
    console.print("  --config FILE   YAML with these sections; may be given several times, later files win\n")
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column()
    for name, field in model.model_fields.items():
        annotation = field.annotation
        if is_section(annotation):
            doc = " ".join((annotation.__doc__ or "").split())
            table.add_row(f"\n[bold]{name}[/]", "", f"\n{escape(doc)}")
            for inner, inner_field in annotation.model_fields.items():
                if f"{name}.{inner}" not in model.unused:
                    table.add_row(*_help_row(f"{name}.{inner}", inner_field))
        elif name not in model.unused:
            table.add_row(*_help_row(name, field))
    console.print(table)
    console.print(EXIT_CODES)
    if record.example:
        console.print(f"\nExample:\n  retailray {command} {record.example}", soft_wrap=True)


def _help_row(key: str, field: FieldInfo) -> tuple[str, str, str]:
    from rich.markup import escape

    text = description_of(field)
    if field.is_required():
        text += " (required)"
    elif field.default is not None and field.default not in ([], {}, ""):
        default = str(field.default).lower() if isinstance(field.default, bool) else field.default
        text += f" (default: {default})"
    return f"  --{key}", escape(type_name(field.annotation)), escape(text)
