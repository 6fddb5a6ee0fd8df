"""Programs of several processes: collectives, copies compared across them, and how they end together."""

from __future__ import annotations

import sys
import threading
import time
import zlib
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import lepton_jax as lepton
from lepton_jax._sharded import meeting
from lepton_jax.ir import _jax
from lepton_jax.parallel import processes
from lepton_jax.parallel._processes.watch import Watch
from lepton_jax.parallel.local import free_port, run_processes

OPTIMISED = """
import sys
import jax, numpy as np
from jax.sharding import PartitionSpec as P
import lepton_jax as lepton

def refused(run, words):
    try:
        run()
    except (ValueError, RuntimeError) as error:
        assert words in str(error), error
    else:
        raise AssertionError(words)

assert "lepton_jax._sharded.run" not in sys.modules and "lepton_jax.parallel.propagation" not in sys.modules
w = np.arange(16, dtype="float32").reshape(8, 2)
x = np.full((4, 8), jax.process_index() + 1, "float32")

def step(w, x):
    return w + (x.T @ (x @ w)) / 100, x * 2

f = lepton.optimize(step, mesh="data=4", shard=lepton.Sharding({"x": P("data")}, local="x"), donate="auto")
whole = np.concatenate([np.full((4, 8), 1.0), np.full((4, 8), 2.0)])
wanted = w
given = w
for _ in range(2):
    given, doubled = f(given, x)
    wanted = wanted + (whole.T @ (whole @ wanted)) / 100
assert doubled.shape == (8, 8) and given.is_fully_replicated
np.testing.assert_allclose(given.addressable_data(0), wanted, rtol=1e-5)
assert all((shard.data == 2 * x[:2]).all() for shard in doubled.addressable_shards)
(_, placed) = f.place(given, x)
assert placed.shape == (8, 8) and not placed.is_fully_addressable
on_device, _ = f.place(jax.numpy.asarray(w), x)  # the same on all processes, on a device of each
assert on_device.shape == (8, 2) and on_device.is_fully_replicated and not on_device.is_fully_addressable
first, _ = f(jax.numpy.asarray(w), x)
np.testing.assert_allclose(first.addressable_data(0), w + (whole.T @ (whole @ w)) / 100, rtol=1e-5)
again, _ = f(given, placed)  # an array that is whole already stays
unsplit = lepton.Sharding({"x": None, "w": P("data")}, local="x")
refused(lambda: lepton.optimize(step, mesh="data=4", shard=unsplit)(w, x),
        "split its dimension 0 along axes that go over the processes")

second = jax.process_index() == 1
def anew_on(mesh, shard=None):
    shard = shard or lepton.Sharding({"x": P("data")}, local="x")
    return lepton.optimize(lambda w, x: step(w, x), mesh=mesh, shard=shard)
def anew(shard=None, **options):
    return anew_on("data=4", shard or lepton.Sharding({"x": P("data")}, **options))

refused(lambda: anew(local="x")(w, x[: 2 if second else 4]),
        "x is float32[4,8] in process 0 and float32[2,8] in process 1")
refused(lambda: anew(local="x").place(w, x.astype("float16") if second else x),
        "float16[4,8] in process 1: all processes give")
other = "x has other values in process 1 than in process 0: an array of the host or of one process is the"
refused(lambda: anew()(w, x), other)
refused(lambda: anew()(w, jax.numpy.asarray(x)), other)
refused(lambda: anew({"x": P()})(w, x), other)
refused(lambda: anew({"w": P("data") if second else P()}).place(w, np.ones_like(x)),
        "lay '<lambda>' out otherwise: w as [-, -] and [data, -]")
if second:
    anew(local="x").plan(w, x)  # is no run
    here = jax.sharding.Mesh(np.array(jax.local_devices()), ("data",))
    _, alone = anew_on(here)(w, x)  # is on one process alone, which has all
    assert alone.shape == x.shape
anew(local="x")(w, x)

keyed = lepton.optimize(lambda key, x, by: x + by * jax.random.key_data(key)[1], mesh="data=4",
                        shard={"x": P("data")})
key, rows = jax.random.key(3), np.arange(32, dtype="float32").reshape(4, 8)
for given in ((key, rows, 2.0), (key, jax.numpy.asarray(rows), 2.0), keyed.place(key, rows, 2.0)):
    for shard in keyed(*given).addressable_shards:
        np.testing.assert_array_equal(shard.data, rows[shard.index] + 6.0)

@lepton.optimize("default,quantize{weights=int8,activations=dynamic}", params="w", mesh="data=2,model=2",
                 shard="tp", verify=True, measure=True)
def serve(w, x):
    return jax.nn.relu(x @ w["a"]) @ w["b"]

weights = {"a": w, "b": np.ascontiguousarray(w.T)}
refused(lambda: serve.prepare({**weights, "b": weights["b"] + second}, rows),
        "w/b has other values in process 1")
prepared = serve.prepare(weights, rows)  # equal on both, brought to all devices
codes = prepared["w/b#2"]
assert codes.dtype == "int8" and not codes.is_fully_addressable
assert codes.sharding.spec == P(None, "model")
served, floats = serve.apply(prepared, rows), serve(weights, rows)
notes = " ".join(serve.report.notes)
assert "verify: against one device: quantize approximate" in notes and "measure: " in notes, notes
wanted = np.maximum(rows @ w, 0) @ w.T
for result in (served, floats):
    for shard in result.addressable_shards:
        np.testing.assert_allclose(shard.data, wanted[shard.index], rtol=0.02, atol=0.01 * wanted.max())
print("optimised")
"""
"""A step over two processes: parts of a batch, wholes of parameters, state that stays; a quantised model."""

