"""The reader of liberty files, on a library that is written here."""

import lzma
from itertools import product

import pytest
import tiny_library

from gptcore.errors import RunError, UserError
from ppa.synth import liberty
from ppa.synth.boolean import to_python


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tiny_library.write(tmp_path)[0]


def test_cells_in_si_units(tiny):
    library = liberty.read(tiny)
    assert (library.name, library.voltage_v, sorted(library.cells)) == ("tiny", 1.0, ["BUF", "DFF", "INV", "NAND2"])
    inverter, flipflop = library.cells["INV"], library.cells["DFF"]
    assert inverter.area_um2 == 1.0 and inverter.leakage_w == pytest.approx(0.1e-9)
    assert inverter.pins["A"].capacitance_f == pytest.approx(2e-15)
    assert inverter.pins["Y"].function == "!A" and inverter.outputs() == ["Y"]
    assert inverter.pins["Y"].energy_j["A"].at(7e-15) == pytest.approx(3e-15)  # mean of rise 6 fJ and fall 0
    assert flipflop.flipflop == liberty.FlipFlop("IQ", "IQN", "CK", "D")
    assert flipflop.pins["CK"].energy_j[""].at(0) == pytest.approx(5e-15)


def test_delays_are_linear_in_the_load_also_beyond_the_table(tiny):
    curve = liberty.read(tiny).cells["INV"].pins["Y"].rise_s["A"]
    assert [curve.at(load * 1e-15) for load in (0, 2, 10, 100, 200)] == pytest.approx(
        [10e-12, 20e-12, 60e-12, 510e-12, 1010e-12]
    )


def test_xz_and_cache_give_the_same(tiny):
    packed = tiny.with_suffix(".lib.xz")
    packed.write_bytes(lzma.compress(tiny.read_bytes()))
    plain = liberty.read(tiny)
    assert len(list(liberty.cache_folder().iterdir())) == 1
    assert liberty.read(packed) == plain == liberty.read(tiny)


def test_a_table_that_counts_the_load_in_is_taken_without_it():
    """Slope 1/2 V2: 0.5 fJ a fF at 1 V. The part that does not depend on the load stays."""
    text = tiny_library.TEXT.replace(
        'values("6"); } fall_power(scalar) { values("0"); }',
        f'index_1("0.1"); index_2("0, 10, 100"); values("3, 8, 53"); }} fall_power(grid) {{ {tiny_library._TABLE.format("3, 8, 53")} }}',  # noqa: E501
    ).replace("rise_power(scalar) { index_1", "rise_power(grid) { index_1")
    assert text != tiny_library.TEXT
    assert liberty.parse(text).cells["INV"].pins["Y"].energy_j["A"].at(50e-15) == pytest.approx(3e-15)


def test_the_ground_rail_is_not_counted_again():
    text = tiny_library.TEXT.replace(
        "pin(CK)", "pg_pin(VSS) { pg_type : primary_ground; } pg_pin(VDD) { pg_type : primary_power; } pin(CK)"
    )
    doubled = 'internal_power() { related_pg_pin : VSS; rise_power(scalar) { values("99"); } }'
    text = text.replace("clock : true;", f"clock : true; {doubled}")
    assert liberty.parse(text).cells["DFF"].pins["CK"].energy_j[""].at(0) == pytest.approx(5e-15)


@pytest.mark.parametrize("content", [b"", b"GIF89a", b"library (x) { }", b"{" * 50, b"\xfd7zXZ\0broken"])
def test_what_is_no_library_is_said_so(tmp_path, content, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "x.lib"
    path.write_bytes(content)
    with pytest.raises(UserError, match="x.lib.* (no liberty file|damaged)"):
        liberty.read(path)


def test_a_missing_file_tells_where_to_get_one(tmp_path):
    with pytest.raises(UserError, match="qflow-tech-osu018"):
        liberty.read(tmp_path / "none.lib")


@pytest.mark.parametrize(
    "function, expected",
    [
        ("A&B | !C", lambda a, b, c: a & b | 1 - c),
        ("A B + C'", lambda a, b, c: a & b | 1 - c),
        ("!(A * B)", lambda a, b, c: 1 - (a & b)),
        ("(A + B)' C", lambda a, b, c: (1 - (a | b)) & c),
        ("A ^ B & C", lambda a, b, c: (a ^ b) & c),  # xor binds more tightly than and
        ("!A ^ B + 0", lambda a, b, c: (1 - a) ^ b),
        ("(A ^ B) ^ (C & 1)", lambda a, b, c: a ^ b ^ c),
    ],
)
def test_boolean_functions(function, expected):
    text = to_python(function, str)
    for a, b, c in product((0, 1), repeat=3):
        assert eval(text, {"A": a, "B": b, "C": c, "M": 1}) == expected(a, b, c)


@pytest.mark.parametrize("function", ["A &", "(A", "A $ B", "A)", ""])
def test_a_broken_function_is_an_error(function):
    with pytest.raises(RunError, match="boolean function"):
        to_python(function, str)
