"""outputd.config.toml_lines: keys are found among everything that TOML has."""

from __future__ import annotations

import tomllib

from hypothesis import given
from hypothesis import strategies as st

from outputd.config.toml_lines import key_lines, line_of


class TestLines:
    def test_keys_are_found_among_everything_toml_has(self) -> None:
        text = '''\
a.b = 1 # [not.a.table]
"quoted \\" key" = """
[not.a.table]
x = "" 2"""
list = [ # comment ]
  "]", ']',
]
[ one . 'two.2' ]
k = { x = 1, y = "}" }
m = \'\'\'
[no]
'\'\'\'

[[many]]
n = 1
'''
        tomllib.loads(text)
        assert key_lines(text) == {
            ("a", "b"): 1,
            ('quoted " key',): 2,
            ("list",): 5,
            ("one", "two.2"): 8,
            ("one", "two.2", "k"): 9,
            ("one", "two.2", "m"): 10,
            ("many",): 14,
            ("many", "n"): 15,
        }
        assert key_lines(text.replace("\n", "\r\n")) == key_lines(text)

    def test_line_of_what_a_key_lies_in(self) -> None:
        lines = key_lines("\n[a]\nb = { c = 1 }\n")
        assert line_of(lines, ("a", "b", "c")) == 3
        assert line_of(lines, ("a", "x")) == 2
        assert line_of(lines, ("x",)) is None

    @given(st.text(alphabet="ab.=\"'[]{}#\n \\1,"))
    def test_whatever_tomllib_accepts_is_read_and_its_keys_are_found(self, text: str) -> None:
        try:
            document = tomllib.loads(text)
        except tomllib.TOMLDecodeError:
            return
        lines = key_lines(text)
        assert {path[0] for path in lines} == set(document)
