"""The process in which chat templates are rendered: started by `engine.prompts.chat`, imports only Jinja.

A template is a program of the model's authors. Here it may use `MEMORY` bytes and `SECONDS` of computing for
each prompt, open no file and start no process. The environment is the one of transformers'
`apply_chat_template`, but for the clock: today's date is an error, since a study renders the same every day.

One JSON object a line: {"template", "context"} in, {"text"} or {"error"} out.
"""

from __future__ import annotations

import contextlib
import json
import sys
from functools import lru_cache
from typing import Any

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

MEMORY = 1 << 30
SECONDS = 2
LONGEST = 10_000_000
"""Characters of a rendered prompt."""
NO_DATE = "the study gives no date"


class Generation(jinja2.ext.Extension):
    """{% generation %} … {% endgeneration %}: marks what the assistant wrote, and writes it as it is."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Any) -> Any:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body).set_lineno(line)


def refuse(message: object) -> None:
    raise jinja2.TemplateError(str(message))


def no_clock(*_format: object) -> None:
    raise jinja2.TemplateError(NO_DATE)


def tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    """JSON without the escapes of HTML that Jinja's own filter makes."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


@lru_cache(maxsize=8)
def compiled(template: str) -> Any:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals |= {"raise_exception": refuse, "strftime_now": no_clock}
    del environment.globals["lipsum"]
    return environment.from_string(template)


def answer(line: str) -> dict[str, str]:
    """What one line asks for; every error of the template is an answer too."""
    asked = json.loads(line)
    try:
        text = compiled(asked["template"]).render(**asked["context"])
    except MemoryError:
        return {"error": "it takes too much memory"}
    except RecursionError:
        return {"error": "it calls itself without end"}
    except Exception as error:
        return {"error": f"{error}"[:1000] or type(error).__name__}
    if len(text) > LONGEST:
        return {"error": f"it writes {len(text):,} characters, more than {LONGEST:,}"}
    return {"text": text}


def confine() -> None:
    """Bounds memory, files and processes, where the system can."""
    with contextlib.suppress(ImportError):
        import resource

        for limit, value in (("AS", MEMORY), ("FSIZE", 0), ("NPROC", 0), ("CORE", 0), ("NOFILE", 16)):
            with contextlib.suppress(ValueError, OSError, AttributeError):
                resource.setrlimit(getattr(resource, f"RLIMIT_{limit}"), (value, value))


def allow_seconds() -> None:
    """Lets the process compute for `SECONDS` more; the system ends it after that."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        used = resource.getrusage(resource.RUSAGE_SELF)
        most = int(used.ru_utime + used.ru_stime) + 1 + SECONDS
        resource.setrlimit(resource.RLIMIT_CPU, (most, resource.RLIM_INFINITY))


def main() -> None:
    compiled("{{ 1 }}").render()  # whatever Jinja imports late is imported before files are out of reach
    confine()
    for line in sys.stdin:
        allow_seconds()
        found = json.dumps(answer(line))
        sys.stdout.write(found + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
