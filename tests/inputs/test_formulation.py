"""Formulas: values and order of columns as in PyBLP, expression trees, and messages about what is wrong."""

import copy
import pickle
import re

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pyblp
import pytest

from blpjax.exceptions import DataError
from blpjax.inputs.expressions import parse_expression, source_text
from blpjax.inputs.formulas import parse_terms
from blpjax.inputs.formulation import Formulation
from blpjax.inputs.matrices import build_matrix
from blpjax.inputs.syntax import evaluate_formula
from blpjax.inputs.table_format import read_table
from blpjax.inputs.terms import INTERCEPT

N = 60
NUMERIC = """
1 | x | 0 + x | + 0 + x | -1 + x | x + 0 | x - 1 | 0 + x + 1 | x - 1 + 1 | x + -1 | x - -1 | x + (-1)
1 - 1 + x | x - 0
(x - 1) + y | x + (y - 1) | 0 + (x + 1) | 0:x | ~ x | x + y - x | x * y - x:y | x - x
x + x + I(x) | I(x):x
y:x + x:y | x:y:w + x | x:y + x | x / y | x / y / w | (x + y) / w | x / (y + w) | x ** 2 | x ** 5 | (x + y) ** 2
(x + y + w) ** 2 | (x + y + w) ** 3 | x * y * w - x:y:w | (x - y) * w | 0 + I(2) | I(2) - 1 | x * -1
I(x ** 2) + log(w) | I(x ** -1) | I(x ** 0.5) | I(x ** y ** w) | I((x ** y) ** w) | I(2 ** -x)
I(-x ** 2) | I((-x) ** 2)
I(x * y - 1 / w) | I(x - (y - w)) | I(x / (y / w)) | I(x / y / w) | I(1 / (x + y)) | I(1e-3 * x)
I(+x) | -1 + x + I(-y)
log(x * y):exp(x - y) | log(I(x)) | log(w) * x - x | I(i ** 2) | i:i | I(x+ y) + I(x + y)
"""
CATEGORICAL = """
C(kind) | C(kind) - 1 | 0 + x + C(kind) | x:C(kind) | x * C(kind) | 0 + C(kind):x | kind | 0 + kind | C(a)
0 + C(b)
C(kind) * C(size) | C(size):C(kind) - 1 | C(kind) * C(size) * x | x + C(kind):y | exp(x):C(size)
C(size) + size | C(a) + a
flag | flag - 1 | flag:x | x + flag | flag:kind | C(flag) | I(flag) | I(kind):x | always | always - 1 | one | one - 1
one:x
x / C(a) | C(a) / x | C(a) / C(kind) | C(a) / C(kind) / x | (a + b):kind | a:b * kind | ((x + y) ** 2):kind
x * C(a) * C(b) | x * kind * size * C(a) | kind:size:C(a) | kind:size:C(a) - 1 | kind:size + kind:C(a)
kind:size + kind:C(a) - 1 | size + kind:size | 0 + kind:size + kind | 0 + x:kind + kind | x:kind + x | kind:x + kind
x:kind + y:kind + x | x:y:kind + x:y | 0 + kind * size * flag | (C(a) + C(b) + kind) ** 2 | (C(a) + x + kind) ** 3
kind + x + size:x + size | C(a) * C(b) - C(a) | C(a) * C(b) - C(a) - C(b) - 1 | (x + C(a)) * (y + kind)
C(a):a | x:C(a):y
x:kind:size + size:x | flag * size * x * kind - 1 | year | year:x - 1 | C(i) - 1
"""


