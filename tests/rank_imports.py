"""What a rank imports before its first step, for the process from which tests fork ranks (tests/forked.py).

Most of the processor time of a small run goes into these imports: torch, its compiler, DeepSpeed.
"""

import os
import warnings

os.environ |= {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}  # before torch and DeepSpeed look
warnings.simplefilter("ignore")

import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: E402, F401  (brings torch's compiler)
import tensorboard.compat.proto.event_pb2  # noqa: E402, F401
import torch.utils.tensorboard  # noqa: E402, F401

import m3p.retrieval.evaluate  # noqa: E402
import m3p.training.deepspeed.engine  # noqa: E402
import m3p.training.train  # noqa: E402, F401
