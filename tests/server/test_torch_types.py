import enum
import time
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorcall.server import torch_types
from tensorcall.v1 import handler_service_pb2
from tensorcall.wire.errors import UnknownType
from tensorcall.wire.limits import MAX_TYPE_TEXT_BYTES

# torch marks TorchScript as on its way out.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")

C = torch._C


def compiled(text: str) -> C.Type:
    """What torch's own parser makes of a text. Only for texts that are known to be types."""
    unit = C.CompilationUnit()
    unit.define(f"def f(x: {text}) -> None:\n  return None\n", lambda _: None)
    return next(iter(unit.f.graph.inputs())).type()


TYPES = [
    "Tensor",
    "torch.Tensor",
    "int",
    "float",
    "bool",
    "complex",
    "str",
    "number",
    "None",
    "NoneType",
    "Any",
    "Device",
    "Stream",
    "Generator",
    "Capsule",
    "list",
    "tuple",
    "Dict[str, Tensor]",
    "dict[str,Tensor]",
    "List[List[int]]",
    "list[int]",
    "Tuple[int, str]",
    "Tuple[int,]",
    "tuple[int]",
    "Tuple[()]",
    "Optional[int]",
    "Optional[Optional[Tensor]]",
    "Union[int, str]",
    "Union[int, None]",
    "Union[Optional[int], str]",
    "Future[Tensor]",
    "torch.jit.Future[int]",
    "Await[int]",
    "RRef[Tensor]",
    "RRef[Dict[str, List[Tensor]]]",
    " Dict [ str ,\tTensor ] ",
]


@pytest.mark.parametrize("text", TYPES)
def test_types_are_what_torch_s_own_parser_makes_of_them(text):
    result = torch_types.parse(text)
    expected = compiled(text.strip())
    assert result == expected
    assert result.annotation_str == expected.annotation_str
    assert torch_types.parse(result.annotation_str) == result


def test_py_object_as_the_handler_adds_it():
    assert torch_types.parse("PyObject").kind() == "PyObjectType"
    assert torch_types.parse("Optional[RRef[PyObject]]").annotation_str == "Optional[RRef[PyObject]]"


LEAVES = st.sampled_from(["Tensor", "int", "float", "bool", "complex", "str", "Any", "Device", "NoneType", "number"])
TREES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.tuples(st.sampled_from(["List", "Optional", "Future", "RRef", "Await"]), inner).map("{0[0]}[{0[1]}]".format),
        st.tuples(LEAVES, inner).map("Dict[{0[0]}, {0[1]}]".format),
        st.tuples(st.sampled_from(["Tuple", "Union"]), st.lists(inner, min_size=1, max_size=4).map(", ".join)).map(
            "{0[0]}[{0[1]}]".format
        ),
    ),
    max_leaves=12,
)


@given(TREES)
@settings(max_examples=150, deadline=None)
def test_any_type_is_what_torch_s_own_parser_makes_of_it(text):
    try:
        expected = compiled(text)
    except RuntimeError:
        with pytest.raises(UnknownType):
            torch_types.parse(text)
        return
    assert torch_types.parse(text) == expected


# Scripted classes.


class Color(enum.Enum):
    RED = 1
    GREEN = 2


