"""Chat templates are programs of strangers: they may refuse, but neither hang nor take the machine."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from engine.prompts.chat import TemplateFault, render_chat

HOSTILE = {
    "a range": "{% for i in range(10**9) %}x{% endfor %}",
    "nested ranges": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "a power": "{{ 10**(10**9) }}",
    "a product": "{{ 'a' * 10**11 }}",
    "padding": "{{ 'a'.ljust(10**11) }}",
    "a format": "{{ '%100000000000d' | format(1) }}",
    "doubling": "{% set n = namespace(x='a') %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "much text": "{% for i in range(99999) %}{{ 'abcdefghij' * 100 }}{% endfor %}",
    "a macro that calls itself": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "deep brackets": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "no template": "{% for %}",
    "a division": "{{ 1 / 0 }}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_template_that_would_take_the_machine_is_refused_in_time(name: str) -> None:
    begun = time.process_time()
    with pytest.raises(TemplateFault):
        render_chat(HOSTILE[name], {})
    assert time.process_time() - begun < 1
    assert render_chat("{{ a }}", {"a": "the next one renders"}) == "the next one renders"


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ self.__init__.__globals__ }}",
        "{{ raise_exception.__globals__ }}",
        "{{ namespace.__init__.__globals__['sys'] }}",
        "{% include '/etc/passwd' %}",
        "{% import '/etc/passwd' as x %}",
        "{{ lipsum() }}",
        "{{ strftime_now('%Y') }}",
    ],
)
def test_a_template_reaches_nothing_but_its_context(template: str) -> None:
    try:
        found = render_chat(template, {})
    except TemplateFault:
        return
    assert found == ""


def test_unusual_text_goes_through_unchanged() -> None:
    for text in ("é 中文 🙂", "line\nbreak", "\ud800", "\0", "x" * 300_000):
        assert render_chat("{{ messages[0].content }}", {"messages": [{"content": text}]}) == text


def test_generation_marks_and_loop_controls_are_known() -> None:
    template = "{% for i in [1,2,3] %}{% if i == 3 %}{% break %}{% endif %}"
    template += "{% generation %}{{ i }}{% endgeneration %}{% endfor %}"
    assert render_chat(template, {}) == "12"


def test_the_process_can_write_no_file(tmp_path: Path) -> None:
    """What the sandbox should not let through would end here."""
    import json
    import subprocess
    import sys

    code = (
        "import sys; sys.path.insert(0, '.'); from engine.prompts import chat_process as c; c.confine()\n"
        f"try: open({str(tmp_path / 'x')!r}, 'w').write('x' * 100000)\nexcept OSError as e: print(e.errno)"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    written = tmp_path / "x"
    assert done.returncode != 0 or json.loads(done.stdout) > 0
    assert not written.exists() or written.stat().st_size == 0
