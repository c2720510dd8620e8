"""What a profiler saw, as files: a trace for Perfetto, and a table of the operations that take the most time."""

from pathlib import Path

from torch.profiler import ProfilerActivity, profile


def activities(on_gpu: bool) -> list[ProfilerActivity]:
    """Return what is to be recorded."""
    return [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]


def write_profile(folder: Path, on_gpu: bool, profiler: profile) -> None:
    """Write `folder`/trace.json.gz and table.txt, and print the table; it is sorted by time of the GPU where there is one."""
    folder.mkdir(parents=True, exist_ok=True)
    profiler.export_chrome_trace(str(folder / "trace.json.gz"))
    order = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    table = profiler.key_averages().table(sort_by=order, row_limit=60, max_name_column_width=90)
    (folder / "table.txt").write_text(table)
    print(table)