@pytest.fixture(scope="module")
def scripted() -> str:
    """Scripts a class, an enum and an interface, and returns the prefix of their names."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")

        @torch.jit.script
        class Counter:
            def __init__(self, start: int):
                self.start = start

        @torch.jit.interface
        class Readable:
            def read(self, x: int) -> int:
                pass

        @torch.jit.script
        def uses(color: Color):
            return color.value

    return torch.jit._state._get_script_class(Counter).qualified_name().removesuffix("Counter")


def test_scripted_classes_are_found_by_name(scripted):
    counter = torch_types.parse(f"{scripted}Counter")
    assert counter.kind() == "ClassType"
    assert counter.annotation_str == f"{scripted}Counter"
    assert torch_types.parse(f"RRef[{scripted}Counter]").getElementType() == counter
    assert torch_types.parse(f"{scripted}Readable").kind() == "InterfaceType"


def test_scripted_enums_are_found_by_name(scripted):
    found = torch_types.parse(f"List[{scripted}Color]").getElementType()
    graph = torch.jit.script(lambda_of_color).graph
    assert found == next(iter(graph.inputs())).type()
    assert torch_types.describe(found) == handler_service_pb2.TorchType(kind="EnumType", text=f"{scripted}Color")


def lambda_of_color(color: Color):
    return color


def test_the_compilation_unit_is_torch_s_own(scripted):
    unit = torch_types.jit_compilation_unit()
    assert isinstance(unit, C.CompilationUnit)
    assert unit.get_class(f"{scripted}Counter") == torch_types.parse(f"{scripted}Counter")


# What is no type.


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the name of a type is missing"),
        (" \t", "missing"),
        ("Tensr", "did you mean Tensor"),
        ("torch.device", "did you mean Device"),
        ("torch.Size", "'torch.Size' is not known"),
        ("Dict", "needs arguments in brackets"),
        ("Dict[str]", "Dict takes 2 argument"),
        ("List[int, str]", "List takes 1 argument"),
        ("Dict[List[int], int]", "Cannot create dict for key type"),
        ("Union[int]", "single type int"),
        ("List[]", "missing here .at character 6"),
        ("List[()]", "missing here .at character 6"),
        ("Tuple[(), int]", "closing bracket is missing"),
        ("List[int", "closing bracket is missing"),
        ("List[int]]", "ends before this .at character 10"),
        ("List[int,,]", "missing"),
        ("int str", "ends before this"),
        ("int[2]", "names, dots, commas and square brackets|not known to take"),
        ("Typo[int]", "'Typo' is not known to take arguments"),
        ("Optinal[int]", "did you mean Optional"),
        ("__torch__.no.such.Class", "was scripted"),
        ("__torch__", "not known"),
        ("a..b", "names, dots"),
        (".a", "names, dots"),
        ("int\n", "names, dots"),
        ("int\0", "names, dots"),
        ("Ïnt", "beyond ASCII"),
        ("\ud800", "beyond ASCII"),
        ("List[" * 60 + "int" + "]" * 60, "deeper than 50"),
        ("[" * 4096, "missing"),
        ("int" + " " * MAX_TYPE_TEXT_BYTES, "at most 4096 bytes"),
    ],
)
def test_what_is_no_type_is_said(text, message):
    with pytest.raises(UnknownType, match=message) as caught:
        torch_types.parse(text)
    assert len(str(caught.value)) < 400


HOSTILE = [
    "__import__('os').system('true')",
    "exec('1')",
    "List[__import__('os')]",
    "int) -> None:\n  pass\ndef g(x: int",
    "int = 1",
    "int; import os",
    "int # comment",
    "lambda: 0",
    "(int)",
    "int | str",
    "int if True else str",
    "List[int]()",
    "{}",
    "Tensor.__class__",
    "__torch__.__class__",
    "__torch__.os.system",
    "__builtins__",
    "torch.jit.load",
    "f'{1}'",
    "`int`",
    "int\\\n",
    "...",
    "Tuple[int, ...]",
    "x" * 4096,
    "a." * 2047 + "a",
    "List[" * 800 + "]" * 90,
]


COMPILERS = [
    "builtins.eval",
    "builtins.exec",
    "builtins.compile",
    "ast.parse",
    "torch._C.CompilationUnit",
    "torch._C.parse_schema",
    "torch._C.parse_ir",
    "torch._C.parse_type_comment",
    "torch._C._resolve_type_from_object",
    "torch.jit.script",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_meets_no_compiler(text, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError(f"a compiler saw {args}")

    # Only around the call: pytest itself compiles while it reports.
    with monkeypatch.context() as patch:
        for place in COMPILERS:
            patch.setattr(place, refuse)
        with pytest.raises(UnknownType):
            torch_types.parse(text)


@given(st.text(max_size=60) | st.text("Listn[](), .DcTupOa_t", max_size=60))
def test_any_other_text_is_refused_or_a_type(text):
    try:
        result = torch_types.parse(text)
    except UnknownType:
        return
    assert torch_types.describe(result).kind == result.kind()


@pytest.mark.parametrize(
    "text",
    [
        "Tuple[" + "int," * 1000 + "]",
        "Union[" + ",".join(f"Tuple[{'int,' * (n % 30)}str]" for n in range(45)) + "]",
        "Optional[List[" * 24 + "int" + "]]" * 24,
        "Tuple[int, " * 48 + "int" + "]" * 48,
    ],
)
def test_the_largest_types_are_read_quickly(text):
    begin = time.perf_counter()
    try:
        torch_types.describe(torch_types.parse(text))
    except UnknownType:
        assert len(text) > MAX_TYPE_TEXT_BYTES
    assert time.perf_counter() - begin < 2


# As a message.


def test_a_type_as_a_message():
    message = torch_types.describe(torch_types.parse("Dict[str, Optional[Tensor]]"))
    tensor = handler_service_pb2.TorchType(kind="TensorType", text="Tensor")
    optional = handler_service_pb2.TorchType(kind="OptionalType", text="Optional[Tensor]", arguments=[tensor])
    string = handler_service_pb2.TorchType(kind="StringType", text="str")
    assert message == handler_service_pb2.TorchType(
        kind="DictType", text="Dict[str, Optional[Tensor]]", arguments=[string, optional]
    )


def test_the_deepest_type_fits_a_message():
    depth = torch_types.MAX_TYPE_DEPTH
    message = torch_types.describe(torch_types.parse("List[" * depth + "int" + "]" * depth))
    assert handler_service_pb2.TorchType.FromString(message.SerializeToString()) == message


def test_a_type_deeper_than_texts_go_is_cut():
    deep = C.IntType.get()
    for _ in range(3 * torch_types.MAX_TYPE_DEPTH):
        deep = C.ListType(deep)
    message = torch_types.describe(deep)
    assert handler_service_pb2.TorchType.FromString(message.SerializeToString()) == message


def test_a_class_is_not_taken_apart(scripted):
    message = torch_types.describe(torch_types.parse(f"{scripted}Counter"))
    assert message == handler_service_pb2.TorchType(kind="ClassType", text=f"{scripted}Counter")
