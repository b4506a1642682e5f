"""Programs on disk: found again by other processes, and never trusted further than that."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blpjax.iteration import FixedPointMethod
from blpjax.kernels.fixed_point import FixedPoint
from blpjax.machine import announcements, caches, compilation, store
from blpjax.machine.store import NotStorableError, Store, describe, restore
from blpjax.machine.tracing import calls_back
from tests.support.programs import package_program

#: As it is before fixtures replace it, and without memory.
find_store = compilation.program_store.__wrapped__

ROOT = Path(__file__).parents[2]

#: Solves a small model, and prints numbers and what was compiled or read: once, or again after files were damaged.
SCRIPT = """
import json, sys
import jax
import numpy as np
events = []
jax.monitoring.register_event_duration_secs_listener(lambda event, seconds, **more: events.append((event, more)))
from pathlib import Path
import blpjax
from blpjax.machine.compilation import forget_programs
from tests.support.problems import small_tables
blpjax.options.verbose = False
def solve():
    events.clear()
    problem = blpjax.Problem(blpjax.Formulation("1 + prices + x"), small_tables()[0])
    results = problem.solve(beta=[None, -2.0, None], method="1s", optimization=blpjax.Optimization("return"))
    print(json.dumps({
        "objective": float(results.objective).hex(),
        "prices": results.compute_prices().sum().hex(),
        "hessians": np.nansum(results.compute_demand_hessians()).hex(),
        "errors": np.nansum(results.parameter_covariances).hex(),
        "read": sum(event == "/blpjax/programs/read" for event, _ in events),
        "compiled": sorted({
            more.get("fun_name", "?") for event, more in events if event == "/jax/core/compile/backend_compile_duration"
        }),
    }))