SEARCHED = """
import threading
from lepton_jax.ir import _jax
from lepton_jax.parallel import solver
from lepton_jax.parallel.layouts import Layout

def searched(mesh="data=2,model=2", specs=None, fun=step, **options):
    return lepton.optimize(lambda w, x: fun(w, x), mesh=mesh, **options,
                           shard=lepton.Sharding(specs, preset="auto", local="x"))

solve = solver.solve
def otherwise(graph, *rest, **how):
    return solve(graph, *rest, **{**how, "pins": {graph.inputs[0]: Layout((("model",), ()))}})
def broken(*given, **how):
    raise RuntimeError("no layouts here")

wide, own = np.ones((256, 256), "float32"), np.full((4, 256), 1.0 + second, "float32")
run = searched()
if second:  # a machine whose search finds something else
    solver.solve = otherwise
    assert str(run.plan(wide, own).arrays[0].layout) == "[model, -]"  # decided alone
weights, batch = run.place(wide, own)
assert weights.sharding.spec != P("model") and batch.sharding.spec[0] == "data"
assert ("process 0 decided how all lies" in run.plan(wide, own).notes) == second
result, _ = run(wide, own)
for shard in result.addressable_shards:  # 4 rows of ones and 4 of twos
    np.testing.assert_allclose(shard.data, 1 + 256 * (4 * 1 + 4 * 4) / 100, rtol=1e-5)
assert searched(mesh="auto")(wide, own)[0].sharding.mesh.size == 4
loss = lambda w, x: jax.grad(lambda w: ((x @ w) ** 2).mean())(w)
assert np.isfinite(searched(fun=loss, microbatches=2)(wide, own).addressable_data(0)).all()

solver.solve = solve if second else broken
refused(lambda: searched()(wide, own), "no layouts here")
solver.solve = broken if second else solve
def odd(w, x):
    if second:
        raise RuntimeError("no such step here")
    return step(w, x)
refused(lambda: searched(fun=odd)(wide, own), "no such step here")
refused(lambda: searched(fun=lambda w, x: x - w[0] if second else x + w[0])(wide, own),
        "cannot take the plan of process 0: this plan was made for another program: its operations")
refused(lambda: searched()(wide, own[: 2 if second else 4]),
        "x is float32[4,256] in process 0 and float32[2,256] in process 1")
refused(lambda: (anew(local="x") if second else searched("data=4"))(w, x), "searches for layouts of '<la")
run, placed = searched(), []
threads = [threading.Thread(target=lambda: placed.append(run.place(wide, own))) for _ in range(2 + second)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert len(placed) == 2 + second
solver.solve = solve

devices = np.array(jax.devices()).reshape(2, 2)
def on(devices, *names):
    return jax.sharding.Mesh(devices, names, axis_types=(jax.sharding.AxisType.Auto,) * len(names))
def pairs(w, batch):
    return batch["x"] @ w, batch["x"][:, 0] - batch["y"]
mine = np.arange(4, dtype="float32") + 10 * second
batch = {"x": np.tile(mine[:, None], (1, 8)), "y": mine}
columns, crossed = devices.T, devices[[[0, 1], [1, 0]], [[0, 0], [1, 1]]]
for mesh in (on(columns, "model", "data"), on(crossed, "model", "data")):
    run = lepton.optimize(pairs, mesh=mesh, shard=lepton.Sharding(preset="auto", local="batch"))
    _, placed = run.place(w, batch)
    assert {float(row) for part in placed["y"].addressable_shards for row in part.data} == set(mine)
    assert all((part.data == 0).all() for part in run(w, batch)[1].addressable_shards)
refused(lambda: run(w, jax.tree.map(lambda each: each[:3], batch)),
        "has size 6, which the 4 devices along model+data do not divide")
def laid(specs, **options):
    shard = lepton.Sharding(specs, local="batch", **options)
    return lepton.optimize(pairs, mesh=on(columns, "model", "data"), shard=shard).place(w, batch)[1]
both = ("model", "data")
refused(lambda: laid({"batch/x": P(both), "batch/y": P("data")}), "would not stand at the same places in b")
assert laid({"batch/x": P(both)}, preset="auto")["y"].sharding.spec[0] == both

if not second:
    assert len(_jax.store().key_value_dir_get_bytes("lepton/programs")) < 8  # of the last meetings
print("searched")
"""
"""Layouts that are searched for: the first process decides. Parts of arrays on meshes of all kinds."""

