"""Who am I among the ranks: find who started this process, pick its device, meet the others; and say goodbye to them.

Three ways to start are known: a launcher that numbers its processes itself (`deepspeed`, `torchrun`), `srun` with one
task a rank, and a plain `python trainer/run.py`, which is one rank. torch is imported inside the functions, so that data
workers and the command line stay light.
"""

import logging
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, NoReturn, TypeVar

from m3p.errors import OneRankError, UserError

if TYPE_CHECKING:
    import torch
    from torch.distributed import ProcessGroup

T = TypeVar("T")

LAUNCHER_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
MPI_SIZES = ("OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE", "PMI_SIZE")
"""Variables in which mpirun (Open MPI, MVAPICH, MPICH and Intel MPI) says how many processes it started."""
# Slurm gives the shells of `sbatch` and of an interactive `salloc` step ids from here on (slurm.h): they are no ranks.
FIRST_RESERVED_STEP = 0xFFFFFFF0


@dataclass(frozen=True)
class LauncherInfo:
    """Where a process stands among the ranks, and where they meet; found from the environment alone."""

    rank: int
    local_rank: int
    world_size: int
    master_address: str
    master_port: int
    launcher: str


@dataclass(frozen=True)
class Ranks:
    """This process among the ranks of the run."""

    rank: int
    """Number among all ranks, 0..world_size-1; rank 0 writes files and talks."""
    local_rank: int
    """Number among the ranks of this node."""
    world_size: int
    """Ranks in the run."""
    device: "torch.device"
    """Where this rank computes: its own GPU, or the CPU."""
    launcher: str
    """Who started the ranks: `deepspeed`, `torchrun`, `srun` or `python`."""


def find(environment: Mapping[str, str]) -> LauncherInfo:
    """Return this process' place from the variables of whoever started it.

    Raises UserError if only some of them are set (OneRankError where the other ranks may have all of theirs).
    """
    if "RANK" in environment:
        return _from_launcher(environment)
    if 0 <= _step(environment) < FIRST_RESERVED_STEP:
        return _from_srun(environment)
    stray = [name for name in ("LOCAL_RANK", "WORLD_SIZE") if name in environment]
    if stray:
        raise UserError(
            f"{' and '.join(stray)} set, RANK not: this is neither one process nor a launcher's rank. Unset them to "
            "train with one process, or start with `deepspeed trainer/run.py ...`"
        )
    _check_no_mpi(environment)
    return LauncherInfo(0, 0, 1, "127.0.0.1", 0, "python")


def _check_no_mpi(environment: Mapping[str, str]) -> None:
    """Raise UserError where mpirun started several processes: each would train alone, as the only rank."""
    for name in MPI_SIZES:
        if name in environment and _number(environment, name) > 1:
            raise UserError(
                f"mpirun started {environment[name]} processes ({name}), and RANK is not set: each would train alone. Start with "
                f"`deepspeed trainer/run.py ...`, torchrun or `sbatch slurm/pretrain.sh ...`, or unset {name} to train with one "
                "process"
            )


def _step(environment: Mapping[str, str]) -> int:
    return _number(environment, "SLURM_STEP_ID") if "SLURM_STEP_ID" in environment else -1


def _from_launcher(environment: Mapping[str, str]) -> LauncherInfo:
    missing = [name for name in LAUNCHER_VARIABLES if not environment.get(name)]
    if missing:
        raise OneRankError(
            f"RANK={environment['RANK']} is set but not {', '.join(missing)}: a rank needs all of "
            f"{', '.join(LAUNCHER_VARIABLES)}. Start with `deepspeed trainer/run.py ...`, torchrun or "
            "`sbatch slurm/pretrain.sh ...`, which set them; or unset RANK, LOCAL_RANK and WORLD_SIZE to train with one process"
        )
    _check_no_stray_rank(environment)
    launcher = "torchrun" if "TORCHELASTIC_RUN_ID" in environment else "deepspeed"
    address, port = environment["MASTER_ADDR"], _number(environment, "MASTER_PORT")
    return _place(environment, ("RANK", "LOCAL_RANK", "WORLD_SIZE"), address, port, launcher)


def _check_no_stray_rank(environment: Mapping[str, str]) -> None:
    """Raise UserError where RANK comes from the shell that submitted: each task of srun would train alone, as the same rank."""
    tasks = _tasks_variable(environment)
    if tasks not in environment or not 0 <= _step(environment) < FIRST_RESERVED_STEP:
        return
    if _number(environment, "WORLD_SIZE") < _number(environment, tasks):
        raise UserError(
            f"srun started {environment[tasks]} tasks, but RANK={environment['RANK']} of "
            f"WORLD_SIZE={environment['WORLD_SIZE']} is set, for fewer: they were left in the shell that submitted the job. "
            "Unset RANK, LOCAL_RANK and WORLD_SIZE there, and submit again"
        )