solve()
if sys.argv[1:]:
    one, two, three = map(Path, sys.argv[1:4])
    one.write_bytes(one.read_bytes()[:-100])  # cut off
    two.write_bytes(b"garbage")
    other = bytearray(three.read_bytes())
    other[len(other) // 2] ^= 1
    three.write_bytes(other)
    forget_programs()
    solve()
"""


def run(directory: Path | str, *damaged: Path) -> list[dict[str, Any]]:
    known = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    known |= {"BLPJAX_COMPILATION_CACHE": str(directory), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT, *map(str, damaged)]
    done = subprocess.run(command, env=known, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def programs_in(directory: Path) -> list[Path]:
    return sorted(directory.glob("*/programs/*-*"))


def test_a_second_process_compiles_no_program_and_finds_the_same_numbers(tmp_path: Path) -> None:
    [first] = run(tmp_path)
    assert first["read"] == 0 and "jit(_evaluate)" in first["compiled"]
    kept = programs_in(tmp_path)
    assert len(kept) >= 3
    assert kept[0].parent.stat().st_mode & 0o777 == 0o700

    second, third = run(tmp_path, *kept[:3])
    assert second["read"] == len(kept)
    assert second["compiled"] == []
    numbers = ("objective", "prices", "hessians", "errors")
    assert [second[name] for name in numbers] == [first[name] for name in numbers]

    assert third["read"] == len(kept) - 3 and len(third["compiled"]) == 3
    assert [third[name] for name in numbers] == [first[name] for name in numbers]
    assert all(Store(path.parent).read(path) for path in kept), "they were replaced"


class Pair(eqx.Module):
    values: Any
    name: str = eqx.field(static=True)


def twice(kept: Store, function: Any, *arguments: Any, **options: Any) -> tuple[Any, Any, int]:
    """What a program returns when it is compiled, and when it is read; and how many files there are."""
    first = package_program(function, **options)(*arguments)
    second = package_program(function, **options)(*arguments)
    return first, second, len(list(kept.directory.glob("*-*"))) if kept.directory.exists() else 0


def test_outputs_are_made_again_with_their_classes_and_static_values(kept: Store) -> None:
    def made(pair: Any, n: int) -> Any:
        found = FixedPoint(pair["x"] * n, jnp.asarray(1), jnp.asarray(2), jnp.asarray(3), pair["x"].sum())
        return {"found": found, "pair": [None, (pair["x"] + 1,)]}

    first, second, files = twice(kept, made, {"x": np.arange(3.0)}, 2, static_argnums=(1,))
    assert files == 1
    assert jax.tree.structure(first) == jax.tree.structure(second)
    assert isinstance(second["found"], FixedPoint)
    for one, other in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(second["found"].value, [0, 2, 4])


def test_filtered_programs_return_what_is_no_array(kept: Store) -> None:
    def made(x: Any, name: str) -> Any:
        return x + 1, name.upper(), 3

    first, second, files = twice(kept, made, jnp.ones(2), "a", filtered=True)
    assert files == 1 and first[1:] == second[1:] == ("A", 3)
    np.testing.assert_array_equal(second[0], 2.0)


def test_factorisations_are_ready_in_programs_that_were_read(kept: Store) -> None:
    def solved(A: Any) -> Any:
        return jnp.linalg.inv(A), jnp.linalg.cholesky(A), jnp.linalg.svd(A)[1]

    first, second, _ = twice(kept, solved, np.diag([2.0, 4.0]))
    np.testing.assert_array_equal(first[0], second[0])
    np.testing.assert_allclose(second[0], np.diag([0.5, 0.25]))


def test_programs_differ_by_shapes_static_values_and_settings(kept: Store) -> None:
    def scaled(x: Any, n: int) -> Any:
        return x * n

    program = package_program(scaled, static_argnums=(1,))
    for x, n in ((np.ones(2), 2), (np.ones(3), 2), (np.ones(2), 3), (np.ones(2, int), 2), (np.ones(2), 2)):
        np.testing.assert_array_equal(program(x, n), x * n)
    assert len(program.executables) == len(list(kept.directory.iterdir())) == 4
    with jax.default_matmul_precision("float32"):
        program(np.ones(2), 2)
    assert len(program.executables) == 5


@pytest.mark.slow
def test_programs_are_forgotten_before_memory_maps_run_out(kept: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def doubled(x: Any) -> Any:
        return 2 * x

    program = package_program(doubled)
    program(np.ones(2))
    program(np.ones(3))
    assert len(program.executables) == 2
    monkeypatch.setattr(compilation, "memory_maps", lambda: 1_000_000)
    np.testing.assert_array_equal(program(np.ones(3)), 2)
    assert len(program.executables) == 2  # nothing new had to be made
    np.testing.assert_array_equal(program(np.ones(4)), 2)
    assert len(program.executables) == 1


def test_equal_arguments_of_other_types_are_others(kept: Store) -> None:
    def typed(x: Any, n: Any) -> Any:
        return x, type(n).__name__

    program = package_program(typed, filtered=True)
    assert [program(np.ones(2), n)[1] for n in (1, True, 1.0)] == ["int", "bool", "float"]


@pytest.mark.parametrize("function", [jnp.square, lambda x: x * x])
def test_programs_are_compiled_where_xla_does_not_know_our_option(kept: Store, function: Any) -> None:
    def applied(function: Any, x: Any) -> Any:
        return function(x)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compilation, "_EMITTERS", {"xla_cpu_no_such_thing": False})
        np.testing.assert_array_equal(package_program(applied, filtered=True)(function, np.full(2, 3.0)), 9.0)
        assert compilation._EMITTERS == {}


def test_programs_that_call_python_are_not_kept(kept: Store) -> None:
    seen = []

    def called(x: Any) -> Any:
        return jax.pure_callback(lambda value: seen.append(1) or value, jax.ShapeDtypeStruct(x.shape, x.dtype), x)

    _, second, files = twice(kept, called, np.ones(2))
    assert files == 0 and len(seen) == 2
    np.testing.assert_array_equal(second, 1.0)
    inner = jax.make_jaxpr(lambda x: jax.lax.cond(x[0] > 0, jax.jit(called), lambda y: y, x))(np.ones(2))
    assert calls_back(inner.jaxpr)


def test_functions_of_users_are_not_kept(kept: Store) -> None:
    def applied(function: Any, x: Any) -> Any:
        return function(x)

    program = package_program(applied, filtered=True)
    np.testing.assert_array_equal(program(lambda x: x + 1, np.ones(2)), 2.0)
    np.testing.assert_array_equal(program(lambda x: x + 2, np.ones(2)), 3.0)
    assert not kept.directory.exists()
    np.testing.assert_array_equal(program(jnp.square, np.full(2, 3.0)), 9.0)


@pytest.mark.parametrize("value", [lambda: 0, Pair, jnp.ones(2), Pair(1.0, "a"), FixedPointMethod("x", norm=run)])
def test_what_means_something_else_elsewhere_has_no_description(value: Any) -> None:
    with pytest.raises(NotStorableError):
        describe(value)


def test_descriptions_are_the_same_for_equal_values() -> None:
    name = "".join(["ab", "c"])
    assert describe((name, name)) == describe(("abc", "".join(["a", "bc"])))
    names = frozenset(f"name{i}" for i in range(50))
    assert describe(names) == describe(frozenset(sorted(names))) and restore(describe(names)) == names
    method = FixedPointMethod("newton")
    assert restore(describe(method)) == method
    x, one = jnp.ones(2), jnp.asarray(1)
    for function in (jnp.exp, jax.nn.sigmoid):  # users have them in rc_types
        assert restore(describe(function)) is function
    tree = jax.tree.structure((FixedPoint(x, one, one, one, x[0]), {"a": None, "b": [1, 2]}))
    assert restore(describe(tree)) == tree


def test_a_file_is_named_by_what_programs_depend_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Store(tmp_path)
    before = kept.path("name", b"description")
    assert before == kept.path("name", b"description")
    assert before != kept.path("name", b"other")
    monkeypatch.setattr(store, "_surroundings", lambda: b"another version")
    assert before != kept.path("name", b"description")


def test_the_store_is_bounded_and_forgets_what_was_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "_BETWEEN_LOOKS", 1)
    kept = Store(tmp_path / "programs", capacity=4000)
    for i in range(3):
        kept.write(kept.directory / f"a-{i}", bytes(1000))
        os.utime(kept.directory / f"a-{i}", (i, i))
    assert kept.read(kept.directory / "a-0") == bytes(1000)  # used just now
    kept.write(kept.directory / "a-3", bytes(1000))
    left = {path.name for path in kept.directory.iterdir()}
    assert "a-1" not in left and {"a-0", "a-3"} <= left
    assert sum(path.stat().st_size for path in kept.directory.iterdir()) <= 4000


def test_a_directory_that_others_can_write_to_is_refused_once(tmp_path: Path) -> None:
    kept = Store(tmp_path / "programs")
    kept.write(kept.directory / "a-1", b"content")
    assert kept.read(kept.directory / "a-1") == b"content"
    kept.directory.chmod(0o770)
    kept = Store(kept.directory)
    with pytest.warns(UserWarning, match="only you can write to"):
        assert kept.read(kept.directory / "a-1") is None
    kept.write(kept.directory / "a-2", b"content")
    assert not (kept.directory / "a-2").exists()


def test_a_link_is_no_directory_of_the_users(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "programs").symlink_to(tmp_path / "real")
    with pytest.warns(UserWarning, match="not a directory of yours"):
        Store(tmp_path / "programs").write(tmp_path / "programs" / "a-1", b"content")
    assert not list((tmp_path / "real").iterdir())


def test_nothing_is_lost_where_nothing_can_be_written_and_that_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts: list[str] = []
    monkeypatch.setattr(caches, "_said", [])
    monkeypatch.setattr("blpjax.options.verbose", True)
    monkeypatch.setattr("blpjax.options.verbose_output", texts.append)
    (tmp_path / "file").write_text("")
    kept = Store(tmp_path / "file" / "programs")
    for name in ("a-1", "a-2"):
        kept.write(kept.directory / name, b"content")
        assert kept.read(kept.directory / name) is None

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    whole = Store(tmp_path / "programs")
    monkeypatch.setattr("blpjax.machine.store.os.replace", full)
    whole.write(whole.directory / "a-1", b"content")
    assert not list(whole.directory.iterdir())
    assert len(texts) == 1 and texts[0].startswith(f"Compiled programs cannot be kept in {kept.directory}: ")


def test_the_environment_turns_the_store_off(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for off in ("0", "off", "False"):
        monkeypatch.setenv("BLPJAX_COMPILATION_CACHE", off)
        assert find_store() is None
    monkeypatch.setenv("BLPJAX_COMPILATION_CACHE", str(tmp_path))
    found = find_store()
    assert found is not None and found.directory.parent.parent == tmp_path


def test_long_compilation_is_announced(monkeypatch: pytest.MonkeyPatch) -> None:
    texts: list[str] = []
    done = threading.Event()

    def show(text: str) -> None:
        texts.append(text)
        done.set()

    monkeypatch.setattr(announcements, "ANNOUNCED_AFTER", 0.01)
    monkeypatch.setattr("blpjax.options.verbose", True)
    monkeypatch.setattr("blpjax.options.verbose_output", show)
    with announcements.announced("the objective", [jax.ShapeDtypeStruct((30, 40), float)], True):
        assert done.wait(10)
    assert texts == [
        "Compiling the objective for arrays of up to 1,200 numbers ... It is kept for later calls and processes."
    ]
    monkeypatch.setattr(announcements, "ANNOUNCED_AFTER", 60.0)
    with announcements.announced("the objective", [], True):
        pass
    assert len(texts) == 1