TOGETHER = """
import os, signal
import jax, jax.numpy as jnp, numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec as P
import lepton_jax as lepton
from lepton_jax.parallel.compressed import Compression, all_reduce_mean, init_feedback

assert jax.process_count() == 2 and len(jax.devices()) == 4 and len(jax.local_devices()) == 2
mesh = jax.make_mesh((2, 2), ("slice", "data"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
both = ("slice", "data")
grads = np.random.default_rng(0).standard_normal((4, 64, 64)).astype(np.float32)
ways = [Compression("int8", both, inner="data", smallest=0),
        Compression("topk", both, smallest=0, share=0.2)]

def placed(value, spec):
    value = np.asarray(value)
    return jax.make_array_from_callback(value.shape, NamedSharding(mesh, spec), lambda index: value[index])

states = [init_feedback([grads[0]], way, mesh.shape) for way in ways]
specs = [state.specs() for state in states]
states = jax.tree.map(placed, states, specs)
run = jax.jit(jax.shard_map(
    lambda g, states: tuple(zip(*[all_reduce_mean([g[0]], s, way) for s, way in zip(states, ways)])),
    mesh=mesh, in_specs=(P(both), specs), out_specs=(P(), tuple(specs))))
means, states = run(placed(grads, P(both)), states)
exact = grads.mean(0)
errors = [float(np.linalg.norm(np.asarray(m) - exact) / np.linalg.norm(exact)) for (m,) in means]
assert errors[0] < 0.012 and errors[1] < 0.8, errors
lepton.check_replicas(means, name="means")

wrong = jax.devices()[2]
parts = [jax.device_put(np.full((3, 4), 1.0 + (d == wrong), np.float32), d) for d in jax.local_devices()]
spoiled = jax.make_array_from_single_device_arrays((3, 4), NamedSharding(mesh, P()), parts)
try:
    lepton.check_replicas({"means": means, "spoiled": spoiled})
except lepton.ReplicaError as error:
    print(error, flush=True)
multihost_utils.sync_global_devices("all is checked")
if jax.process_index() == 1:
    os.kill(os.getpid(), signal.SIGKILL)
multihost_utils.sync_global_devices("never")
"""
"""Compressed reductions, copies compared across processes, and a process that is killed."""


def test_two_processes_optimise_reduce_compare_and_end_together() -> None:
    """One run for all: the second process is killed at the end, and the first says so and ends."""
    ended = run_processes(OPTIMISED + SEARCHED + TOGETHER, n=2, devices=2, timeout=100)
    assert [each.status for each in ended] == [70, -9], ended
    for each in ended:
        assert "optimised\n" in each.out and "searched\n" in each.out
        assert "copies of params/spoiled (float32[3, 4]) differ:" in each.out
        assert "(process 1) differs from device 0 (process 0) in 12 of 12 elements" in each.out
        assert each.out.rstrip().endswith("the first at [0, 0] of its part, by at most 1")
    assert "process 1 of 2 (" in ended[0].err and "died; process 0 ends too" in ended[0].err
    assert ended[0].seconds < 90