def _tasks_variable(environment: Mapping[str, str]) -> str:
    """Return the variable with the number of srun's tasks: SLURM_NTASKS is there only where a number was asked for."""
    return "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in environment else "SLURM_NTASKS"


def _from_srun(environment: Mapping[str, str]) -> LauncherInfo:
    tasks = _tasks_variable(environment)
    names = ("SLURM_PROCID", "SLURM_LOCALID", tasks)
    missing = [name for name in names if name not in environment]
    if missing:
        raise UserError(f"SLURM_STEP_ID is set but not {', '.join(missing)}: start the ranks with srun, or unset it")
    if _number(environment, tasks) == 1:  # also `srun --pty bash`: nobody else to meet
        return _place(environment, names, "127.0.0.1", 0, "srun")
    if not (environment.get("MASTER_ADDR") and environment.get("MASTER_PORT")):
        raise UserError(
            f"srun started {environment[tasks]} ranks but MASTER_ADDR and MASTER_PORT are not both set, so "
            "they cannot meet. Submit slurm/pretrain.sh, or export before srun: MASTER_PORT=29500 and "
            'MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n1)'
        )
    return _place(environment, names, environment["MASTER_ADDR"], _number(environment, "MASTER_PORT"), "srun")


def _place(
    environment: Mapping[str, str], names: tuple[str, str, str], address: str, port: int, by: str
) -> LauncherInfo:
    rank, local_rank, world_size = (_number(environment, name) for name in names)
    if not rank < world_size:
        numbering = "SLURM_STEP_ID" if by == "srun" else "RANK, LOCAL_RANK and WORLD_SIZE"
        raise OneRankError(
            f"{names[0]}={rank} must be below {names[2]}={world_size}; unset {numbering} to train with one process"
        )
    return LauncherInfo(rank, local_rank, world_size, address, port, by)


def _number(environment: Mapping[str, str], name: str) -> int:
    value = environment[name]
    if not (value.isascii() and value.isdigit()):
        raise OneRankError(
            f"environment variable {name}={value!r} must be a whole number; unset it, or let a launcher set it"
        )
    return int(value)


def start(timeout_seconds: float) -> Ranks:
    """Join the other ranks and return this one's place and device.

    `timeout_seconds` bounds this meeting and every later collective. Sets the variables that DeepSpeed reads.
    Raises UserError for a half-set environment, an accelerator that is not there, or ranks that do not meet.
    """
    info = find(os.environ)
    device = _pick_device(info.local_rank)
    os.environ.update(
        RANK=str(info.rank),
        # DeepSpeed takes this number for the GPU's, among those that this process can see.
        LOCAL_RANK=str(device.index or 0),
        WORLD_SIZE=str(info.world_size),
        MASTER_ADDR=info.master_address,
        MASTER_PORT=str(info.master_port),
        DS_ACCELERATOR=device.type,
    )
    if device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        _share_cores()
    _meet(info, device, timeout_seconds)
    return Ranks(info.rank, info.local_rank, info.world_size, device, info.launcher)


def _pick_device(local_rank: int) -> "torch.device":
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    wanted = os.environ.get("DS_ACCELERATOR") or ("cuda" if gpus else "cpu")
    if wanted == "cpu":
        return torch.device("cpu")
    if wanted != "cuda" or not gpus:
        raise OneRankError(
            f"DS_ACCELERATOR={wanted} asks for an accelerator that is not here: the trainer runs on cuda or cpu, and "
            f"torch {torch.__version__} sees {gpus} GPUs. Unset it to take what there is"
        )
    # Slurm's --gpus-per-task=1 shows each task one GPU only, whatever its local rank.
    device = torch.device("cuda", local_rank % gpus)
    torch.cuda.set_device(device)
    return device


