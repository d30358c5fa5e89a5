from __future__ import annotations

import pytest

from tensorcall.cli.signatures import Parameter, parameters


@pytest.mark.parametrize(
    ("signature", "expected"),
    [
        ("()", []),
        ("() -> None", []),
        ("(a, /, b: int, c='x', *rest: str, d, e: float = -1.0, **more) -> dict[str, int]",
         [
             Parameter("a", passed="positional"),
             Parameter("b", "int"),
             Parameter("c", default="'x'"),
             Parameter("rest", "str", stars="*"),
             Parameter("d", passed="keyword"),
             Parameter("e", "float", default="-1.0", passed="keyword"),
             Parameter("more", stars="**"),
         ]),
        ("(a: Callable[[int], str] | None = None)", [Parameter("a", "Callable[[int], str] | None", "None")]),
        ("(...)", None),
        ("(a=<object object at 0x7f>)", None),
        ("(a): pass\nimport os\ndef g(", None),
    ],
)  # fmt: skip
def test_parameters(signature: str, expected: list[Parameter] | None) -> None:
    assert parameters(signature) == expected
