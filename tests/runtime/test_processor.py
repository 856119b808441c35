"""oneDNN and bfloat16 by processor: lists of flags as Linux gives them, and the switch in fresh
processes."""

import os
import subprocess
import sys

import pytest

import tfssl
from tfssl.runtime import processor

# Excerpts of /proc/cpuinfo: the vector extensions of each. The years are those of the first
# product.
SSE = "fpu sse sse2 ssse3 sse4_1 sse4_2"
AVX2 = f"{SSE} avx f16c fma avx2 bmi1 bmi2"
AVX512 = f"{AVX2} avx512f avx512dq avx512cd avx512bw avx512vl"
PROCESSORS = {  # name -> (flags, oneDNN is faster, bfloat16 in hardware)
    "Nehalem (2008)": (SSE, False, False),
    "Sandy Bridge (2011)": (f"{SSE} avx", True, False),
    "Haswell (2013)": (AVX2, True, False),
    "Zen 2 (2019)": (f"{AVX2} sse4a clwb rdpid", True, False),
    "Zen 3 (2020)": (f"{AVX2} sse4a vaes vpclmulqdq", True, False),
    "Zen 4 (2022)": (f"{AVX512} avx512_bf16 avx512vbmi avx512_vbmi2 avx512_vnni", True, True),
    "Skylake-X (2017)": (AVX512, True, False),
    "Cascade Lake (2019)": (f"{AVX512} avx512_vnni", True, False),
    "Cooper Lake (2020)": (f"{AVX512} avx512_vnni avx512_bf16", True, True),
    "Alder Lake (2021)": (f"{AVX2} avx_vnni vaes", True, False),
    "Sapphire Rapids (2023)": (
        f"{AVX512} avx_vnni avx512_bf16 avx512_fp16 amx_bf16 amx_tile amx_int8",
        True,
        True,
    ),
    "Neoverse N1 (2019)": ("fp asimd evtstrm aes crc32 atomics fphp asimdhp asimddp", False, False),
    "Neoverse V1 (2020)": ("fp asimd sve i8mm bf16 svebf16", False, False),
    "not Linux": ("", False, False),
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_processors(name, tmp_path):
    flags, onednn, bfloat16 = PROCESSORS[name]
    cpuinfo = tmp_path / "cpuinfo"
    label = "Features" if name.startswith("Neoverse") else "flags"
    cpuinfo.write_text(
        f"processor\t: 0\nvmx flags\t: avx amx_bf16 vnmi\n{label}\t\t: {flags}\nbugs\t\t: "
        "spectre_v1\n"
    )
    found = processor.features(cpuinfo)
    assert found == set(flags.split())
    assert processor.gains_from_onednn(found) == onednn
    assert processor.computes_bfloat16(found) == bfloat16
    assert not processor.computes_bfloat16(found, limit="AVX2")
    assert not processor.computes_bfloat16(found, limit="AVX512_CORE_VNNI")
    assert processor.computes_bfloat16(found, limit="avx512_core_bf16") == bfloat16


def test_no_cpuinfo(tmp_path):
    assert processor.features(tmp_path / "absent") == set()


def fresh(program, **environment):
    """What a new interpreter prints; no setting of oneDNN is inherited."""
    inherited = {k: v for k, v in os.environ.items() if k != processor.ONEDNN}
    command = [sys.executable, "-c", program]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=True,
        env={**inherited, **environment},
        cwd=os.path.dirname(tfssl.__file__),
    )


SHOW = (
    "; import os; from tfssl.runtime import processor; print(os.environ.get(processor.ONEDNN), "
    "processor.onednn_is_on())"
)


@pytest.mark.skipif("avx" not in processor.features(), reason="an x86 processor with AVX")
def test_onednn_is_on_unless_the_user_says_otherwise():
    """TensorFlow is asked, not the environment: it reads that once, when it loads."""
    assert fresh("import tfssl, tensorflow" + SHOW).stdout.split() == ["1", "True"]
    assert fresh("import tfssl, tensorflow" + SHOW, TF_ENABLE_ONEDNN_OPTS="0").stdout.split() == [
        "0",
        "False",
    ]


def test_tensorflow_imported_first_without_onednn_is_told(monkeypatch, recwarn):
    """As on a processor on which TensorFlow leaves oneDNN off (this one may be another): nothing
    can be switched on any more."""
    monkeypatch.delenv(processor.ONEDNN, raising=False)
    monkeypatch.setattr(processor, "features", lambda: set(AVX2.split()))
    monkeypatch.setattr(processor, "onednn_is_on", lambda: False)
    processor.switch_on_onednn()
    (told,) = recwarn
    assert "imported before tfssl, without oneDNN" in str(told.message) and "\n" not in str(
        told.message
    )
    assert processor.ONEDNN not in os.environ
    monkeypatch.setattr(processor, "features", lambda: set(SSE.split()))  # where it would not help
    processor.switch_on_onednn()
    monkeypatch.setattr(processor, "features", lambda: set(AVX2.split()))
    monkeypatch.setattr(
        processor, "onednn_is_on", lambda: True
    )  # where TensorFlow uses it by itself
    processor.switch_on_onednn()
    monkeypatch.setattr(processor, "onednn_is_on", lambda: False)
    monkeypatch.setenv(processor.ONEDNN, "0")  # where the user wants it off
    processor.switch_on_onednn()
    assert len(recwarn) == 1