def _share_cores() -> None:
    """Give each rank of this node its part of the cores; every rank on all cores would be several times slower."""
    import torch

    sizes = ("LOCAL_WORLD_SIZE", "LOCAL_SIZE", "SLURM_NTASKS_PER_NODE")  # torchrun, deepspeed, srun
    here = next((int(os.environ[name]) for name in sizes if os.environ.get(name, "").isdigit()), 1)
    mine = len(os.sched_getaffinity(0))
    bound = mine < (os.cpu_count() or mine)  # a launcher has given this rank cores of its own
    torch.set_num_threads(mine if bound else max(1, mine // here))


def _meet(info: LauncherInfo, device: "torch.device", timeout_seconds: float) -> None:
    import torch.distributed as dist

    on_gpu = device.type == "cuda"
    try:
        dist.init_process_group(
            "nccl" if on_gpu else "gloo",
            timeout=timedelta(seconds=timeout_seconds),
            # A bound device lets NCCL connect at once; a lone rank has nobody to connect to.
            device_id=device if on_gpu and info.world_size > 1 else None,
        )
    except dist.DistError as error:
        raise OneRankError(
            f"rank {info.rank} of {info.world_size} did not meet the others at MASTER_ADDR={info.master_address} "
            f"MASTER_PORT={info.master_port} within {timeout_seconds:g} s ({str(error).splitlines()[0]}). Every rank must "
            "be started, reach that address, and find that port free"
        ) from error


def finish() -> None:
    """Wait for all ranks, then take the process group down. Every rank calls it, after its last collective."""
    if has_joined():
        import torch.distributed as dist

        dist.barrier()
        dist.destroy_process_group()
    _flush()


def leave(code: int) -> NoReturn:
    """End the process with `code`, at once and without Python's shutdown.

    A rank that has used gloo now and then aborts while its interpreter shuts down ("terminate called without an active
    exception"), which a launcher takes for a failure. Nothing registered with atexit runs: close files and loaders first.
    """
    logging.shutdown()
    _flush()
    os._exit(code)


def _flush() -> None:
    sys.stdout.flush()
    sys.stderr.flush()


def is_main() -> bool:
    """Whether this is rank 0; a process that has joined no others is."""
    return not has_joined() or sys.modules["torch.distributed"].get_rank() == 0


def join(timeout_seconds: float = 3600.0) -> None:
    """Meet the other ranks, in a program that a launcher may have started on several; nothing to do alone, or once met."""
    if not has_joined() and find(os.environ).world_size > 1:
        start(timeout_seconds)


def rank_and_count() -> tuple[int, int]:
    """Return this process' number among all ranks and how many there are; (0, 1) in a process that has joined no others."""
    if not has_joined():
        return 0, 1
    dist = sys.modules["torch.distributed"]
    return int(dist.get_rank()), int(dist.get_world_size())


def has_joined() -> bool:
    """Tell whether this process has met the other ranks."""
    # A process that has not imported torch has joined nobody; asking must not cost a data worker that import.
    dist = sys.modules.get("torch.distributed")
    return dist is not None and bool(dist.is_initialized())


def all_reduce_sum(tensor: "torch.Tensor", group: "ProcessGroup | None" = None) -> "torch.Tensor":
    """Sum `tensor` over all ranks, in place, and return it; unchanged where this is the only rank.

    One on the CPU goes from CPU to CPU also where the ranks compute on GPUs, so that it waits for none of them.
    `group`: the group of all ranks to use, where the common one will not do (`new_host_group`).
    """
    if rank_and_count()[1] > 1:
        import torch.distributed as dist

        dist.all_reduce(tensor, group=group or (None if tensor.is_cuda else _host_group()))
    return tensor


def new_host_group(timeout_seconds: float) -> "ProcessGroup":
    """Return a new group of all ranks, joined through the CPU, for a thread of its own. Every rank calls it at the same point.

    Two threads of a rank must not share a group: other ranks could run their collectives in another order.
    """
    import torch.distributed as dist

    return dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_seconds))


@lru_cache(maxsize=1)
def _host_group() -> "ProcessGroup | None":
    """All ranks, joined through the CPU; made at the first call, which every rank makes at the same point."""
    import torch.distributed as dist

    return None if dist.get_backend() == "gloo" else dist.new_group(backend="gloo")


def gather_objects(value: T, group: "ProcessGroup | None" = None) -> list[T]:
    """Return every rank's `value` (any picklable object), by rank; [value] where this is the only rank.

    It goes from CPU to CPU, so that it waits for no GPU. `group` is as in `all_reduce_sum`.
    """
    if rank_and_count()[1] == 1:
        return [value]
    import torch.distributed as dist

    every: list[T] = [value] * dist.get_world_size()
    dist.all_gather_object(every, value, group=group or _host_group())
    return every


def all_reduce_max(*values: int) -> list[int]:
    """Return the largest of each value over all ranks."""
    if not has_joined():
        return list(values)
    import torch
    import torch.distributed as dist

    device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
    tensor = torch.tensor(values, dtype=torch.int64, device=device)
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return [int(value) for value in tensor.tolist()]


def broadcast_object(value: T) -> T:
    """Return rank 0's `value` (any picklable object) on every rank."""
    if not has_joined():
        return value
    import torch.distributed as dist

    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]
