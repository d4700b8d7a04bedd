"""A device of another architecture, and what an emulated one is good for: outputs, and no times.

The device of the tests marked `arm_device` is the root that EDGEBUILD_ARM_ROOT names, run by qemu behind a real sshd.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final, TypeAlias

import numpy as np
import projects
import pytest
from arm_root import PLACE, arm_device, missing
from device_samples import DEVICE, SAMPLE, TIGHT
from flatbuffers_made import chain
from numpy.typing import NDArray
from projects import Arrays
from ssh_server import SshServer, ssh_server
from tflite_runtime.interpreter import Interpreter, OpResolverType

from edgebuild.device_tests import outputs, versus
from edgebuild.device_tests.device import RemoteTransport
from edgebuild.device_tests.environment import setup
from edgebuild.device_tests.facts import probe
from edgebuild.device_tests.latency import Latency, against, measure, summarize
from edgebuild.device_tests.local import LocalTransport
from edgebuild.device_tests.sample import ProcessSample
from edgebuild.device_tests.ssh import SshLink
from edgebuild.device_tests.stay import Stay
from edgebuild.device_tests.transport import DeviceFingerprint, RunRequest, emulator_of
from edgebuild.export import flatbuffer
from edgebuild.export.interpreter import encoded

QEMU: Final = "qemu-aarch64-static"
EMULATED: Final = replace(DEVICE, emulator=QEMU)
X86: Final = "processor\t: 0\nvendor_id\t: AuthenticAMD\nmodel name\t: AMD EPYC\n"
ARM: Final = "processor\t: 0\nCPU implementer\t: 0x41\nCPU part\t: 0xd08\n"
REQUEST: Final = RunRequest(min_warmup_s=0.0, min_warmup_runs=1, min_time_s=0.0, min_runs=3)
TIMEOUT_S: Final = 120.0
SAMPLES: Final = 20
ELF_MACHINE: Final = slice(18, 20)  # ref: elf(5), e_machine; 183 is EM_AARCH64
AARCH64: Final = (183).to_bytes(2, "little")
# ARM's convolutions are those of the reference, and only its dense layer rounds otherwise, by one: softmax makes 4 of
# it. The fast convolutions of x86 are the odd ones: 1 to 4 in each layer, and up to 71 behind softmax.
REFERENCE_STEPS: Final = 9
Project: TypeAlias = Callable[[], tuple[str, Arrays, Arrays]]


@pytest.mark.parametrize(
    ("machine", "cpuinfo", "program", "emulator"),
    [
        ("aarch64", ARM, "/usr/bin/dash", ""),
        ("x86_64", X86, "/usr/bin/dash", ""),
        ("s390x", "vendor_id       : IBM/S390\n", "", ""),
        ("aarch64", "", "", ""),
        ("aarch64", ARM, f"/usr/bin/{QEMU}\n", QEMU),
        ("armv7l", X86, "", "an emulator"),
        ("x86_64", ARM, "", "an emulator"),
    ],
)
def test_an_emulator_gives_itself_away(machine: str, cpuinfo: str, program: str, emulator: str) -> None:
    assert emulator_of(machine, cpuinfo, program) == emulator


def test_an_emulated_device_is_another_one_than_the_real() -> None:
    assert str(EMULATED) == f"{DEVICE}, played by {QEMU}"


@pytest.mark.skipif(not Path("/proc/thread-self/exe").exists(), reason="there is no Linux's /proc here")
def test_this_machine_is_none_that_an_emulator_plays() -> None:
    program = Path("/proc/thread-self/exe").resolve().name
    assert LocalTransport().fingerprint().emulator == (program if program.startswith("qemu-") else "")


def latency_on(device: DeviceFingerprint) -> Latency:
    return summarize([replace(SAMPLE, median_us=value) for value in TIGHT], device)


@pytest.mark.parametrize("limit_ms", [0.01, 10.0])
def test_an_emulated_latency_is_simulated_and_passes_or_fails_no_limit(limit_ms: float) -> None:
    real, emulated = latency_on(DEVICE), latency_on(EMULATED)
    assert (real.evidence, emulated.evidence) == ("measured", "simulated")
    assert against(real, limit_ms) != "inconclusive"
    assert against(emulated, limit_ms) == "inconclusive"
    assert emulated.notes == (f"{QEMU} plays the device: its times say nothing of a real one",)


class Emulated:
    """An emulated device that answers at once, on b in twice the time."""

    def fingerprint(self) -> DeviceFingerprint:
        return EMULATED

    def run(self, model: Path, request: RunRequest, timeout_s: float) -> ProcessSample:
        assert request.threads <= timeout_s
        return replace(SAMPLE, median_us=200.0 if model.name == "b" else 100.0)


def test_no_model_is_faster_because_an_emulator_is() -> None:
    found = versus.compare_models(Path("a"), Path("b"), Emulated(), versus.Terms())
    assert (found.verdict, found.ratio) == ("inconclusive", 2.0)
    assert found.notes == (f"{QEMU} plays the device: its times say nothing of a real one",)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshServer]:
    root = os.environ.get("EDGEBUILD_ARM_ROOT")
    if root is None:
        pytest.skip("EDGEBUILD_ARM_ROOT names no root of an ARM device: make test-arm")
    if lack := missing():
        pytest.skip(lack)
    folder = tmp_path_factory.mktemp("device")
    with (
        arm_device(Path(root), folder) as under,
        ssh_server(folder, settings=f"ChrootDirectory {PLACE}\n", under=under) as server,
    ):
        yield server


@pytest.fixture(scope="module")
def stay(server: SshServer) -> Iterator[Stay]:
    stay = Stay(SshLink(server.uri, config=server.config))
    yield stay
    stay.close()
    assert not server.left()
    assert not server.processes()


@pytest.fixture(scope="module")
def runtime(stay: Stay) -> str:
    """What its own Python imports after its environment was set up."""
    return setup(stay)


@pytest.mark.arm_device
def test_its_facts_are_those_of_an_arm_machine_that_qemu_plays(stay: Stay, runtime: str) -> None:
    facts = probe(stay.link)
    assert (facts.machine, facts.emulator, facts.runtime) == ("aarch64", QEMU, runtime)
    assert facts.kernel == os.uname().release  # qemu's user mode has no kernel of its own.
    assert facts.cores == len(os.sched_getaffinity(0))
    assert [version.rpartition(".")[0] for version in facts.pythons] == ["3.11"]


@pytest.mark.arm_device
def test_its_environment_is_of_wheels_for_its_architecture(server: SshServer, runtime: str) -> None:
    assert runtime == "tflite_runtime 2.14.0"
    libraries = list((server.home / ".local/share/edgebuild").glob("env-*/*/**/*.so*"))
    assert {path.read_bytes()[ELF_MACHINE] for path in libraries} == {AARCH64}


@pytest.mark.arm_device
@pytest.mark.usefixtures("runtime")
@pytest.mark.parametrize("file", ["", "kws/ref_int8.tflite"], ids=["made", "kws"])
def test_its_latency_is_simulated(stay: Stay, file: str, tmp_path: Path) -> None:
    model = projects.shared(file) if file else tmp_path / "made.tflite"
    if not file:
        model.write_bytes(chain(4))
    latency = measure(model, RemoteTransport(stay), processes=2, min_time_s=0.0)
    assert latency.evidence == "simulated"
    assert latency.notes[0].startswith(QEMU)
    assert "aarch64" in latency.device
    assert (latency.runtime, latency.processes) == ("tflite_runtime 2.14.0", 2)


def real_samples(path: Path, project: Project) -> Arrays:
    """Real values for the only input of a model, by its name."""
    (name,) = flatbuffer.read(path.read_bytes()).inputs
    return {name: next(iter(project()[2].values()))[:SAMPLES]}


@pytest.mark.arm_device
@pytest.mark.usefixtures("runtime")
@pytest.mark.parametrize(
    ("file", "project"),
    [
        ("kws/ref_int8.tflite", projects.kws),
        ("ad01_toycar/ad01_int8.tflite", projects.ad01),
        ("str_ww/ref_int8.tflite", projects.str_ww),
    ],
)
def test_it_computes_to_the_bit_what_this_machine_does(stay: Stay, file: str, project: Project) -> None:
    path = projects.shared(file)
    samples = real_samples(path, project)
    found = outputs.check(RemoteTransport(stay), path, REQUEST, samples, timeout_s=TIMEOUT_S)
    assert (found.verdict, found.exact, found.n) == ("equal", True, SAMPLES)
    assert "aarch64 against" in found.note


@pytest.mark.arm_device
@pytest.mark.usefixtures("runtime")
def test_it_rounds_resnet8_as_the_reference_kernels_do(stay: Stay) -> None:
    path = projects.shared("resnet8_cifar10/pretrainedResnet_quant.tflite")
    samples = real_samples(path, projects.resnet8)
    there = outputs.run(RemoteTransport(stay), path, REQUEST, samples, timeout_s=TIMEOUT_S)
    here = outputs.run(LocalTransport(), path, REQUEST, samples)
    found = outputs.agreement(flatbuffer.read(path.read_bytes()), here, there)
    assert (found.verdict, found.top1) == ("close", 1.0)
    assert np.abs(there.outputs[0].astype(int) - by_reference_kernels(path, samples)).max() <= REFERENCE_STEPS


def by_reference_kernels(path: Path, samples: Arrays) -> NDArray[np.int_]:
    """The only output for each sample, computed here by the runtime's own definition of its operators."""
    interpreter = Interpreter(str(path), experimental_op_resolver_type=OpResolverType.BUILTIN_REF)
    interpreter.allocate_tensors()
    (entry,), (end,) = interpreter.get_input_details(), interpreter.get_output_details()
    answers: list[NDArray[np.int8]] = []
    for given in encoded(flatbuffer.read(path.read_bytes()), samples):
        interpreter.set_tensor(entry["index"], *given.values())
        interpreter.invoke()
        answers.append(interpreter.get_tensor(end["index"]))
    return np.stack(answers).astype(np.int_)