def formulas(text: str) -> list[str]:
    return [formula.strip() for formula in re.split(r" \| |\n", text) if formula.strip()]


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    return pd.DataFrame({
        "market_ids": np.arange(N) // 6,
        "prices": rng.uniform(1, 2, N),
        "x": rng.uniform(1, 2, N),
        "y": rng.uniform(1, 2, N),
        "w": rng.uniform(1, 2, N),
        "i": np.arange(N),
        "a": rng.integers(0, 3, N),
        "b": 1.5 * rng.integers(0, 3, N),
        "kind": np.array(["u", "v", "w"])[rng.integers(0, 3, N)],
        "size": np.array(["small", "large"])[rng.integers(0, 2, N)],
        "flag": rng.uniform(size=N) < 0.4,
        "always": True,
        "one": "k",
        "year": pd.to_datetime(["2020-01-01", "2021-01-01"] * (N // 2)),
    })  # fmt: skip


@pytest.fixture(scope="module")
def columns(table: pd.DataFrame) -> dict[str, np.ndarray]:
    return read_table(table, "product_data")


@pytest.mark.parametrize("formula", ["", *formulas(NUMERIC), *formulas(CATEGORICAL)])
def test_matrix_is_that_of_pyblp(formula: str, table: pd.DataFrame) -> None:
    np.testing.assert_allclose(
        build_matrix(Formulation(formula), table),
        pyblp.build_matrix(pyblp.Formulation(formula), table),
        rtol=1e-12,
        atol=1e-12,
        strict=True,
    )


@pytest.mark.parametrize("formula", ["x", "0 + x", "kind", "kind:size", "0 + kind:x", "x * kind * C(a)", "C(a) / x"])
def test_absorption_removes_the_intercept_and_keeps_reduced_coding(formula: str, table: pd.DataFrame) -> None:
    # PyBLP's unabsorbed columns come from the same formula with an intercept, which it then leaves out
    with_intercept = pyblp.build_matrix(pyblp.Formulation(f"{formula} + 1"), table)
    ours = Formulation(formula, absorb="C(b)").build(read_table(table, "product_data")).values
    np.testing.assert_allclose(ours, with_intercept[:, 1:], rtol=1e-12, atol=1e-12, strict=True)


@pytest.mark.parametrize("formula", formulas(CATEGORICAL) + formulas(NUMERIC))
def test_column_expressions_reproduce_the_matrix(formula: str, columns: dict[str, np.ndarray]) -> None:
    design = Formulation(formula).build(columns)
    assert len(design.columns) == len(design.labels) == design.values.shape[1]
    assert set(design.inputs) == {key for column in design.columns for key in column.inputs}
    for column, values in zip(design.columns, design.values.T, strict=True):
        env = design.inputs or {"x": columns["x"]}
        np.testing.assert_array_equal(column.evaluate(env), values)


@pytest.mark.parametrize(
    ("formula", "labels"),
    [
        ("prices", "1 prices"),
        ("I(x**2) + log(w) + I(1 / prices) - 1", "x**2 log(w) 1/prices"),
        ("0 + y:x + exp(x):y + I(x + 1):y", "x*y y*exp(x) y*(x + 1)"),
        ("C(kind) + flag", "1 kind['v'] kind['w'] flag[True]"),
        ("0 + C(a):x", "a[0]*x a[1]*x a[2]*x"),
    ],
)
def test_labels_are_pyblps(formula: str, labels: str, columns: dict[str, np.ndarray]) -> None:
    assert " ".join(Formulation(formula).build(columns).labels) == labels
    theirs = [str(column) for column in pyblp.Formulation(formula)._build_matrix(columns)[1]]
    # levels that are NumPy scalars print with their type there
    assert re.sub(r"np\.int64\((\d)\)", r"\1", " ".join(theirs)) == labels


@pytest.mark.parametrize(
    ("formulation", "text"),
    [
        (Formulation("size + I(size**2) + C(product)"), "1 + size + I(size ** 2) + C(product)"),
        (Formulation("prices", absorb="C(product_ids)"), "prices + Absorb[C(product_ids)]"),
        (Formulation("0", absorb="C(a)*C(b)"), "Absorb[C(a)] + Absorb[C(b)] + Absorb[C(a):C(b)]"),
        (Formulation("x / (y + log(w)) - 1"), "x + x:y + x:log(w)"),
        (Formulation("I((x - (y - 1)) * -w ** 2)"), "1 + I((x - (y - 1)) * -w ** 2)"),
    ],
)
def test_formulations_print_their_terms(formulation: Formulation, text: str) -> None:
    assert repr(formulation) == str(formulation) == text
    if formulation.terms:
        theirs = pyblp.Formulation(formulation.formula, absorb=formulation.absorb)
        assert str(theirs) == text


def test_formulations_are_values() -> None:
    options = {"tol": 1e-10}
    first = Formulation("x + kind", "C(a)", "map", options)
    second = Formulation("x + kind", absorb="C(a)", absorb_method="map", absorb_options={"tol": 1e-10})
    assert first == second and hash(first) == hash(second)
    assert first != Formulation("x + kind", "C(a)", "map", {"tol": 1e-8})
    assert pickle.loads(pickle.dumps(first)) == copy.deepcopy(first) == first
    options["tol"] = 1.0
    assert first.absorb_options == {"tol": 1e-10}
    with pytest.raises(AttributeError):
        first.formula = "y"  # type: ignore[misc]
    with pytest.raises(TypeError):
        first.absorb_options["tol"] = 1  # type: ignore[index]


def test_names() -> None:
    formulation = Formulation("log(prices):C(kind) + I(x * y) - 1", absorb="C(a):C(b) + firm_ids")
    assert formulation.names == {"prices", "kind", "x", "y"}
    assert formulation.absorb_names == {"a", "b", "firm_ids"}
    assert Formulation("1").names == frozenset()


def test_columns_are_values_shared_by_tables(columns: dict[str, np.ndarray]) -> None:
    formulation = Formulation("prices * kind + I(prices / x)")
    first = formulation.build(columns).columns
    second = formulation.build({name: values[::-1] for name, values in columns.items()}).columns
    assert first == second and hash(first) == hash(second)
    assert [column.depends_on("prices") for column in first] == [False, True, False, False, True, True, True]
    assert first[-1].names == {"prices", "x"}
    assert first[-2].inputs == ("prices", "C(kind)['w']")


def test_columns_are_differentiated_by_jax(columns: dict[str, np.ndarray]) -> None:
    formula = "prices + I(prices ** 2):x + log(prices):kind + I((prices - x) ** 2 / y) + exp(-prices)"
    design = Formulation(formula).build(columns)
    fixed = {key: jnp.asarray(values) for key, values in design.inputs.items() if key != "prices"}

    @jax.jit
    def matrix(prices: jax.Array) -> jax.Array:
        env = fixed | {"prices": prices}
        return jnp.stack([column.evaluate(env, jnp) for column in design.columns], axis=1)

    prices, ones = jnp.asarray(design.inputs["prices"]), jnp.ones(N)
    np.testing.assert_allclose(matrix(prices), design.values, rtol=1e-14)
    derivatives = jax.jvp(matrix, (prices,), (ones,))[1]
    p, x, y = (columns[name] for name in ("prices", "x", "y"))
    expected = {"1": 0, "prices": 1, "prices**2*x": 2 * p * x, "(prices - x)**2/y": 2 * (p - x) / y}
    expected |= {"exp(-prices)": -np.exp(-p)} | {f"kind['{k}']*log(prices)": (columns["kind"] == k) / p for k in "uvw"}
    assert set(expected) == set(design.labels)
    for label, derivative in zip(design.labels, derivatives.T, strict=True):
        np.testing.assert_allclose(derivative, np.broadcast_to(expected[label], N), rtol=1e-13)


def test_squares_have_derivatives_at_zero() -> None:
    (column,) = Formulation("0 + I((x - 1) ** 2)").build({"x": np.array([1.0])}).columns
    second = jax.grad(jax.grad(lambda x: column.evaluate({"x": x}, jnp)))
    assert second(1.0) == 2.0


def test_constant_columns_take_the_shape_of_their_environment(columns: dict[str, np.ndarray]) -> None:
    (column,) = Formulation("1").build(columns).columns
    assert column.evaluate({}) == 1.0
    np.testing.assert_array_equal(column.evaluate({"x": jnp.zeros((2, 3))}, jnp), np.ones((2, 3)))


PLAIN = "- 1 + x | -0+x | x+y:w -  x | +x - 0 + 0 | 1 + log(x + (y - 1)):C(kind) + I(x:y) | x - y:x + x:y | x + log (y)"


@pytest.mark.parametrize("formula", formulas(PLAIN + " | " + NUMERIC + CATEGORICAL))
def test_plain_sums_have_the_terms_that_formulaic_finds(formula: str) -> None:
    try:
        value = evaluate_formula(formula)
    except ValueError as error:
        with pytest.raises(ValueError, match=re.escape(str(error))):
            parse_terms(formula)
    else:
        expected = [*([] if value.removed else [INTERCEPT]), *dict.fromkeys(value.terms)]
        assert list(map(str, parse_terms(formula))) == list(map(str, expected))


def test_formula_of_thousands_of_terms() -> None:
    assert len(parse_terms(" + ".join(f"v{index}" for index in range(3000)))) == 3001


@pytest.mark.parametrize(
    ("formula", "message"),
    [
        ("np.log(x)", "'np.log' in 'np.log\\(x\\)' is not supported. Supported are .* log"),
        ("poly(x, 2)", "function 'poly' in 'poly\\(x, 2\\)' is not supported"),
        ("x + sqrt(x)", "function 'sqrt'"),
        ("C(x, Treatment)", "'C' in 'C\\(x, Treatment\\)' takes exactly one argument"),
        ("C(x * y)", "takes the name of one variable"),
        ("I(C(x))", "inside of another expression"),
        ("I(x % 2)", "'x % 2' in 'I\\(x % 2\\)' is not supported"),
        ("I(x > 1)", "'x > 1'"),
        ("x.y", "'x.y'"),
        ("I(x[0])", "'x\\[0\\]'"),
        ("I('a')", "is not supported"),
        ("{x + 1}", "Put arithmetic into I"),
        ("I(log)", "'log' in 'I\\(log\\)' is a function"),
        ("I(1 / 0 + x)", "'1 / 0' in .* is not a finite number"),
        ("I(x + 1e999)", "too large"),
        ("x + 2", "uses 2 as a term. Only 0 and 1"),
        ("-x", "minus sign in front of a term. Use I"),
        ("x + -y", "minus sign in front of a term. Use I"),
        ("x ** y", "positive integer after"),
        ("x ** -1", "positive integer after"),
        ("(1 + x) ** 2", "interacts the intercept"),
        ("x * (y + 1)", "interacts the intercept"),
        ("y ~ x", "should not have a left-hand side"),
        ("x | y", "operator '\\|' .* is not supported. Supported are \\+ - \\* / : \\*\\*"),
        ("x ^ 2", "operator '\\^'"),
        ("x %in% y", "operator 'in'"),
        (".", "operator '.'"),
        ("x y", "cannot be parsed: Missing operator"),
        ("x +", "cannot be parsed"),
        ("I(x", "cannot be parsed"),
        ("0", "has no terms"),
        ("x - x - 1", "has no terms"),
        ("1 + I(2)", "more than one constant"),
    ],
)
def test_unsupported_formulas_are_refused_by_name(formula: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Formulation(formula)


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"formula": 1}, TypeError, "formula must be a string, not int"),
        ({"absorb": 1}, TypeError, "absorb must be None or a string"),
        ({"absorb": "C(a)", "absorb_method": 1}, TypeError, "absorb_method must be None or a string"),
        ({"absorb": "C(a)", "absorb_options": [1]}, TypeError, "absorb_options must be None or a dictionary"),
        ({"absorb": "1"}, ValueError, "has no terms. Use None"),
        ({"absorb": "C(a) + I(2)"}, ValueError, "constant term 'I\\(2\\)'"),
        ({"absorb": "np.log(a)"}, ValueError, "'np.log'"),
        ({"absorb_method": "map"}, ValueError, "need absorb, which is None"),
        ({"absorb": "C(a)", "absorb_method": "no"}, ValueError, "absorb_method='no' .* 'within'"),
        ({"absorb": "C(a) + C(b)", "absorb_method": "within"}, ValueError, "2 dimensions of fixed effects: .* is 1"),
        ({"absorb": "C(a)", "absorb_method": "map", "absorb_options": {"no": 1}}, ValueError, "not supported .*'no'"),
        ({"absorb": "C(a)", "absorb_method": "map", "absorb_options": {"tol": "x"}}, ValueError, "tol should be"),
        ({"absorb": "C(a)", "absorb_method": "lsmr", "absorb_options": {"converged": 1}}, TypeError, "callable"),
    ],
)
def test_wrong_arguments_are_refused_at_construction(arguments: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        Formulation(**({"formula": "x"} | arguments))


def replaced(table: pd.DataFrame, name: str, row: int, value: object) -> pd.DataFrame:
    values = table[name].astype(object).tolist()
    values[row] = value
    return table.assign(**{name: pd.Series(values, dtype=object).infer_objects()})


@pytest.mark.parametrize(
    ("formula", "change", "message"),
    [
        (
            "x + pricess",
            None,
            "product_data: there is no column 'pricess', which the formula 'x \\+ pricess' .*'prices'",
        ),
        ("zzz", None, "there is no column 'zzz'.* It has: market_ids, prices"),
        ("x", ("x", 14, np.nan), "product_data: column 'x' has a missing value in market 2, row 14\\."),
        ("x", ("x", 14, None), "column 'x' has a missing value in market 2, row 14\\."),
        ("0 + log(x)", ("x", 13, np.inf), "column 'x' has an infinite value in market 2, row 13\\."),
        ("log(x)", ("x", 0, 0.0), "'log\\(x\\)' is not finite in market 0, row 0, where x = 0.0"),
        ("log(x)", ("x", 0, -1.0), "'log\\(x\\)' is not finite"),
        (
            "I(1 / (x - i))",
            ("x", 59, 59.0),
            "'I\\(1 / \\(x - i\\)\\)' is not finite in market 9, row 59, where x = 59.0, i",
        ),
        ("log(I(i - 2))", None, "market 0, row 0 \\(and 2 more rows\\)"),
        ("C(kind)", ("kind", 7, None), "categorical column 'kind' has a missing value in market 1, row 7\\."),
        ("C(x)", ("x", 7, np.nan), "categorical column 'x' has a missing value in market 1, row 7\\."),
        ("kind", ("kind", 7, 3), "categorical column 'kind' mixes values of type int and str"),
        (
            "I(flag * x)",
            None,
            "column 'flag' holds booleans, which are categorical, but 'I\\(flag \\* x\\)' needs numbers",
        ),
        ("log(kind)", None, "column 'kind' holds values that are not numbers, but 'log\\(kind\\)' needs numbers"),
    ],
)
def test_unusable_data_are_refused_by_column_market_and_row(
    formula: str, change: tuple | None, message: str, table: pd.DataFrame
) -> None:
    data = table if change is None else replaced(table, *change)
    with pytest.raises(DataError, match=message):
        Formulation(formula).build(read_table(data, "product_data"))


def test_rows_are_named_without_markets() -> None:
    with pytest.raises(DataError, match="data: column 'x' has a missing value in row 1 \\(and 1 more row\\)"):
        build_matrix(Formulation("x"), {"x": [1, None, np.nan]})


def test_matrices_cannot_be_variables() -> None:
    with pytest.raises(
        DataError, match="data: column 'x' has shape \\(3, 2\\), but the formula '1 \\+ x' needs one value"
    ):
        build_matrix(Formulation("1 + x"), {"x": np.ones((3, 2))})
    assert build_matrix(Formulation("1 + x"), {"x": np.ones((3, 1))}).shape == (3, 2)


@pytest.mark.parametrize("text", ["I(x ** 2)", "I(-(x + y) * 2 / (w - 1))", "log(I(x) ** -0.5)", "I((x ** y) ** w)"])
def test_printed_expressions_parse_to_themselves(text: str) -> None:
    expression = parse_expression(text)
    assert parse_expression(source_text(expression)) == expression


class TestReadTable:
    def test_sources_agree(self) -> None:
        frame = pd.DataFrame({"x": [1.5, 2.5], "id": ["a", "b"], "flag": [True, False]})
        record = frame.to_records(index=False)
        expected = {"x": [1.5, 2.5], "id": ["a", "b"], "flag": [True, False]}
        for data in (frame, record, np.asarray(record), expected, frame.to_dict("series")):
            columns = read_table(data, "data")
            assert {name: values.tolist() for name, values in columns.items()} == expected
            assert [values.dtype.kind for values in columns.values()] == ["f", "O", "b"]

    def test_extension_types_become_plain(self) -> None:
        frame = pd.DataFrame({
            "integer": pd.array([1, 2, 3], dtype="Int64"),
            "gap": pd.array([1, None, 3], dtype="Int64"),
            "boolean": pd.array([True, False, True], dtype="boolean"),
            "text": pd.array(["a", None, "b"], dtype="string"),
            "category": pd.Categorical(["b", "a", "b"]),
            "number": pd.Categorical([2, 1, 2]),
            "sparse": pd.arrays.SparseArray([0, 1, 0]),
            "object": np.array([1, 2.5, None], dtype=object),
        })  # fmt: skip
        columns = read_table(frame, "data")
        kinds = {name: values.dtype.kind for name, values in columns.items()}
        assert kinds == dict(zip(frame, "ifbOOiif", strict=True))
        np.testing.assert_array_equal(columns["gap"], [1, np.nan, 3])
        np.testing.assert_array_equal(columns["object"], [1, 2.5, np.nan])
        assert columns["text"].tolist() == ["a", None, "b"]
        assert columns["category"].tolist() == ["b", "a", "b"]

    def test_matrices_stay_matrices(self) -> None:
        structured = np.zeros(3, dtype=[("one", float, (1,)), ("two", float, (2,)), ("none", float, (0,))])
        shapes = {name: values.shape for name, values in read_table(structured, "data").items()}
        assert shapes == {"one": (3,), "two": (3, 2), "none": (3, 0)}
        frame = pd.DataFrame({"a": [1, 2], "b": [3.0, 4.0]})
        np.testing.assert_array_equal(read_table({"both": frame}, "data")["both"], [[1, 3], [2, 4]])

    def test_data_are_copied(self) -> None:
        x = np.array([1.0, 2.0])
        for data in ({"x": x}, pd.DataFrame({"x": x}), np.array([(1.0,), (2.0,)], dtype=[("x", float)])):
            read_table(data, "data")["x"][:] = 0
            np.testing.assert_array_equal(np.asarray(data["x"]), [1.0, 2.0])

    @pytest.mark.parametrize(
        ("data", "error", "message"),
        [
            ([1, 2], TypeError, "product_data must be a pandas DataFrame, a mapping .* not builtins.list"),
            (np.zeros((2, 2)), TypeError, "not numpy.ndarray"),
            ({"x": [1, 2], "y": [1]}, DataError, "column 'x' has 2 rows but column 'y' has 1"),
            ({"x": 1}, DataError, "column 'x' is a single value"),
            ({"x": np.zeros((2, 2, 2))}, DataError, "column 'x' has 3 dimensions"),
            ({"x": [[1, 2], [3]]}, DataError, "column 'x' is ragged"),
            ({"x": [1j]}, TypeError, "column 'x' contains complex numbers"),
            (pd.DataFrame([[1, 2]], columns=["x", "x"]), DataError, "column 'x' appears more than once"),
        ],
    )
    def test_unusable_tables_are_refused(self, data: object, error: type, message: str) -> None:
        with pytest.raises(error, match=message):
            read_table(data, "product_data")


@pytest.mark.parametrize(("power", "message"), [(200, "'x' is -?1.*e.200 in row 0"), (-200, "'x' has no number above")])
def test_numbers_whose_squares_overflow_or_vanish_are_refused(power: int, message: str) -> None:
    with pytest.raises(DataError, match=f"product_data: {message}.*other units"):
        Formulation("0 + x").build({"x": np.array([1.5, -2.0]) * 10.0**power})