def test_a_process_that_waits_for_another_program_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where another gives the shapes of an earlier program it does not ask. It tells a third one."""
    store, said = object(), dict[str, bytes]()
    monkeypatch.setattr(_jax, "store", lambda: store)
    monkeypatch.setattr(_jax, "told", lambda store, key, seconds: None)
    monkeypatch.setattr(_jax, "tell", lambda store, key, text: said.update({key: text}))
    monkeypatch.setattr(meeting, "owners", lambda mesh: (0, 7))
    f = lepton.optimize(lambda x: x + 1, mesh="data=2", shard={"x": P("data")})
    late = r"process 7 does not begin '<lambda>' .*, with x float32\[4\]"
    with pytest.raises(processes.ProcessError, match=late):
        f(np.ones(4, "f"))
    assert "for 15 seconds process 7 does not begin" in caplog.text and "for 285 more" in caplog.text
    assert [key.rpartition("/")[2] for key in said] == ["first", "all"]
    _, last = said.popitem()
    assert b"process 0 could not run '<lambda>': ProcessError: process 7" in zlib.decompress(last)
    f.plan(np.ones(4, "f"))  # asks nobody
    store = object()  # JAX was started anew
    with pytest.raises(processes.ProcessError):
        f(np.ones(4, "f"))
    assert [key.split("/")[3] for key in said] == ["0", "0"]


def started(*calls: tuple[Any, ...]) -> list[str]:
    """What goes wrong in processes that start with these arguments, each in a thread of its own."""
    found = [""] * len(calls)

    def one(at: int, arguments: tuple[Any, ...]) -> None:
        try:
            processes.start(*arguments, timeout=1.5, on_death=lambda message: None)
        except (processes.ProcessError, ValueError) as error:
            found[at] = f"{type(error).__name__}: {error}"

    threads = [threading.Thread(target=one, args=each) for each in enumerate(calls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_processes_that_do_not_come_together_say_why(monkeypatch: pytest.MonkeyPatch) -> None:
    joined: list[Any] = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *args, **how: joined.append((args, how)))
    watches: list[Any] = []
    monkeypatch.setattr(Watch, "at_exit", lambda self: watches.append(self))
    where = [f"127.0.0.1:{free_port()}" for _ in range(5)]
    found = started(
        (where[0], 2, 0),
        (where[0], 2, 1),
        (where[1], 2, 1),
        (where[2], 3, 0),
        (where[2], 3, 2),
        (where[3], 2, 0),
        (where[3], 3, 1),
    )
    for watch in watches:
        watch._leave()
    assert found[:2] == ["", ""] and sorted(args for args, _ in joined) == [
        (where[0], 2, 0),
        (where[0], 2, 1),
    ]
    assert "process 0 does not answer at 127.0.0.1:" in found[2] and "is it running" in found[2]
    assert found[3] == found[4] == "ProcessError: of 3 processes 1 did not come within 1.5 s"
    assert found[5] == found[6] and "was started as one of 3 processes, process 0 as one of 2" in found[5]
    for wrong, said in [
        ((where[4], 2, 2), "each is 0 to 1, not 2"),
        (("localhost", 2, 0), "as '10.0.0.1:8476'"),
        ((where[4], None, 0), "or none of them"),
    ]:
        with pytest.raises(ValueError, match=said):
            processes.start(*wrong)
    processes.start(where[4], 1, 0)  # alone: nobody to wait for
    processes.start()
    assert joined[-1] == ((), {"initialization_timeout": 60, "heartbeat_timeout_seconds": 30})


def test_a_process_that_fails_says_with_what(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    heard = threading.Event()
    statuses: list[int] = []
    monkeypatch.setattr("os._exit", statuses.append)
    host, port = "127.0.0.1", free_port()
    watches: dict[int, Any] = {}

    def note(message: str) -> None:
        said.append(message)
        heard.set()

    def join(process: int) -> None:
        watches[process] = Watch(host, port, 2, process, 5.0, note)

    threads = [threading.Thread(target=join, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    monkeypatch.setattr(sys, "exit", sys.exit)  # both are put back
    monkeypatch.setattr(sys, "excepthook", lambda kind, error, trace: None)
    monkeypatch.setattr("atexit.register", lambda function: None)
    watches[0].at_exit()
    sys.excepthook(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert watches[0]._error == "KeyboardInterrupt"
    with pytest.raises(SystemExit, match="4"):
        sys.exit(4)
    watches[0]._leave()
    assert heard.wait(5.0)
    assert said == ["process 0 of 2 (127.0.0.1) ended with sys.exit(4); process 1 ends too"]
    assert statuses == [4]


def test_a_caught_exit_is_no_failure_and_who_is_left_behind_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sys, "exit", sys.exit)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr("atexit.register", lambda function: None)
    monkeypatch.setattr("lepton_jax.parallel._processes.watch._LEAVING", 0.0)
    host, port, watches = "127.0.0.1", free_port(), {}

    def join(process: int) -> None:
        watches[process] = Watch(host, port, 2, process, 5.0, pytest.fail)

    threads = [threading.Thread(target=join, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    watches[1].at_exit()
    watches[0]._patience = 0.1
    with pytest.raises(SystemExit):
        sys.exit("caught")
    watches[1]._leave()
    deadline = time.monotonic() + 5.0
    while not caplog.messages and time.monotonic() < deadline:
        time.sleep(0.02)
    assert "came to its end 0.1 s ago, and process 0 runs on" in caplog.messages[0]
    watches[0]._leave()
