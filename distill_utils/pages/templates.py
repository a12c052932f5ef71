"""The templates of this folder, filled in: whatever is put into one is escaped for the language it is in."""

import re
from pathlib import Path

import jinja2
from markupsafe import Markup

# Backslashes before these keep text from being Markdown, HTML, a row of a table or a link. An underscore
# within a word is none of that.
_MARKDOWN = re.compile(r"[\\`*{}\[\]<>#|&!~$:@]|(?<!\w)_|_(?!\w)|(?<=www)\.")


def escape_markdown(value):
    """A string as the same characters in Markdown, in one line; anything else, such as a number, as it is."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return _MARKDOWN.sub(r"\\\g<0>", " ".join(value.split()))


def _environment(**options):
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        **options,
    )


_HTML = _environment(autoescape=True)
_MARKDOWN_FILES = _environment(finalize=escape_markdown)


def render(name, **values):
    """The template `name`, *.html.j2 or *.md.j2, filled in; only Markup is put in as it is."""
    environment = _MARKDOWN_FILES if name.endswith(".md.j2") else _HTML
    text = environment.get_template(name).render(**values)
    return text.encode("utf-8", "replace").decode()  # names of files may hold what no encoding has
