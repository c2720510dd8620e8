"""Settings that DeepSpeed knows and this trainer refuses, each with the reason and the way out.

A setting that changes what is computed, or does nothing here, must not pass without a word.
"""

from collections.abc import Iterator
from typing import Any

_ONE_MODEL = "every rank holds the whole network (pure data parallel), and checkpoints and loss counts rely on that"
_OWN_FILES = (
    "figures go to metrics.jsonl and TensorBoard in run.folder, which other tools can read; take the section out"
)
_OWN_DATA = "samples, order and batches are the recipe's; set objectives and data there, and take the section out"
_OWN_CHECKPOINTS = (
    "checkpoints are written by the trainer, in a form for any number of ranks; see run.checkpoint_every, take it out"
)
_NETWORK = "the network is the recipe's model section; take the section out"
_FIXED = "the trainer sets it itself; take it out of the file"

SECTIONS: dict[str, str] = {
    "activation_checkpointing": "layers are recomputed by the recipe's model.recompute; set that, and take the section out",
    "amp": "apex amp is not supported; use bf16 or fp16",
    "autotuning": "it starts runs of its own; `m3p plan` predicts memory and step time without one",
    "checkpoint": _OWN_CHECKPOINTS,
    "comet": _OWN_FILES,
    "compile": "DeepCompile rewrites the network's graph, which nobody has tested here; take the section out",
    "compression_training": "compressing weights while they are trained is not supported; take the section out",
    "csv_monitor": _OWN_FILES,
    "curriculum_learning": _OWN_DATA,
    "data_efficiency": _OWN_DATA,
    "data_types": "gradients are always summed in float32, weights follow bf16 and fp16; take the section out",
    "dataloader_drop_last": _OWN_DATA,
    "datastates_ckpt": _OWN_CHECKPOINTS,
    "disable_allgather": "DeepSpeed 0.19 ignores it; take it out of the file",
    "disable_python_gc": "Python's garbage collector runs at fixed steps already; take it out of the file",
    "eigenvalue": "layer-wise quantization is not supported; take the section out",
    "elasticity": "any number of ranks goes on from any checkpoint with the same batches already; take the section out",
    "expert_parallel": f"there are no experts: {_ONE_MODEL}; take the section out",
    "flops_profiler": "it counts padded batches wrongly; metrics.jsonl holds teraflops and MFU; take the section out",
    "gradient_allreduce_op": "losses are divided by global counts, which needs the average; take it out of the file",
    "graph_harvesting": "CUDA graphs need batches of fixed shape; take it out of the file",
    "hybrid_engine": "it is for generating text between steps; take the section out",
    "managed_gradient_accumulation": _FIXED,
    "max_train_batch_size": _OWN_DATA,
    "moe": f"there are no experts: {_ONE_MODEL}; take the section out",
    "nebula": _OWN_CHECKPOINTS,
    "pipeline": f"pipeline parallelism is not supported: {_ONE_MODEL}; use ZeRO 3 where the network is too large",
    "progressive_layer_drop": "dropping layers is not supported; model.dropout is",
    "quantize_training": "quantized training is not supported; use bf16",
    "seq_parallel_communication_data_type": f"sequence parallelism is not supported: {_ONE_MODEL}; take it out of the file",
    "sparse_attention": _NETWORK,
    "sparse_gradients": "the word table is tied to the output layer, so its gradient is dense; take it out of the file",
    "tensor_parallel": f"tensor parallelism is not supported: {_ONE_MODEL}; use ZeRO 3 where the network is too large",
    "torch_autocast": "master weights and loss scaling rely on one format for all weights; use bf16.enabled or fp16.enabled",
    "use_data_before_expert_parallelism": f"there are no experts: {_ONE_MODEL}; take it out of the file",
    "vocabulary_size": _NETWORK,
    "wandb": _OWN_FILES,
    "weight_quantization": "weights stay in bf16, fp16 or float32; take the section out",
    "zero_allow_untested_optimizer": _FIXED,
    "zero_force_ds_cpu_optimizer": _FIXED,
}
"""Name at the top of the file -> why it is refused, and what to do instead."""

_FULL_MASTERS = (
    "master weights, moments and gradient sums are kept in float32, and checkpoints hold them so; take it out"
)
_PARTITIONS = "checkpoints expect each parameter spread over all ranks; take it out"

INSIDE: dict[str, tuple[Any, str]] = {
    "bf16.bf16_master_weights_and_grads": (False, _FULL_MASTERS),
    "bf16.bf16_optimizer_states": (False, _FULL_MASTERS),
    "bf16.check_grad_overflow": (True, "a gradient that is not finite must never reach the weights; take it out"),
    "bf16.immediate_grad_update": (False, "the update waits for the verdict on the step; take it out"),
    "fp16.auto_cast": (False, "the network casts its inputs itself; take it out"),
    "fp16.fp16_master_weights_and_grads": (False, _FULL_MASTERS),
    "zero_optimization.compute_grad_norm": (True, "the norm tells whether a gradient is finite; take it out"),
    "zero_optimization.cpu_offload": (None, 'an old name; write "offload_optimizer": {"device": "cpu"}'),
    "zero_optimization.cpu_offload_param": (None, 'an old name; write "offload_param": {"device": "cpu"}'),
    "zero_optimization.cpu_offload_use_pin_memory": (
        None,
        "an old name; write pin_memory in the section of the offload",
    ),
    "zero_optimization.elastic_checkpoint": (False, _PARTITIONS),
    "zero_optimization.ignore_unused_parameters": (True, "every module is called in every micro-batch; take it out"),
    "zero_optimization.legacy_stage1": (False, "DeepSpeed has dropped it; take it out"),
    "zero_optimization.mics_shard_size": (-1, _PARTITIONS),
    "zero_optimization.offload_optimizer.ratio": (1.0, "a part of the moments on the GPU is not saved; take it out"),
    "zero_optimization.offload_optimizer.super_offload": (False, "checkpoints do not know its layout; take it out"),
    "zero_optimization.round_robin_gradients": (False, "checkpoints do not know its layout; take it out"),
    "zero_optimization.zenflow": (None, "it updates weights with old gradients; take the section out"),
    "zero_optimization.zero_hpz_partition_size": (1, _PARTITIONS),
    "zero_optimization.zero_quantized_gradients": (False, "gradients are summed in float32; take it out"),
    "zero_optimization.zero_quantized_nontrainable_weights": (
        False,
        "the result would depend on the ranks; take it out",
    ),
    "zero_optimization.zero_quantized_weights": (False, "the result would depend on the ranks; take it out"),
}
"""Setting inside a section that is read -> (its only value, why no other)."""


def unsupported(config: dict[str, Any]) -> Iterator[str]:
    """Yield a line for each setting in the file that is refused: its name, the reason, the way out."""
    for name in config.keys() & SECTIONS.keys():
        yield f"{name}: {SECTIONS[name]}"
    for name, (only, why) in INSIDE.items():
        *above, last = name.split(".")
        section: Any = config
        for part in above:
            section = section.get(part, {}) if isinstance(section, dict) else {}
        if isinstance(section, dict) and section.get(last, only) not in (only, "auto"):
            yield f"{name}: {why}"
