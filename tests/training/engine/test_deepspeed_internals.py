"""DeepSpeed's private names: what importing it must not bring along."""

import subprocess
import sys


def test_deepspeeds_muon_is_imported_without_inductor() -> None:
    program = """
import sys
from mmldm_scale.training.engine.deepspeed_internals import compiler, import_muon_uncompiled
compile_function = compiler.compile
import_muon_uncompiled()
from deepspeed.runtime.zero.muon.muon_optimizer import MuonWithAuxAdam
assert compiler.compile is compile_function
print("torch._inductor.compile_fx" in sys.modules)
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "False"
